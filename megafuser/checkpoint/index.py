"""The index of a torch_dist checkpoint, read as data: which tensors there are, in which files, at which bytes.

`.metadata` is a pickle, and a pickle runs what it names. It is read here by an unpickler that knows nothing but the
classes of the format, and so are the objects that it lists, before anything else opens the checkpoint. The tensors
themselves are read by `checkpoint.loading` and `checkpoint.stream_reader`.
"""

import io
import pickle
import struct
from collections.abc import Iterable
from pathlib import Path, PurePath
from typing import Any

import torch
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, Metadata, MetadataIndex, TensorStorageMetadata

from megafuser.errors import UserError

CONFIG_NAME = "metadata.json"
INDEX_NAME = ".metadata"
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

# What unpickling raises where bytes have changed: sizes and types make no sense then.
_DAMAGES = (
    pickle.UnpicklingError,
    EOFError,
    ValueError,
    LookupError,
    AttributeError,
    TypeError,
    ArithmeticError,
    RuntimeError,
    MemoryError,
)
# And what torch's reader of plain data raises besides.
_OBJECT_DAMAGES = (*_DAMAGES, AssertionError, struct.error)


def read_index(directory: Path) -> Metadata:
    """Reads the index, and refuses a checkpoint that would run code when it is opened: in its index, or in the objects
    between its tensors.

    Raises:
        UserError: says which file; the checkpoint must not be opened by other means either.
    """
    if not (directory / CONFIG_NAME).is_file():
        raise UserError(f"{directory} is not a complete distributed checkpoint (no {CONFIG_NAME}); make it again")
    path = directory / INDEX_NAME
    try:
        index = _MetadataUnpickler(io.BytesIO(path.read_bytes())).load()
        _check_form(index)
        for place, where in index.storage_data.items():
            if isinstance(index.state_dict_metadata[place.fqn], BytesStorageMetadata):
                _check_object(directory / where.relative_path, where.offset, where.length)
        metadata: Metadata = index
        return metadata
    except FileNotFoundError as error:
        raise UserError(f"{error.filename} is missing; make the checkpoint again") from None
    except _ForeignGlobalError as error:
        raise UserError(f"{path} would run {error}, which no checkpoint needs; do not use this checkpoint") from None
    except _DAMAGES as error:
        raise UserError(f"{path} is damaged ({error}); make the checkpoint again") from None


def stored_tensors(index: Metadata) -> dict[str, TensorStorageMetadata]:
    """Key → global shape, dtype and chunks of every tensor, layers stacked in front."""
    return {key: entry for key, entry in index.state_dict_metadata.items() if isinstance(entry, TensorStorageMetadata)}


def stored_shapes(directory: Path) -> dict[str, tuple[int, ...]]:
    """Key → global shape of every tensor in a checkpoint.

    Raises:
        UserError: as `read_index`.
    """
    return {key: tuple(entry.size) for key, entry in stored_tensors(read_index(directory)).items()}


def _check_form(index: Metadata) -> None:
    """Checks what readers take on trust: every chunk lies inside its tensor, and in a file of this directory.

    Raises:
        ValueError: says what does not.
    """
    for place, where in index.storage_data.items():
        name = where.relative_path
        if not isinstance(name, str) or name in ("", "..") or PurePath(name).name != name:
            raise ValueError(f"{place.fqn} is in {name!r}, which is not in this directory")
        if not (_are_counts((where.offset, where.length)) and place.fqn in index.state_dict_metadata):
            raise ValueError(f"{place.fqn} is at no place in {name}")
    for key, tensor in stored_tensors(index).items():
        if not _are_counts(tensor.size) or not isinstance(tensor.properties.dtype, torch.dtype):
            raise ValueError(f"{key} has no shape or no dtype")
        for chunk in tensor.chunks:
            bounds = zip(chunk.offsets, chunk.sizes, tensor.size, strict=True)
            if not (_are_counts(chunk.offsets) and _are_counts(chunk.sizes)):
                raise ValueError(f"{key} has a part of no shape")
            if any(start + length > size for start, length, size in bounds):
                raise ValueError(f"{key} has a part that is outside of it")
            if MetadataIndex(key, chunk.offsets) not in index.storage_data:
                raise ValueError(f"{key} has a part that is in no file")


def _are_counts(values: Iterable[object]) -> bool:
    return all(isinstance(value, int) and value >= 0 for value in values)


def _check_object(path: Path, offset: int, length: int) -> None:
    """Reads an object as plain data; megatron-core's loader would run what it names."""
    with open(path, "rb") as file:
        file.seek(offset)
        content = file.read(length)
    try:
        torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except _OBJECT_DAMAGES:
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
