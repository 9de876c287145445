"""The index of a checkpoint: read as data, held to make sense, and refused in one line where it does not."""

import pickle
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata

from megafuser.checkpoint.index import read_index, stored_tensors
from megafuser.checkpoint.stream_reader import StreamedReader
from megafuser.checkpoint.stream_writer import StreamedTensor, write_streamed
from megafuser.errors import UserError


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("saved")

    def fill(start: int, stop: int, out: torch.Tensor) -> None:
        out.copy_(torch.arange(start, stop)[:, None])

    shapes = {"table": (4, 2), "head": (6, 2)}
    tensors = (StreamedTensor(key, None, 1, shape, torch.float32, fill) for key, shape in shapes.items())
    write_streamed(directory, tensors)
    return directory


def _change_index(directory: Path, change: Callable[[Metadata], object]) -> None:
    index = read_index(directory)
    change(index)
    (directory / ".metadata").write_bytes(pickle.dumps(index))


def _move(name: object) -> Callable[[Metadata], object]:
    return lambda index: index.storage_data.update(
        {place: replace(where, relative_path=name) for place, where in index.storage_data.items()}
    )


def _tensor_of(index: Metadata) -> TensorStorageMetadata:
    return next(iter(stored_tensors(index).values()))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_move("../secret"), r"is in '../secret', which is not in this directory"),
        (_move("/dev/zero"), r"is in '/dev/zero', which is not in this directory"),
        (_move(".."), r"is in '..', which is not in this directory"),
        (_move(7), r"is in 7, which is not in this directory"),
        (lambda index: index.storage_data.clear(), "has a part that is in no file"),
        (lambda index: setattr(_tensor_of(index), "size", torch.Size([1, 1, 1])), ""),
        (lambda index: delattr(_tensor_of(index), "size"), ""),
        (lambda index: setattr(_tensor_of(index).properties, "dtype", "float"), "has no shape or no dtype"),
        (lambda index: setattr(_tensor_of(index), "chunks", 3), ""),
    ],
)
def test_index_that_contradicts_itself(
    saved: Path, tmp_path: Path, change: Callable[[Metadata], object], message: str
) -> None:
    directory = shutil.copytree(saved, tmp_path / "copy")
    _change_index(directory, change)
    with pytest.raises(UserError, match=rf"\.metadata is damaged \(.*{message}"):
        read_index(directory)


def test_flipped_bytes_of_the_index(saved: Path, tmp_path: Path) -> None:
    """Whatever bytes change, reading refuses in one line or gives what can be read."""
    directory = shutil.copytree(saved, tmp_path / "copy")
    original = (directory / ".metadata").read_bytes()
    for at in range(0, len(original), 3):
        damaged = bytearray(original)
        damaged[at] ^= 0x41
        (directory / ".metadata").write_bytes(damaged)
        with suppress(UserError), StreamedReader(directory) as reader:
            for key, shape in reader.shapes.items():
                with suppress(UserError):
                    reader.rows(key, None, 0, min(2, shape[0]))
