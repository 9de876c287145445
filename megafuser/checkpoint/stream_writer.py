"""Writes a torch_dist checkpoint block by block, from one process, without a model and without a process group.

The format is that of `torch.distributed.checkpoint`, as megatron-core writes it: `.distcp` files of `torch.save`d
chunks, `.metadata` that says where each chunk lies, and megatron-core's `metadata.json` and `common.pt`. A tensor's
chunks are blocks of its rows; a loader takes what it needs of them at any tensor and pipeline parallelism.
"""

import io
import json
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
import xxhash
from torch.distributed.checkpoint.filesystem import FileSystemWriter, _StorageInfo
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.storage import WriteResult

from megafuser.checkpoint.early_flush import EarlyFlush
from megafuser.checkpoint.index import CONFIG_NAME
from megafuser.checkpoint.row_blocks import BLOCK_BYTES, row_blocks

_BYTES_PER_FILE = 4 << 30
_BYTES_PER_CALL = 8 << 20

Fill = Callable[[int, int, torch.Tensor], None]
"""Puts the rows [start, stop) of a tensor into a room of their shape."""


@dataclass(frozen=True)
class StreamedTensor:
    """A tensor to be written, made a block of rows at a time.

    Attributes:
        key: megatron-core's key; all layers share one.
        layer: its place in the stack of layers; None for a tensor outside the layers.
        num_layers: layers in the stack.
        shape: of the one layer.
        dtype: as stored.
        fill: makes its rows.
    """

    key: str
    layer: int | None
    num_layers: int
    shape: tuple[int, ...]
    dtype: torch.dtype
    fill: Fill


@dataclass(frozen=True)
class _Block:
    tensor: StreamedTensor
    start: int
    stop: int

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.stop - self.start, *self.tensor.shape[1:])

    @property
    def offsets(self) -> tuple[int, ...]:
        rows = (self.start, *(0 for _ in self.tensor.shape[1:]))
        return rows if self.tensor.layer is None else (self.tensor.layer, *rows)

    @property
    def sizes(self) -> tuple[int, ...]:
        return self.shape if self.tensor.layer is None else (1, *self.shape)


@dataclass
class _Contents:
    """What has been written: the future index."""

    tensors: dict[str, TensorStorageMetadata] = field(default_factory=dict)
    places: list[WriteResult] = field(default_factory=list)

    def add(self, block: _Block, file: str, offset: int, length: int) -> None:
        tensor = block.tensor
        if tensor.key not in self.tensors:
            size = tensor.shape if tensor.layer is None else (tensor.num_layers, *tensor.shape)
            self.tensors[tensor.key] = TensorStorageMetadata(TensorProperties(dtype=tensor.dtype), torch.Size(size), [])
        chunks = self.tensors[tensor.key].chunks
        index = MetadataIndex(tensor.key, block.offsets, len(chunks))
        chunks.append(ChunkStorageMetadata(torch.Size(block.offsets), torch.Size(block.sizes)))
        self.places.append(WriteResult(index, length, _StorageInfo(file, offset, length)))


def write_streamed(
    directory: Path, tensors: Iterable[StreamedTensor], progress: Callable[[int], None] = lambda done: None
) -> dict[str, str]:
    """Writes tensors into an empty directory, in the order they are given; two blocks are in memory at a time.

    Args:
        directory: an existing, empty directory.
        tensors: all layers of a key, or the one tensor that has it.
        progress: told the bytes written so far.

    Returns:
        File name → XXH3 hash (see `megafuser.checkpoint.manifest`) of the files with the tensors, computed on the way.

    Raises:
        OSError: the disk is full or fails; `directory` is then incomplete and has no `metadata.json`.
    """
    contents = _Contents()
    hashes: dict[str, str] = {}
    done = 0
    blocks = (_Block(tensor, *rows) for tensor in tensors for rows in row_blocks(tensor.shape, tensor.dtype))
    with _without_crc(), ExitStack() as stack:
        file: _HashedFile | None = None
        for block, room in _filled(blocks):
            if file is None or file.tell() >= _BYTES_PER_FILE:
                if file is not None:
                    file.finish(hashes)
                file = stack.enter_context(_HashedFile(directory / f"__0_{len(hashes)}.distcp"))
            offset = file.tell()
            _save(room.unsqueeze(0) if block.tensor.layer is not None else room, file)
            contents.add(block, file.path.name, offset, file.tell() - offset)
            done += room.nbytes
            progress(done)
        if file is not None:
            file.finish(hashes)
    _write_index(directory, contents)
    return hashes


