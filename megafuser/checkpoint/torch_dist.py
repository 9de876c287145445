"""megatron-core's torch_dist format: saved without helper processes, loaded without running foreign code.

A save writes from the calling process, see `megafuser.checkpoint.snapshot`: megatron-core spawns a process for its
result queue and forks one per file, which takes seconds for a small model and waits for ever when a worker is killed.
And what megatron-core would unpickle is read as data first, see `megafuser.checkpoint.index`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch.distributed as dist
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.validation import StrictHandling

from megafuser.checkpoint.index import read_index
from megafuser.checkpoint.snapshot import Written, take_snapshot


def save_weights(sharded_state_dict: Mapping[str, Any], directory: Path) -> None:
    """Saves sharded tensors into an empty directory; every rank of the process group calls it.

    Args:
        sharded_state_dict: what `sharded_state_dict()` gives, or sharded tensors made by hand.
        directory: an existing, empty directory, the same on all ranks.

    Raises:
        OSError: the disk is full or fails, on any rank; `directory` is then incomplete and has no `metadata.json`.
    """
    snapshot = take_snapshot(sharded_state_dict, copy=False)
    own: Written | OSError
    try:
        own = snapshot.write(directory)
    except OSError as error:
        own = error
    parts: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(parts, own)
    failed = next((part for part in parts if isinstance(part, OSError)), None)
    if failed is not None:
        raise failed
    if dist.get_rank() == 0:
        snapshot.complete(directory, parts)
    dist.barrier()


def load_weights(sharded_state_dict: Mapping[str, Any], directory: Path, *, exact: bool = True) -> dict[str, Any]:
    """Fills sharded tensors from a checkpoint, at any layout; every rank of the process group calls it.

    Args:
        sharded_state_dict: which parts of which tensors this rank wants.
        directory: the directory that `save_weights` filled.
        exact: the keys of all ranks together must be the checkpoint's keys, no more and no fewer.

    Returns:
        The state dict with plain tensors.

    Raises:
        UserError: the directory is no checkpoint of this format, or its index is damaged or holds foreign code.
    """
    read_index(directory)
    strict = StrictHandling.RAISE_ALL if exact else StrictHandling.RAISE_UNEXPECTED
    return dist_checkpointing.load(
        dict(sharded_state_dict), str(directory), strict=strict, validate_access_integrity=exact
    )
