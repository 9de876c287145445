"""Where a run's specialists come from: converted checkpoints, or a run's own checkpoint that holds or names them.

No weights are read here: `training.checkpoint_contents` loads them.
"""

import os
from dataclasses import dataclass
from pathlib import Path

from megafuser.checkpoint.manifest import Manifest, content_hash, read_manifest
from megafuser.checkpoint.manifest_content import Origin, Reference
from megafuser.config.run_directory import HUGGINGFACE, resolve_checkpoint
from megafuser.config.schema import RunConfig
from megafuser.errors import UserError, explained_paths
from megafuser.specialist.card import ArchitectureCard


@dataclass(frozen=True)
class SpecialistSource:
    """One specialist, before anything of it is loaded.

    Attributes:
        name: as the configuration names it.
        card: its architecture.
        huggingface: the directory with its tokenizer files.
        checkpoint: its converted checkpoint; gone, maybe, where a joint checkpoint holds the weights.
        content_hash: of its weights and card as converted.
        origin: what it was converted from.
    """

    name: str
    card: ArchitectureCard
    huggingface: Path
    checkpoint: Path
    content_hash: str
    origin: Origin

    def reference(self, beside: Path) -> Reference:
        """What a run's checkpoint records: where the specialist is, seen from `beside` too, and what it is."""
        absolute = self.checkpoint.resolve()
        return {
            "path": str(absolute),
            "relative_path": os.path.relpath(absolute, beside.resolve()),
            "content_hash": self.content_hash,
            "source": self.origin.copy(),
        }

    def tokenizer_files(self) -> dict[str, bytes]:
        """What `huggingface` holds, by relative path: a few megabytes that later checkpoints carry along."""
        files = (path for path in sorted(self.huggingface.rglob("*")) if path.is_file())
        return {path.relative_to(self.huggingface).as_posix(): path.read_bytes() for path in files}


def read_run_checkpoint(path: str) -> tuple[Path, Manifest]:
    """The checkpoint of a run that a path leads to: its directory and its manifest.

    Args:
        path: a step's, a stage's or a run's directory.

    Raises:
        UserError: there is none, or it is a specialist.
    """
    directory = resolve_checkpoint(path)
    manifest = read_manifest(directory)
    if manifest.kind == "specialist":
        raise UserError(f"{directory} is a specialist; give a checkpoint of a run")
    return directory, manifest


def sources_from_config(config: RunConfig) -> list[SpecialistSource]:
    """The converted checkpoints that the configuration names.

    Raises:
        UserError: a directory is not a converted specialist.
    """
    return [converted_source(specialist.name, Path(specialist.checkpoint)) for specialist in config.specialists]


def read_specialist(directory: str | Path) -> tuple[Manifest, ArchitectureCard]:
    """Reads what a specialist checkpoint is, without its weights.

    Raises:
        UserError: `directory` is not a specialist checkpoint, or one of another version.
    """
    manifest = read_manifest(directory, "specialist")
    card: object = manifest.specialist.get("card")  # an edited manifest may have another thing or none
    if not isinstance(card, dict):
        raise UserError(f"{directory}: the manifest has no architecture card; convert the specialist again")
    return manifest, ArchitectureCard.from_dict(card)


@explained_paths()
def converted_source(name: str, checkpoint: Path) -> SpecialistSource:
    """One converted checkpoint.

    Raises:
        UserError: the directory is not a converted specialist; says how to make it.
    """
    if not checkpoint.is_dir():
        raise UserError(
            f"specialist {name}: {checkpoint} is not a directory; make it with "
            f"tools/convert_hf_to_mcore.py --hf ORG/NAME --out {checkpoint}"
        )
    try:
        manifest, card = read_specialist(checkpoint)
    except UserError as error:
        raise UserError(f"specialist {name}: {error}") from None
    source = manifest.specialist["source"]
    return SpecialistSource(
        name=name,
        card=card,
        huggingface=checkpoint / HUGGINGFACE,
        checkpoint=checkpoint,
        content_hash=content_hash(manifest),
        origin={"name": source["name"], "repository": source["repository"], "revision": source["revision"]},
    )


def sources_from_checkpoint(directory: Path, manifest: Manifest) -> list[SpecialistSource]:
    """The specialists of a run's checkpoint: a joint one holds them, a warm-up one names them.

    Raises:
        UserError: a named specialist is gone or is another one by now.
    """
    if manifest.kind == "joint":
        return [
            SpecialistSource(
                name=name,
                card=ArchitectureCard.from_dict(values),
                huggingface=directory / "specialists" / name,
                checkpoint=Path(manifest.run["references"][name]["path"]),
                content_hash=manifest.run["references"][name]["content_hash"],
                origin=manifest.run["references"][name]["source"],
            )
            for name, values in manifest.run["cards"].items()
        ]
    return [_referenced(name, reference, directory) for name, reference in manifest.run["references"].items()]


def check_references(sources: list[SpecialistSource], manifest: Manifest, directory: Path) -> None:
    """Refuses a checkpoint that was made with other specialists.

    Raises:
        UserError: names the specialist that differs.
    """
    references = manifest.run["references"]
    names = [source.name for source in sources]
    if names != list(references):
        raise UserError(
            f"{directory} is a checkpoint of the specialists {', '.join(references)}, but the configuration has "
            f"{', '.join(names)}; use the run's own configuration, or another run_dir"
        )
    for source in sources:
        if source.content_hash != references[source.name]["content_hash"]:
            raise UserError(
                f"{directory} was made with another specialist {source.name} (content "
                f"{references[source.name]['content_hash']}, now {source.content_hash}); use another run_dir"
            )


def _referenced(name: str, reference: Reference, directory: Path) -> SpecialistSource:
    """Looks beside the checkpoint first: a run may have been moved together with its specialists."""
    candidates = [Path(os.path.normpath(directory.resolve() / reference["relative_path"])), Path(reference["path"])]
    others, unreadable = [], []
    for path in (path for path in candidates if path.is_dir()):
        try:
            if content_hash(read_manifest(path, "specialist")) == reference["content_hash"]:
                return converted_source(name, path)
            others.append(path)
        except UserError as error:  # no specialist at all; the next place may have it
            unreadable.append(error)
    if others:
        raise UserError(
            f"{directory}: {others[0]} is no longer the specialist {name} that the gate was trained on; put that one "
            "back"
        )
    if unreadable:
        raise unreadable[0]
    raise UserError(f"{directory}: specialist {name} is not at {reference['path']}; put it back or convert it again")
