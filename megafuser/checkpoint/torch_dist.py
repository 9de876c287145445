"""megatron-core's torch_dist format: saved without helper processes, loaded without running foreign code.

This is the only module that touches `megatron.core.dist_checkpointing`'s strategies. Two things differ from its
defaults. A synchronous save writes from the calling process: megatron-core spawns a process for its result queue and
forks one per file, which takes seconds for a small model and waits for ever when a worker is killed. And what
megatron-core would unpickle is read as data first, see `megafuser.checkpoint.index`.
"""

import queue
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing import ShardedTensor
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.strategies import filesystem_async
from megatron.core.dist_checkpointing.strategies.async_utils import AsyncRequest
from megatron.core.dist_checkpointing.strategies.torch import TorchDistSaveShardedStrategy
from megatron.core.dist_checkpointing.validation import StrictHandling

from megafuser.checkpoint.index import read_index

_BYTES_PER_FILE = 4 << 30


def save_weights(sharded_state_dict: Mapping[str, Any], directory: Path) -> None:
    """Saves sharded tensors into an empty directory; every rank of the process group calls it.

    Args:
        sharded_state_dict: what `sharded_state_dict()` gives, or sharded tensors made by hand.
        directory: an existing, empty directory, the same on all ranks.

    Raises:
        OSError: the disk is full or fails; `directory` is then incomplete and has no `metadata.json`.
    """
    tensors = (value for value in nested_values(dict(sharded_state_dict)) if isinstance(value, ShardedTensor))
    size = sum(tensor.data.nbytes for tensor in tensors)
    strategy = _InProcessSave("torch_dist", 1, thread_count=1 + size // _BYTES_PER_FILE)
    # the slot in which megatron-core keeps its queue; filled, it starts no process to serve one
    previous, filesystem_async._results_queue = (filesystem_async._results_queue, queue.Queue())
    try:
        dist_checkpointing.save(dict(sharded_state_dict), str(directory), sharded_strategy=strategy)
    finally:
        filesystem_async._results_queue = previous


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


class _InProcessSave(TorchDistSaveShardedStrategy):
    """megatron-core's save with the files written one after the other by this process."""

    def _get_save_and_finalize_callbacks(self, writer: Any, save_state_dict_ret: Any) -> AsyncRequest:
        request = super()._get_save_and_finalize_callbacks(writer, save_state_dict_ret)
        if request.async_fn is None:
            return request
        return request._replace(async_fn=partial(_write_files, list(request.async_fn.args[0])))


def _write_files(transforms: list[Any], rank: int, buckets: list[Any], results: queue.Queue) -> None:
    """Stands in for `FileSystemWriterAsync.write_preloaded_data_multiproc`, with its arguments and its result."""
    written = {}
    for number, bucket in enumerate(buckets):
        outcome: queue.Queue = queue.Queue()
        running: queue.Queue = queue.Queue()
        running.put(number)
        filesystem_async.FileSystemWriterAsync.write_preloaded_data(
            transforms, number, bucket, outcome, running, use_fsync=True
        )
        _, written[number] = outcome.get_nowait()
        if isinstance(written[number], Exception):
            raise written[number]
    results.put(written)
