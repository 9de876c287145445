"""Sharded tensors saved by all ranks together, as a checkpoint of a run saves them in the background."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch.distributed as dist

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
