"""The reference of the checkpoint format: versions, manifests, architecture cards, and a run's files."""

import inspect
from pathlib import Path

from generator.configuration import meanings
from generator.literals import described, table, written_keys
from megafuser.checkpoint.manifest import FORMAT_VERSION, KINDS, Manifest
from megafuser.config.run_directory import RunDirectory
from megafuser.specialist.card import ArchitectureCard

_SPECIALIST = {
    "card": "the architecture card, below",
    "source": "where the weights came from, with:",
    "name": "the repository's name, or the directory's",
    "repository": "ORG/NAME on the hub; null for a directory",
    "revision": "its commit",
    "content": "a hash over all tensors",
    "tied_head": "whether the output head is the embedding",
    "rounded_to": "dtype of `--dtype`; null for `keep`",
}
_RUN = {
    "stage": "`warmup` or `joint`",
    "step": "optimizer steps done: also the position in the data, which follows from the seed alone",
    "cards": "architecture card of each specialist",
    "gate": "the gate, with:",
    "shared_vocabulary": "ids below it are scored and generated",
    "end_id": "the id that ends a response",
    "layout": "parallel sizes at the time of saving, with:",
    "data": "key of each domain's samples",
    "versions": "Python and the libraries",
    "references": "each specialist's converted checkpoint: path and content hash",
    "hidden_size": "units of the gate",
    "temperature": "what its scores are divided by",
    "tensor": "tensor-parallel size",
    "pipeline": "pipeline stages",
}
_HISTORY = {"counts": "samples and tokens seen, in all and by domain", "skipped_steps": "where there were any"}


def page() -> str:
    """The page."""
    importing = [
        key for key in written_keys("megafuser/conversion/hf_to_mcore.py", "import_specialist") if key in _SPECIALIST
    ]
    saving = written_keys("megafuser/training/checkpoint_contents.py", "describe")
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
            "Written last ([manifest.py](../../megafuser/checkpoint/manifest.py)).\n",
            table(("field", "is"), list(meanings(Manifest).items())),
            "### `content` of a specialist\n",
            table(("field", "is"), list(described(importing, _SPECIALIST, "a specialist's manifest"))),
            "### `content` of a run's checkpoint\n",
            table(("field", "is"), [*_described_run(saving), *_HISTORY.items()]),
            "## Architecture card\n",
            "All that is known of a specialist ([card.py](../../megafuser/specialist/card.py)).\n",
            table(("field", "is"), list(card.items())),
            "## A run's directory\n",
            table(("path", "is"), _run_directory()),
        ]
    )


def _described_run(saving: list[str]) -> list[tuple[str, str]]:
    known = [key for key in saving if "{…}" not in key]
    if "data" not in known:
        raise LookupError("a run's manifest is described elsewhere now; tell docs/generator/checkpoint_format.py where")
    return described(known, _RUN, "a run's manifest")


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
