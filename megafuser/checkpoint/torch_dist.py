"""megatron-core's torch_dist format: saved without helper processes, loaded without running foreign code.

Saving, which `megafuser.checkpoint.snapshot` does, writes from the calling process: megatron-core spawns a process for
its result queue and forks one per file, which takes seconds for a small model and waits for ever when a worker is
killed. And what megatron-core would unpickle is read as data first, see `megafuser.checkpoint.index`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.validation import StrictHandling

from megafuser.checkpoint.index import read_index


def load_weights(sharded_state_dict: Mapping[str, Any], directory: Path, *, exact: bool = True) -> dict[str, Any]:
    """Fills sharded tensors from a checkpoint, at any layout; every rank of the process group calls it.

    Args:
        sharded_state_dict: which parts of which tensors this rank wants.
        directory: where all ranks saved them, see `megafuser.checkpoint.snapshot`.
        exact: the keys of all ranks together must be the checkpoint's keys, no more and no fewer.

    Returns:
        The state dict with plain tensors.

    Raises:
        UserError: the directory is no checkpoint of this format, or its index is damaged or holds foreign code.
    """
    read_index(directory)
    strict = StrictHandling.RAISE_ALL if exact else StrictHandling.RAISE_UNEXPECTED
    loaded: dict[str, Any] = dist_checkpointing.load(
        dict(sharded_state_dict), str(directory), strict=strict, validate_access_integrity=exact
    )
    return loaded
