"""Reads rows of single tensors from a torch_dist checkpoint, whatever layout wrote it; no model, no process group.

A model is filled by `checkpoint.loading`.
"""

import io
import os
import pickle
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

import torch
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex

from megafuser.checkpoint.index import read_index, stored_tensors
from megafuser.errors import UserError, first_line

_Place = tuple[int, ...]


class StreamedReader:
    """The tensors of a checkpoint; a context manager.

    A chunk is loaded as a whole and kept until rows behind it are asked for, so reading a tensor from its first row to
    its last loads each chunk once. Memory is bounded by the chunks that lie beside one another at one row.

    Attributes:
        shapes: key → global shape, layers stacked in front.
        dtypes: key → dtype.
    """

    def __init__(self, directory: Path) -> None:
        """Reads the index.

        Raises:
            UserError: `directory` is not a checkpoint of this format, or its index is damaged or holds foreign code.
        """
        self.directory = directory
        index = read_index(directory)
        tensors = stored_tensors(index)
        self.shapes = {key: tuple(tensor.size) for key, tensor in tensors.items()}
        self.dtypes = {key: tensor.properties.dtype for key, tensor in tensors.items()}
        self._chunks = {key: tensor.chunks for key, tensor in tensors.items()}
        self._places = index.storage_data
        self._files: dict[str, io.FileIO] = {}
        self._open = ExitStack()
        self._current: tuple[str, int | None] | None = None
        self._loaded: dict[_Place, torch.Tensor] = {}

    def __enter__(self) -> "StreamedReader":
        """Nothing to do: files are opened when they are needed."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Closes the files."""
        self._open.close()

    def rows(self, key: str, layer: int | None, start: int, stop: int) -> torch.Tensor:
        """Reads rows [start, stop) of a tensor.

        Args:
            key: one of `shapes`.
            layer: which layer of a stack; None for a tensor outside the layers.
            start: first row.
            stop: the row behind the last.

        Returns:
            [stop - start, …] as stored; a part of a chunk, not a copy, where one chunk has all of it.

        Raises:
            UserError: the checkpoint does not have these rows, or a file is damaged.
        """
        if self._current != (key, layer):
            self._current, self._loaded = (key, layer), {}
        parts = list(self._parts(key, layer, start, stop))
        shape = (stop - start, *self.shapes[key][1 if layer is None else 2 :])
        if len(parts) == 1 and parts[0][1].shape == shape:
            return parts[0][1]
        whole = torch.empty(shape, dtype=self.dtypes[key])
        for place, part in parts:
            whole[place] = part
        if missing := whole.numel() - sum(part.numel() for _, part in parts):
            raise UserError(f"{self.directory}: {key} lacks {missing} of the elements asked for; make it again")
        return whole

    def _parts(
        self, key: str, layer: int | None, start: int, stop: int
    ) -> Iterator[tuple[tuple[slice, ...], torch.Tensor]]:
        """What each chunk has of the rows, and where it belongs among them; forgets the chunks that lie before."""
        for chunk in self._chunks[key]:
            offsets, sizes = tuple(chunk.offsets), tuple(chunk.sizes)
            if layer is not None:
                if not offsets[0] <= layer < offsets[0] + sizes[0]:
                    continue
                offsets, sizes = offsets[1:], sizes[1:]
            if offsets[0] + sizes[0] <= start:
                self._loaded.pop(tuple(chunk.offsets), None)
            first, last = max(start, offsets[0]), min(stop, offsets[0] + sizes[0])
            if first >= last:
                continue
            tensor = self._load(key, chunk)
            if layer is not None:
                tensor = tensor[layer - chunk.offsets[0]]
            columns = tuple(slice(at, at + size) for at, size in zip(offsets[1:], sizes[1:], strict=True))
            yield (slice(first - start, last - start), *columns), tensor[first - offsets[0] : last - offsets[0]]

    def _load(self, key: str, chunk: ChunkStorageMetadata) -> torch.Tensor:
        place = tuple(chunk.offsets)
        if place not in self._loaded:
            where = self._places[MetadataIndex(key, chunk.offsets)]
            try:
                file = self._file(where.relative_path)
                content = _Slice(file.fileno(), where.offset, where.length)
                tensor = torch.load(content, map_location="cpu", weights_only=True)  # type: ignore[arg-type]
                if not isinstance(tensor, torch.Tensor) or tensor.shape != chunk.sizes:
                    raise RuntimeError(f"{key} is not of the shape that the index says")
            except (OSError, RuntimeError, EOFError, ValueError, LookupError, pickle.UnpicklingError) as error:
                raise UserError(
                    f"{self.directory / where.relative_path} is damaged ({first_line(error)}); make the "
                    "checkpoint again"
                ) from None
            self._loaded[place] = tensor
        return self._loaded[place]

    def _file(self, name: str) -> io.FileIO:
        if name not in self._files:
            self._files[name] = self._open.enter_context(io.FileIO(self.directory / name))
        return self._files[name]


class _Slice(io.RawIOBase):
    """Some bytes of an open file, as a file of their own."""

    def __init__(self, descriptor: int, offset: int, length: int) -> None:
        super().__init__()
        self._descriptor, self._offset, self._length = descriptor, offset, length
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._length}[whence]
        self._position = max(0, start + offset)
        return self._position

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        room = memoryview(buffer).cast("B")[: max(0, self._length - self._position)]
        read = os.preadv(self._descriptor, [room], self._offset + self._position)
        self._position += read
        return read
