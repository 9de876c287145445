"""Loads what a torch_dist checkpoint holds, at any tensor and pipeline parallelism: tensors, or a specialist's weights.

What megatron-core would unpickle is read as data first, see `megafuser.checkpoint.index`, so that no foreign code runs.
It takes a process group; `checkpoint.stream_reader` does without.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing import ShardedObject, ShardedTensor
from megatron.core.dist_checkpointing.core import CheckpointingException
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedTensorFactory
from megatron.core.dist_checkpointing.validation import StrictHandling

from megafuser.checkpoint.index import read_index, stored_shapes
from megafuser.config.run_directory import WEIGHTS
from megafuser.errors import UserError, in_one_line
from megafuser.runtime.distributed import all_or_none


def load_weights(sharded_state_dict: Mapping[str, Any], directory: Path, *, exact: bool = True) -> dict[str, Any]:
    """Fills sharded tensors from a checkpoint, at any layout; every rank of the process group calls it.

    Args:
        sharded_state_dict: which parts of which tensors this rank wants.
        directory: where all ranks saved them, see `megafuser.checkpoint.snapshot`.
        exact: the keys of all ranks together must be the checkpoint's keys, no more and no fewer.

    Returns:
        The state dict with plain tensors.

    Raises:
        UserError: the directory is not a checkpoint of this format, or its index is damaged or holds foreign code; on
            every rank, also where it is so for one alone.
    """
    all_or_none(lambda: read_index(directory))
    return _load(sharded_state_dict, directory, exact)


def load_specialist_weights(model: torch.nn.Module | Sequence[torch.nn.Module], directory: str | Path) -> None:
    """Loads a specialist checkpoint into this rank's piece of a `GPTModel`, or pieces; every rank calls it.

    Weights take the model's dtypes. Padded vocabulary rows, which the checkpoint does not have, become exactly zero.
    FP8 scaling states are not weights: the model keeps its fresh ones.

    Args:
        model: the piece, built from the checkpoint's card; several where pipeline schedules interleave.
        directory: the specialist checkpoint, with `weights/` in it.

    Raises:
        UserError: the checkpoint is damaged, or its weights are not those of the model's architecture; on every rank.
    """
    load_weights_into(model, Path(directory) / WEIGHTS)


def load_weights_into(model: torch.nn.Module | Sequence[torch.nn.Module], weights: Path, prefix: str = "") -> None:
    """`load_specialist_weights` for weights that have no manifest of their own.

    Args:
        model: as there.
        weights: the distributed checkpoint itself.
        prefix: of the specialist's keys where the checkpoint holds others too.

    Raises:
        UserError: as there.
    """
    pieces = [model] if isinstance(model, torch.nn.Module) else model
    wanted: dict[str, dict[str, Any]] = {}
    for index, piece in enumerate(pieces):
        described: dict[str, Any] = piece.sharded_state_dict(prefix)  # type: ignore[operator]
        wanted[f"piece_{index}"] = {
            name: value for name, value in described.items() if not isinstance(value, ShardedObject)
        }
    all_or_none(lambda: _refuse_other_shapes(wanted, weights))
    try:
        loaded = _load(wanted, weights, exact=not prefix)
    except CheckpointingException as error:
        raise UserError(
            f"{weights} does not fit its architecture card ({in_one_line(error)}); convert it again"
        ) from error
    for piece, tensors in zip(pieces, (loaded[key] for key in wanted), strict=True):
        own = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
        missing, unexpected = piece.load_state_dict(own, strict=False)
        wrong = [*unexpected, *(name for name in missing if not name.endswith("_extra_state"))]
        if wrong:
            raise RuntimeError(f"sharded_state_dict and state_dict of the model disagree about {wrong}")


def _load(wanted: Mapping[str, Any], directory: Path, exact: bool) -> dict[str, Any]:
    """`load_weights` of a checkpoint whose index has been looked at."""
    strict = StrictHandling.RAISE_ALL if exact else StrictHandling.RAISE_UNEXPECTED
    loaded: dict[str, Any] = dist_checkpointing.load(
        dict(wanted), str(directory), strict=strict, validate_access_integrity=exact
    )
    return loaded


def _refuse_other_shapes(pieces: Mapping[str, dict[str, Any]], weights: Path) -> None:
    """Compares whole shapes, vocabularies by their room: megatron-core would silently drop rows that have none."""
    stored = stored_shapes(weights)
    for tensor in (tensor for wanted in pieces.values() for tensor in _sharded_tensors(wanted)):
        shape = stored.get(tensor.key)
        if shape is None:
            raise UserError(f"{weights} lacks {tensor.key}, which its architecture card implies; convert it again")
        room = tuple(tensor.global_shape)
        if tensor.allow_shape_mismatch and room[1:] == shape[1:] and room[0] >= shape[0]:
            continue
        if room != shape:
            raise UserError(
                f"{weights}: {tensor.key} has shape {list(shape)}, but the model has room for {list(room)}; convert "
                "the specialist again"
            )


def _sharded_tensors(wanted: dict[str, Any]) -> Iterator[ShardedTensor]:
    for value in wanted.values():
        yield from nested_values(value.build()) if isinstance(value, ShardedTensorFactory) else (value,)
