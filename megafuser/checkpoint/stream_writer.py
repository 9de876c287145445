"""Writes a torch_dist checkpoint block by block, from one process, without a model and without a process group.

The format is that of `torch.distributed.checkpoint`, as megatron-core writes it: `.distcp` files of `torch.save`d
chunks, `.metadata` that says where each chunk lies, and megatron-core's `metadata.json` and `common.pt`. A tensor's
chunks are blocks of its rows; a loader takes what it needs of them at any tensor and pipeline parallelism. A state that
is spread over ranks is written by `checkpoint.snapshot`.
"""

import json
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch.distributed.checkpoint.filesystem import FileSystemWriter, _StorageInfo
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.storage import WriteResult

from megafuser.checkpoint.hashed_file import BYTES_PER_FILE, HashedFile
from megafuser.checkpoint.index import CONFIG_NAME
from megafuser.checkpoint.row_blocks import BLOCK_BYTES, row_blocks

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
    files: list[HashedFile] = []
    done = 0
    blocks = (_Block(tensor, *rows) for tensor in tensors for rows in row_blocks(tensor.shape, tensor.dtype))
    with _without_crc(), ExitStack() as stack:
        for block, room in _filled(blocks):
            if not files or files[-1].tell() >= BYTES_PER_FILE:
                if files:
                    files[-1].finish()
                files.append(stack.enter_context(HashedFile(directory / f"__0_{len(files)}.distcp")))
            file = files[-1]
            offset = file.tell()
            _save(room.unsqueeze(0) if block.tensor.layer is not None else room, file)
            contents.add(block, file.path.name, offset, file.tell() - offset)
            done += room.nbytes
            progress(done)
    _write_index(directory, contents)
    return {file.path.name: file.hash for file in files}


def _save(tensor: torch.Tensor, file: HashedFile) -> None:
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
