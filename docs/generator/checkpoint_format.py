"""The reference of the checkpoint format: versions, manifests, architecture cards, and a run's files."""

import inspect
import typing
from pathlib import Path

from generator.configuration import meanings
from generator.literals import table
from megafuser.checkpoint.manifest import FORMAT_VERSION, KINDS, Manifest
from megafuser.checkpoint.manifest_content import (
    Counts,
    DomainCounts,
    EarlierStage,
    Gate,
    Layout,
    OptimizerLayout,
    Origin,
    Reference,
    RunContent,
    SpecialistContent,
)
from megafuser.checkpoint.validation_record import ValidationRecord
from megafuser.config.run_directory import RunDirectory
from megafuser.specialist.card import ArchitectureCard

_PARTS = (
    (SpecialistContent, "`content` of a specialist"),
    (RunContent, "`content` of a run's checkpoint"),
    (Origin, "`source`, of a specialist and in `references`"),
    (Gate, "`gate`"),
    (Layout, "`layout`"),
    (OptimizerLayout, "`optimizer_layout`"),
    (Reference, "Each of `references`"),
    (Counts, "`counts`"),
    (DomainCounts, "Each domain in `counts`"),
    (EarlierStage, "`warmup` and each of `earlier_joint`"),
    (ValidationRecord, "`validation`"),
)


def page() -> str:
    """The page."""
    card = meanings(ArchitectureCard)
    return "\n".join(
        [
            "# Checkpoint format\n",
            "What is saved when, what loads where and what is kept: [checkpoints](../checkpoints.md). This page is "
            "made from the code whenever the site is built.\n",
            f"Format version {FORMAT_VERSION}. Kinds: {', '.join(f'`{kind}`' for kind in KINDS)}. Weights lie in "
            "`weights/`, in megatron-core's `torch_dist` format; `huggingface/` (a specialist) and `specialists/NAME/` "
            "(a joint checkpoint) have configurations and tokenizers.\n",
            "## `manifest.json`\n",
            "Written last ([manifest.py](../../megafuser/checkpoint/manifest.py)). What `content` holds is declared in "
            "[manifest_content.py](../../megafuser/checkpoint/manifest_content.py).\n",
            table(("field", "is"), list(meanings(Manifest).items())),
            *(text for kind, title in _PARTS for text in (f"### {title}\n", table(("field", "is"), _fields(kind)))),
            "## Architecture card\n",
            "All that is known of a specialist ([card.py](../../megafuser/specialist/card.py)).\n",
            table(("field", "is"), list(card.items())),
            "## A run's directory\n",
            table(("path", "is"), _run_directory()),
        ]
    )


def _fields(kind: type) -> list[tuple[str, str]]:
    found, fields = meanings(kind), typing.get_type_hints(kind)
    if wrong := fields.keys() ^ found.keys():
        raise LookupError(f"{kind.__name__}: {', '.join(sorted(wrong))} must be a field and have a line in Attributes")
    return list(found.items())


def _run_directory() -> list[tuple[str, ...]]:
    run = RunDirectory(Path("RUN_DIR"))
    found: list[tuple[str, ...]] = [
        (str(getattr(run, name)), inspect.getdoc(member) or "")
        for name, member in inspect.getmembers(RunDirectory, lambda member: isinstance(member, property))
    ]
    for member in (RunDirectory.stage, RunDirectory.latest_file, RunDirectory.best_file):
        found.append((str(member(run, "STAGE")), inspect.getdoc(member) or ""))
    found.append((str(run.step_directory("STAGE", 500)), inspect.getdoc(RunDirectory.step_directory) or ""))
    return found
