"""Writes safetensors files row by row: their layout is known beforehand, so no tensor need be in memory as a whole.

Source of the format: https://huggingface.co/docs/safetensors (8 bytes of header length, a JSON header, the tensors);
of the files' names and of the index: transformers' `save_pretrained`.

Reading such files is `conversion.weight_files`.
"""

import json
import os
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import torch
from safetensors import SafetensorError, safe_open

from megafuser.checkpoint.early_flush import EarlyFlush

# Files of at most 5 GB, header included; Hugging Face counts in powers of ten. A larger tensor gets a file of its own.
SHARD_BYTES = 5 * 10**9 - 2**20
_ALIGNMENT = 8
# In the files' headers, beside the format that transformers asks for.
_WRITER = {"written_by": "megafuser"}
_NAMES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}


@dataclass(frozen=True)
class TensorShape:
    """A tensor to be written."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        """Bytes of its data."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize

    @property
    def row_bytes(self) -> int:
        """Bytes of a row."""
        return torch.Size(self.shape[1:]).numel() * self.dtype.itemsize


class SafetensorsWriter:
    """A model's weights as `model.safetensors`, or as numbered files with an index; a context manager.

    Rows may come in any order. Leaving the context without an error flushes the files to the disk.
    """

    def __init__(self, directory: Path, tensors: Mapping[str, TensorShape]) -> None:
        """Makes the files, at their full sizes.

        Args:
            directory: an existing directory without weights.
            tensors: key → shape and dtype of all there will be.
        """
        self._tensors = tensors
        self._places: dict[str, tuple[int, int]] = {}
        self._flushes: dict[int, EarlyFlush] = {}
        self._open = ExitStack()
        shards = _shards(tensors)
        names = ["model.safetensors"]
        if len(shards) > 1:
            names = [f"model-{i:05d}-of-{len(shards):05d}.safetensors" for i in range(1, len(shards) + 1)]
        for name, keys in zip(names, shards, strict=True):
            self._begin(directory / name, keys)
        if len(shards) > 1:
            total = sum(tensor.nbytes for tensor in tensors.values())
            places = {key: name for name, keys in zip(names, shards, strict=True) for key in keys}
            index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))}
            (directory / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", "utf-8")

    def __enter__(self) -> "SafetensorsWriter":
        """The files are open already."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Flushes and closes the files."""
        with self._open:
            if error is None:
                for flush in self._flushes.values():
                    flush.finish()

    def write_rows(self, key: str, start: int, rows: torch.Tensor) -> None:
        """Writes rows of a tensor.

        Args:
            key: the tensor.
            start: its row at which `rows` begin.
            rows: [rows, …], in the tensor's dtype.
        """
        tensor = self._tensors[key]
        if rows.dtype is not tensor.dtype or rows.shape[1:] != tensor.shape[1:]:
            raise ValueError(f"{key} has rows of {tensor.dtype} {list(tensor.shape[1:])}, not of {rows.dtype}")
        descriptor, offset = self._places[key]
        offset += start * tensor.row_bytes
        data = rows.contiguous().view(torch.uint8).numpy().data.cast("B")
        while len(data) > 0:
            written = os.pwrite(descriptor, data, offset)
            data, offset = data[written:], offset + written
            self._flushes[descriptor].wrote(written)

    def _begin(self, path: Path, keys: list[str]) -> None:
        header: dict[str, object] = {"__metadata__": {"format": "pt"} | _WRITER}
        end = 0
        for key in keys:
            tensor = self._tensors[key]
            start, end = end, end + tensor.nbytes
            header[key] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % _ALIGNMENT)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        self._open.callback(os.close, descriptor)
        self._flushes[descriptor] = EarlyFlush(descriptor)
        self._open.callback(self._flushes[descriptor].stop)
        os.pwrite(descriptor, len(text).to_bytes(8, "little") + text, 0)
        begin = 8 + len(text)
        os.ftruncate(descriptor, begin + end)
        for key in keys:
            start, _ = header[key]["data_offsets"]  # type: ignore[index]
            self._places[key] = (descriptor, begin + start)


def is_written_here(directory: Path) -> bool:
    """Whether the weights in a Hugging Face directory are such files: a model that this program has exported."""
    files = sorted(directory.glob("model*.safetensors"))
    try:
        with safe_open(files[0], framework="pt") as first:
            found = first.metadata() or {}
    except (IndexError, OSError, SafetensorError):
        return False
    return _WRITER.items() <= found.items()


def _shards(tensors: Mapping[str, TensorShape]) -> list[list[str]]:
    """Fills files in the tensors' order; within a file wider dtypes come first, so that all lie aligned."""
    shards: list[list[str]] = [[]]
    size = 0
    for key, tensor in tensors.items():
        if shards[-1] and size + tensor.nbytes > SHARD_BYTES:
            shards.append([])
            size = 0
        shards[-1].append(key)
        size += tensor.nbytes
    return [sorted(keys, key=lambda key: -tensors[key].dtype.itemsize) for keys in shards]