def _save(tensor: torch.Tensor, file: "_HashedFile") -> None:
    try:
        torch.save(tensor, file)  # type: ignore[arg-type]
    except RuntimeError as error:
        # an interrupt or a full disk ends the archive in the middle, and torch's complaint about that hides the reason
        if (reason := error.__context__) is None:
            raise
        raise reason from None


def _filled(blocks: Iterator[_Block]) -> Iterator[tuple[_Block, torch.Tensor]]:
    """Fills the next block while the one before is used; the two rooms take turns."""
    rooms = [torch.UntypedStorage(0), torch.UntypedStorage(0)]

    def fill(number: int, block: _Block) -> tuple[_Block, torch.Tensor]:
        nbytes = torch.Size(block.shape).numel() * block.tensor.dtype.itemsize
        if rooms[number % 2].nbytes() < nbytes:
            rooms[number % 2] = torch.UntypedStorage(max(nbytes, BLOCK_BYTES))
        # `torch.save` writes whole storages, so the tensor gets one that ends where it does, on the same memory
        storage = rooms[number % 2][:nbytes]
        room = torch.empty(0, dtype=block.tensor.dtype).set_(storage, 0, block.shape)  # type: ignore[call-overload]
        block.tensor.fill(block.start, block.stop, room)
        return block, room

    with ThreadPoolExecutor(1) as pool:
        before: Future[tuple[_Block, torch.Tensor]] | None = None
        for number, block in enumerate(blocks):
            coming = pool.submit(fill, number, block)
            if before is not None:
                yield before.result()
            before = coming
        if before is not None:
            yield before.result()


class _HashedFile(io.RawIOBase):
    """A file that is hashed while it is written, on a thread of its own."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        self._hash = xxhash.xxh3_128()
        self._pool = ThreadPoolExecutor(1)
        self._flush = EarlyFlush(self._descriptor)
        self._position = 0

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def write(self, data: memoryview) -> int:  # type: ignore[override]
        data = memoryview(data).cast("B")
        hashed = self._pool.submit(self._hash.update, data)
        written = 0
        while written < len(data):
            written += os.write(self._descriptor, data[written : written + _BYTES_PER_CALL])
        hashed.result()
        self._flush.wrote(written)
        self._position += written
        return written

    def finish(self, hashes: dict[str, str]) -> None:
        """Flushes to the disk."""
        self._flush.finish()
        hashes[self.path.name] = self._hash.hexdigest()
        self.close()

    def close(self) -> None:
        if not self.closed:
            self._pool.shutdown()
            self._flush.stop()
            os.close(self._descriptor)
        super().close()


@contextmanager
def _without_crc() -> Iterator[None]:
    """The zip format's own checksums would take longer than all the rest, and the files are hashed anyway."""
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        yield
    finally:
        torch.serialization.set_crc32_options(before)


def _write_index(directory: Path, contents: _Contents) -> None:
    """`metadata.json` comes last: without it nobody takes the directory for a checkpoint."""
    FileSystemWriter(directory).finish(Metadata(dict(contents.tensors)), [contents.places])
    torch.save({}, directory / "common.pt")
    config = {"sharded_backend": "torch_dist", "sharded_backend_version": 1}
    config |= {"common_backend": "torch", "common_backend_version": 1}
    (directory / CONFIG_NAME).write_text(json.dumps(config), encoding="utf-8")
