"""Where a specialist's weights are, whatever checkpoint was named; and whether they are still as they were written."""

from pathlib import Path

from megafuser.checkpoint.manifest import Manifest, first_damage, read_manifest
from megafuser.checkpoint.sources import read_specialist, sources_from_checkpoint
from megafuser.conversion.mcore_to_hf import StoredSpecialist
from megafuser.conversion.tensor_accounting import head_sources
from megafuser.errors import UserError


def find_specialist(directory: Path, manifest: Manifest, name: str | None) -> StoredSpecialist:
    """Where the weights of a specialist are: in the checkpoint itself, or in the one that it refers to.

    Args:
        directory: the checkpoint.
        manifest: its manifest.
        name: the specialist; None only for a converted specialist, which is one.

    Raises:
        UserError: there is no such specialist, or the converted checkpoint is gone.
    """
    if manifest.kind == "specialist":
        if name is not None:
            raise UserError(f"{directory} is one specialist, not a run's checkpoint; leave --specialist {name} out")
        _, card = read_specialist(directory)
        tied_head = manifest.content.get("tied_head")
        if tied_head not in (None, *head_sources(card)):
            raise UserError(f"{directory}: the manifest's tied_head {tied_head!r} is damaged; convert it again")
        return StoredSpecialist(
            directory / "weights",
            card,
            directory / "huggingface",
            tied_head=tied_head,
            as_imported=manifest.content.get("rounded_to") is None,
        )
    sources = {source.name: source for source in sources_from_checkpoint(directory, manifest)}
    if name not in sources:
        raise UserError(f"--specialist {name}: {directory} has the specialists {', '.join(sources)}; give one of them")
    source = sources[name]
    if manifest.kind == "warmup":  # its specialists are frozen: they are the converted ones
        return find_specialist(source.checkpoint, read_manifest(source.checkpoint, "specialist"), None)
    return StoredSpecialist(directory / "weights", source.card, source.huggingface, prefix=f"specialists.{name}.")


def refuse_damaged_files(directory: Path) -> None:
    """Reads every byte of a checkpoint and compares it with the manifest's hashes.

    Raises:
        UserError: names the first file that is damaged or missing; a file too many does no harm.
    """
    if damage := first_damage(directory):
        raise UserError(f"damaged checkpoint {damage}; use another one or make it again")
