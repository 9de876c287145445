"""Reads what a converted specialist is, without its weights (see `megafuser.checkpoint.specialist_weights`)."""

from pathlib import Path

from megafuser.checkpoint.manifest import Manifest, read_manifest
from megafuser.errors import UserError
from megafuser.specialist.card import ArchitectureCard


def read_specialist(directory: str | Path) -> tuple[Manifest, ArchitectureCard]:
    """Reads what a specialist checkpoint is, without its weights.

    Raises:
        UserError: `directory` is no specialist checkpoint, or one of another version.
    """
    manifest = read_manifest(directory, "specialist")
    card = manifest.content.get("card")
    if not isinstance(card, dict):
        raise UserError(f"{directory}: the manifest has no architecture card; convert the specialist again")
    return manifest, ArchitectureCard.from_dict(card)
