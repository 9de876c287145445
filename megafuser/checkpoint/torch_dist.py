"""megatron-core's torch_dist format: saved without helper processes, loaded without running foreign code.

This is the only module that touches `megatron.core.dist_checkpointing`'s strategies. Two things differ from its
defaults. A synchronous save writes from the calling process: megatron-core spawns a process for its result queue and
forks one per file, which takes seconds for a small model and waits for ever when a worker is killed. And `.metadata`,
a pickle, is read by an unpickler that knows nothing but the classes of the format, before megatron-core opens it, and
so are the objects that it lists.
"""

import io
import pickle
import queue
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing import ShardedTensor
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.strategies import filesystem_async
from megatron.core.dist_checkpointing.strategies.async_utils import AsyncRequest
from megatron.core.dist_checkpointing.strategies.torch import TorchDistSaveShardedStrategy
from megatron.core.dist_checkpointing.validation import StrictHandling
from torch.distributed.checkpoint.metadata import BytesStorageMetadata

from megafuser.errors import UserError

_BYTES_PER_FILE = 4 << 30
# What torch.distributed.checkpoint.metadata.Metadata is made of (torch 2.6 to 2.13); enums and dtypes are data.
_METADATA_GLOBALS = {
    "collections": {"OrderedDict"},
    "pathlib": {"PosixPath", "PurePosixPath"},
    "torch": {"Size", "device", "float32", "float64", "bfloat16", "float16", "int64", "int32", "uint8", "bool"},
    "torch.serialization": {"_get_layout"},
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.distributed.checkpoint.metadata": {
        "BytesStorageMetadata",
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    },
    "torch.distributed.checkpoint.planner": {
        "SavePlan",
        "TensorWriteData",
        "WriteItem",
        "WriteItemType",
        "BytesIOWriteData",
    },
}


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
    check_index(directory)
    strict = StrictHandling.RAISE_ALL if exact else StrictHandling.RAISE_UNEXPECTED
    return dist_checkpointing.load(
        dict(sharded_state_dict), str(directory), strict=strict, validate_access_integrity=exact
    )


def stored_shapes(directory: Path) -> dict[str, tuple[int, ...]]:
    """Key → global shape of every tensor in a checkpoint, layers stacked in front.

    Raises:
        UserError: as `load_weights`.
    """
    check_index(directory)
    tensors = dist_checkpointing.load_tensors_metadata(str(directory))
    return {key: tuple(tensor.global_shape) for key, tensor in tensors.items()}


def whole_tensor(key: str, tensor: torch.Tensor, layer: int | None = None, num_layers: int = 1) -> ShardedTensor:
    """A sharded tensor that this process holds entirely.

    The stack of layers is an ordinary axis here, since megatron-core's `prepend_axis_num` would ask for all layers at
    once; what is on disk is the same.

    Args:
        key: megatron-core's key; all layers share one.
        tensor: the data, or the room for it.
        layer: its place in the stack of layers; None for a tensor outside the layers.
        num_layers: layers in the stack.
    """
    if layer is None:
        return ShardedTensor.from_rank_offsets(key, tensor)
    return ShardedTensor.from_rank_offsets(key, tensor.unsqueeze(0), (0, layer, num_layers))


def check_index(directory: Path) -> None:
    """Refuses a checkpoint that would run code when it is opened: in its index, or in the objects between its tensors.

    Raises:
        UserError: says which file; the checkpoint must not be opened by other means either.
    """
    if not (directory / "metadata.json").is_file():
        raise UserError(f"{directory} is no complete distributed checkpoint (no metadata.json); make it again")
    path = directory / ".metadata"
    try:
        index = _MetadataUnpickler(io.BytesIO(path.read_bytes())).load()
        for place, where in index.storage_data.items():
            if isinstance(index.state_dict_metadata[place.fqn], BytesStorageMetadata):
                _check_object(directory / where.relative_path, where.offset, where.length)
    except FileNotFoundError as error:
        raise UserError(f"{error.filename} is missing; make the checkpoint again") from None
    except _ForeignGlobalError as error:
        raise UserError(f"{path} would run {error}, which no checkpoint needs; do not use this checkpoint") from None
    except (pickle.UnpicklingError, EOFError, ValueError, IndexError, KeyError, AttributeError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error}); make the checkpoint again") from None


def _check_object(path: Path, offset: int, length: int) -> None:
    """Reads an object as plain data; megatron-core's loader would run what it names."""
    with open(path, "rb") as file:
        file.seek(offset)
        content = file.read(length)
    try:
        torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError):
        raise UserError(
            f"{path} holds an object at byte {offset} that is damaged or would run code; do not use this checkpoint"
        ) from None


class _ForeignGlobalError(Exception):
    """A pickle names a class or function that is not of the format."""


class _MetadataUnpickler(pickle.Unpickler):
    """Reads `.metadata` and nothing else: a pickle runs what it names, so only harmless names are resolved."""

    def find_class(self, module: str, name: str) -> Any:
        """Resolves the format's classes only."""
        if name not in _METADATA_GLOBALS.get(module, ()):
            raise _ForeignGlobalError(f"{module}.{name}")
        return super().find_class(module, name)


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
