"""Reads a converted specialist: its card, and its weights into a model at any tensor and pipeline parallelism."""

from pathlib import Path
from typing import Any

import torch
from megatron.core.dist_checkpointing import ShardedObject, ShardedTensor
from megatron.core.dist_checkpointing.core import CheckpointingException

from megafuser.checkpoint.manifest import Manifest, read_manifest
from megafuser.checkpoint.torch_dist import load_weights, stored_shapes
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


def load_specialist_weights(model: torch.nn.Module, directory: str | Path) -> None:
    """Loads a specialist checkpoint into this rank's piece of a `GPTModel`; every rank calls it.

    Weights take the model's dtypes. Padded vocabulary rows, which the checkpoint does not have, become exactly zero.
    FP8 scaling states are not weights: the model keeps its fresh ones.

    Args:
        model: the piece, built from the checkpoint's card.
        directory: the specialist checkpoint, with `weights/` in it.

    Raises:
        UserError: the checkpoint is damaged, or its weights are not those of the model's architecture.
    """
    load_weights_into(model, Path(directory) / "weights")


def load_weights_into(model: torch.nn.Module, weights: Path) -> None:
    """`load_specialist_weights` for weights whose manifest is not written yet.

    Args:
        model: the piece.
        weights: the distributed checkpoint itself.

    Raises:
        UserError: as there.
    """
    described: dict[str, Any] = model.sharded_state_dict()  # type: ignore[operator]
    wanted = {name: value for name, value in described.items() if not isinstance(value, ShardedObject)}
    _refuse_cut_rows(wanted, weights)
    try:
        loaded = load_weights(wanted, weights)
    except CheckpointingException as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{weights} does not fit its architecture card ({reason}); convert it again") from error
    missing, unexpected = model.load_state_dict(loaded, strict=False)
    wrong = [*unexpected, *(name for name in missing if not name.endswith("_extra_state"))]
    if wrong:
        raise RuntimeError(f"sharded_state_dict and state_dict of the model disagree about {wrong}")


def _refuse_cut_rows(wanted: dict[str, Any], weights: Path) -> None:
    """megatron-core lets vocabularies differ in rows, and would silently drop those that the model has no room for."""
    stored = stored_shapes(weights)
    for value in wanted.values():
        if isinstance(value, ShardedTensor) and value.allow_shape_mismatch and value.key in stored:
            if value.global_shape[1:] != stored[value.key][1:]:
                raise UserError(
                    f"{weights}: {value.key} has shape {list(stored[value.key])}, no vocabulary of this model"
                )
            if value.global_shape[0] < stored[value.key][0]:
                raise UserError(
                    f"{weights}: {value.key} has {stored[value.key][0]} rows, but the model has room for "
                    f"{value.global_shape[0]}; convert the specialist again"
                )
