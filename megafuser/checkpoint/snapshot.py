"""A sharded state as it is at one moment, to be written in megatron-core's torch_dist format by any thread.

Taking the snapshot needs all ranks (they agree on who writes what) and, where asked for, copies to host memory; writing
needs no other rank and no collective, so it can go on in a thread beside training. Megatron-core's own saving spawns a
process for its result queue and forks one per file, which takes seconds for a small model and waits for ever when a
worker is killed; where it is asynchronous, it aliases tensors that are in host memory already, so that later updates
would reach the file.

When it counts as saved is decided in `checkpoint.background`.
"""

import io
import threading
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.dist_checkpointing.core import CheckpointingConfig, save_config
from megatron.core.dist_checkpointing.state_dict_utils import save_preprocess
from megatron.core.dist_checkpointing.strategies.common import COMMON_STATE_FNAME
from megatron.core.dist_checkpointing.strategies.filesystem_async import _split_by_size_and_type
from megatron.core.dist_checkpointing.strategies.torch import (
    MCoreSavePlanner,
    _replace_state_dict_keys_with_sharded_keys,
    mcore_to_pyt_state_dict,
)
from torch.distributed.checkpoint.filesystem import (
    FileSystemWriter,
    SerializationFormat,
    _StorageWriterTransforms,
    _write_item,
)
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import SavePlan, WriteItem
from torch.distributed.checkpoint.storage import WriteResult

from megafuser.checkpoint.hashed_file import BYTES_PER_FILE, HashedFile
from megafuser.checkpoint.manifest import hash_file

Item = tuple[WriteItem, "torch.Tensor | io.BytesIO"]


class WritingStoppedError(Exception):
    """Somebody asked for the writing to stop; what is there is incomplete."""


@dataclass(frozen=True)
class Written:
    """What one rank has written, and flushed to the disk.

    Attributes:
        results: where each part of each tensor is.
        hashes: file name → XXH3 hash of what went into it.
        nbytes: in all its files.
    """

    results: list[WriteResult]
    hashes: dict[str, str]
    nbytes: int


class Snapshot:
    """One rank's part of a state; made by `take_snapshot`."""

    def __init__(self, files: Mapping[str, list[Item]], common: bytes | None, index: Metadata | None) -> None:
        """Takes what is to be written.

        Args:
            files: name → what goes into it, in order.
            common: on rank 0 the content of `common.pt`.
            index: on rank 0 the index, without the places of the parts.
        """
        self._files = dict(files)
        self._common = common
        self._index = index

    def write(self, directory: Path, stop: threading.Event | None = None) -> Written:
        """Writes this rank's files; needs no other rank.

        Args:
            directory: an existing directory, the same on all ranks; the files of all ranks have different names.
            stop: once set, the writing ends at the next tensor.

        Raises:
            OSError: the disk is full or fails.
            WritingStoppedError: `stop` was set.
        """
        results: list[WriteResult] = []
        hashes: dict[str, str] = {}
        nbytes = 0
        if self._common is not None:
            with HashedFile(directory / COMMON_STATE_FNAME) as file:
                file.write(self._common)
            hashes[COMMON_STATE_FNAME] = file.hash
        for name in list(self._files):
            with HashedFile(directory / name) as file:
                for item, data in self._files[name]:
                    if stop is not None and stop.is_set():
                        raise WritingStoppedError
                    results.append(_write_one(file, item, data, name))
            hashes[name] = file.hash
            nbytes += file.tell()
            del self._files[name]  # gives its memory back
        return Written(results, hashes, nbytes)

    def complete(self, directory: Path, written: Sequence[Written]) -> dict[str, str]:
        """Writes the index; rank 0 calls it when every rank has written.

        Args:
            directory: as for `write`.
            written: of all ranks, in their order.

        Returns:
            File name → hash of every file that any rank wrote.

        Raises:
            OSError: the disk is full or fails.
        """
        assert self._index is not None, "the index is rank 0's"
        FileSystemWriter(directory).finish(self._index, [part.results for part in written])
        save_config(CheckpointingConfig("torch_dist", 1), str(directory))
        hashes = {name: value for part in written for name, value in part.hashes.items()}
        return hashes | {path.name: hash_file(path) for path in directory.iterdir() if path.name not in hashes}


def take_snapshot(
    sharded_state_dict: Mapping[str, Any], *, copy: bool, private: Collection[int] = frozenset()
) -> Snapshot:
    """Plans what every rank writes, and holds on to this rank's part; every rank of the process group calls it.

    Args:
        sharded_state_dict: what `sharded_state_dict()` gives, or sharded tensors made by hand.
        copy: copy tensors to host memory, so that they may change while they are written. Without it they must stay
            as they are until `write` has returned.
        private: addresses of storages in host memory that nobody else holds; they need no copy.
    """
    sharded, common = save_preprocess(dict(sharded_state_dict))
    grouped, _, _ = _replace_state_dict_keys_with_sharded_keys(sharded, keep_only_main_replica=True)
    planner = MCoreSavePlanner(dedup_replicated_tensors=False, flatten_state_dict=False)
    is_first = dist.get_rank() == 0
    planner.set_up_planner(mcore_to_pyt_state_dict(grouped, False), is_coordinator=is_first)
    plan = planner.create_local_plan()
    plans: list[SavePlan | None] | None = [None] * dist.get_world_size() if is_first else None
    dist.gather_object(plan, plans, dst=0)
    index = planner.create_global_plan(plans)[1] if is_first else None
    planner.finish_plan(plan)

    def hold(item: WriteItem) -> Item:
        data = planner.resolve_data(item)
        if isinstance(data, torch.Tensor):
            data = data.detach()
            if copy and not (data.device.type == "cpu" and data.untyped_storage().data_ptr() in private):
                data = data.to("cpu", copy=True, memory_format=torch.contiguous_format)
        return item, data

    size = sum(part.nbytes for part in map(planner.resolve_data, plan.items) if isinstance(part, torch.Tensor))
    parts = _split_by_size_and_type(1 + size // BYTES_PER_FILE, plan.items)
    files = {
        f"__{dist.get_rank()}_{number}.distcp": [hold(item) for item in part]
        for number, part in enumerate(filter(None, parts))
    }
    content = io.BytesIO()
    if is_first:
        torch.save(common, content)
    return Snapshot(files, content.getvalue() if is_first else None, index)


def _write_one(file: HashedFile, item: WriteItem, data: torch.Tensor | io.BytesIO, name: str) -> WriteResult:
    """Writes a part as PyTorch's own writer does."""
    if isinstance(data, torch.Tensor):
        data = data.cpu()
        if data.untyped_storage().nbytes() != data.nbytes:
            data = data.clone()  # torch.save would write all that the storage holds
    try:
        return _write_item(_StorageWriterTransforms(), file, data, item, name, SerializationFormat.TORCH_SAVE)
    except RuntimeError:
        if file.error is not None:  # PyTorch's writer covers it with an error of its own
            raise file.error from None
        raise
