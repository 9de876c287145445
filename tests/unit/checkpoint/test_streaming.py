"""Streamed checkpoints against megatron-core's own reader and writer, in blocks that split everything."""

import os
from pathlib import Path

import pytest
import torch
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing import ShardedTensor

from megafuser.checkpoint import hashed_file, row_blocks, stream_writer
from megafuser.checkpoint.manifest import hash_file
from megafuser.checkpoint.stream_reader import StreamedReader
from megafuser.checkpoint.stream_writer import StreamedTensor, write_streamed
from megafuser.errors import UserError
from megafuser.runtime.distributed import single_process_cpu
from tests.saved_weights import save_weights

LAYERS = 3


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (row_blocks, stream_writer):
        monkeypatch.setattr(module, "BLOCK_BYTES", 100)
    monkeypatch.setattr(stream_writer, "BYTES_PER_FILE", 3000)
    monkeypatch.setattr(hashed_file, "_BYTES_PER_CALL", 7)


def _tensors() -> dict[tuple[str, int | None], torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    stack = {("stack", i): torch.randn(11, 5, generator=generator).bfloat16() for i in range(LAYERS)}
    bias = {("bias", i): torch.randn(60, generator=generator) for i in range(LAYERS)}
    return stack | bias | {("table", None): torch.tensor([[1.0, -0.0], [float("nan"), float("inf")]])}


def _write(directory: Path) -> dict[str, str]:
    def tensor(key: str, layer: int | None, data: torch.Tensor) -> StreamedTensor:
        def fill(start: int, stop: int, out: torch.Tensor) -> None:
            out.copy_(data[start:stop])

        return StreamedTensor(key, layer, LAYERS, tuple(data.shape), data.dtype, fill)

    directory.mkdir()
    done: list[int] = []
    hashes = write_streamed(directory, [tensor(*name, data) for name, data in _tensors().items()], done.append)
    assert done == sorted(done) and done[-1] == sum(data.nbytes for data in _tensors().values())
    return hashes


def _same(first: torch.Tensor, second: torch.Tensor) -> bool:
    return torch.equal(first.contiguous().view(torch.uint8), second.contiguous().view(torch.uint8))


def _sharded(rooms: dict[tuple[str, int | None], torch.Tensor]) -> dict[str, ShardedTensor]:
    return {
        f"{key}{layer}": ShardedTensor.from_rank_offsets(key, room)
        if layer is None
        else ShardedTensor.from_rank_offsets(key, room.unsqueeze(0), (0, layer, LAYERS))
        for (key, layer), room in rooms.items()
    }


def test_megatron_core_reads_it(tmp_path: Path) -> None:
    _write(tmp_path / "out")
    assert len(list((tmp_path / "out").glob("*.distcp"))) > 2
    rooms = {name: torch.zeros_like(data) for name, data in _tensors().items()}
    with single_process_cpu():
        dist_checkpointing.load(_sharded(rooms), str(tmp_path / "out"))
    assert all(_same(rooms[name], data) for name, data in _tensors().items())


def test_hashes_are_those_of_the_files(tmp_path: Path) -> None:
    hashes = _write(tmp_path / "out")
    assert hashes == {path.name: hash_file(path) for path in (tmp_path / "out").glob("*.distcp")}
    assert hashes == _write(tmp_path / "again")


@pytest.mark.parametrize("step", [1, 2, 4, 100])
@pytest.mark.parametrize("writer", ["streamed", "megatron"])
def test_any_rows_are_read_back(tmp_path: Path, step: int, writer: str) -> None:
    if writer == "streamed":
        _write(tmp_path / "out")
    else:
        (tmp_path / "out").mkdir()
        halves = {}
        for (key, layer), data in _tensors().items():  # split by columns, as row-parallel layers are
            for rank, part in enumerate(data.chunk(2, dim=-1) if data.shape[-1] % 2 == 0 else [data]):
                axes = [(data.dim() - 1, rank, 2)] if data.shape[-1] % 2 == 0 else []
                if layer is not None:
                    axes = [(0, layer, LAYERS), *((axis + 1, at, of) for axis, at, of in axes)]
                    part = part.unsqueeze(0)
                halves[f"{key}{layer}{rank}"] = ShardedTensor.from_rank_offsets(key, part.contiguous(), *axes)
        with single_process_cpu():
            save_weights(halves, tmp_path / "out")
    with StreamedReader(tmp_path / "out") as reader:
        assert reader.shapes == {"stack": (LAYERS, 11, 5), "bias": (LAYERS, 60), "table": (2, 2)}
        assert reader.dtypes == {"stack": torch.bfloat16, "bias": torch.float32, "table": torch.float32}
        for (key, layer), data in _tensors().items():
            for start in range(0, len(data), step):
                rows = data[start : start + step]
                assert _same(reader.rows(key, layer, start, start + len(rows)), rows)
        with pytest.raises(UserError, match="lacks 2 of the elements"):
            reader.rows("table", None, 1, 3)


def test_each_chunk_is_loaded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _write(tmp_path / "out")
    calls = []
    load = torch.load
    monkeypatch.setattr(torch, "load", lambda *args, **options: calls.append(1) or load(*args, **options))
    with StreamedReader(tmp_path / "out") as reader:
        for row in range(11):
            reader.rows("stack", 1, row, row + 1)
            assert len(reader._loaded) <= 2
    assert len(calls) == 2


def test_damaged_chunk_is_named(tmp_path: Path) -> None:
    _write(tmp_path / "out")
    path = tmp_path / "out" / "__0_0.distcp"
    path.write_bytes(path.read_bytes()[:200])
    with StreamedReader(tmp_path / "out") as reader, pytest.raises(UserError, match=r"__0_0.distcp is damaged"):
        reader.rows("stack", 0, 0, 11)


def test_error_while_filling_is_the_callers_and_nothing_looks_finished(tmp_path: Path) -> None:
    def fail(start: int, stop: int, out: torch.Tensor) -> None:
        raise UserError("no such rows")

    with pytest.raises(UserError, match="no such rows"):
        write_streamed(tmp_path, [StreamedTensor("x", None, 1, (30, 5), torch.float32, fail)])
    assert not (tmp_path / "metadata.json").exists() and not (tmp_path / ".metadata").exists()


def test_full_disk_is_an_error_and_nothing_looks_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int, data: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match="No space left"):
        _write(tmp_path / "out")
    assert not (tmp_path / "out" / "metadata.json").exists()


@pytest.mark.parametrize("reason", [KeyboardInterrupt(), SystemExit(143), OSError(28, "No space left on device")])
@pytest.mark.parametrize("part", range(6))
def test_what_ends_a_write_in_the_middle_is_what_is_raised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reason: BaseException, part: int
) -> None:
    """torch closes its archive even so, and would raise what is wrong with that."""
    parts = 0

    def write(descriptor: int, data: bytes) -> int:
        nonlocal parts
        parts += 1
        if parts == part + 1:
            raise reason
        return written(descriptor, data)

    written = os.write
    monkeypatch.setattr(hashed_file, "_BYTES_PER_CALL", 1 << 20)
    monkeypatch.setattr(os, "write", write)
    with pytest.raises(type(reason)) as raised:
        _write(tmp_path / "out")
    assert raised.value is reason
    assert not (tmp_path / "out" / "metadata.json").exists()


def test_checksums_of_the_zip_format_are_as_before(tmp_path: Path) -> None:
    before = torch.serialization.get_crc32_options()
    _write(tmp_path / "out")
    assert torch.serialization.get_crc32_options() == before
