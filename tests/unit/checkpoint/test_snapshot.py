"""Snapshots: what changes after they were taken does not reach the file, and what was asked to be private does."""

import errno
import os
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from megatron.core.dist_checkpointing import ShardedTensor

from megafuser.checkpoint import early_flush
from megafuser.checkpoint import snapshot as module
from megafuser.checkpoint.loading import load_weights
from megafuser.checkpoint.manifest import hash_file
from megafuser.checkpoint.snapshot import Snapshot, WritingStoppedError, take_snapshot
from megafuser.runtime.distributed import single_process_cpu


@pytest.fixture(scope="module", autouse=True)
def process_group():
    with single_process_cpu():
        yield


def _state(tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
    return {"step": 3, **{name: ShardedTensor.from_rank_offsets(name, value) for name, value in tensors.items()}}


def _tensors() -> dict[str, torch.Tensor]:
    """A whole storage, and two views of one, as parameters lie in a buffer."""
    buffer = torch.arange(40, dtype=torch.float32)
    return {"whole": torch.arange(6.0).view(2, 3), "first": buffer[:10].view(2, 5), "second": buffer[10:].view(5, 6)}


def _save(snapshot: Snapshot, directory: Path) -> dict[str, str]:
    return snapshot.complete(directory, [snapshot.write(directory)])


def _load(directory: Path) -> dict[str, torch.Tensor]:
    room = _state({name: torch.full_like(value, -1) for name, value in _tensors().items()})
    return load_weights(room, directory)


def test_changes_after_the_snapshot_do_not_reach_the_file(tmp_path: Path) -> None:
    tensors = _tensors()
    snapshot = take_snapshot(_state(tensors), copy=True)
    for tensor in tensors.values():
        tensor.fill_(77)
    _save(snapshot, tmp_path)
    loaded = _load(tmp_path)
    assert loaded["step"] == 3
    for name, value in _tensors().items():
        assert torch.equal(loaded[name], value), name


def test_private_storages_are_not_copied(tmp_path: Path) -> None:
    tensors = _tensors()
    private = {tensors["first"].untyped_storage().data_ptr()}
    snapshot = take_snapshot(_state(tensors), copy=True, private=private)
    for tensor in tensors.values():
        tensor.fill_(77)
    _save(snapshot, tmp_path)
    loaded = _load(tmp_path)
    assert torch.equal(loaded["whole"], _tensors()["whole"])
    assert set(loaded["first"].flatten().tolist()) == set(loaded["second"].flatten().tolist()) == {77.0}


def test_a_view_is_written_without_the_rest_of_its_storage(tmp_path: Path) -> None:
    big = torch.zeros(1_000_000)
    snapshot = take_snapshot(_state({"small": big[5:10]}), copy=False)
    assert snapshot.write(tmp_path).nbytes < 10_000


def test_hashes_are_those_of_the_files(tmp_path: Path) -> None:
    hashes = _save(take_snapshot(_state(_tensors()), copy=True), tmp_path)
    assert hashes == {path.name: hash_file(path) for path in tmp_path.iterdir()}
    assert set(hashes) == {"common.pt", "__0_0.distcp", ".metadata", "metadata.json"}


def test_large_states_are_several_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BYTES_PER_FILE", 150)
    _save(take_snapshot(_state(_tensors()), copy=True), tmp_path)
    assert len(list(tmp_path.glob("*.distcp"))) == 2
    assert all(torch.equal(_load(tmp_path)[name], value) for name, value in _tensors().items())


def test_writing_stops_when_asked(tmp_path: Path) -> None:
    stop = threading.Event()
    stop.set()
    with pytest.raises(WritingStoppedError):
        take_snapshot(_state(_tensors()), copy=True).write(tmp_path, stop)


def test_a_full_disk_is_an_os_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch's writer covers it with a RuntimeError of its own, which would look like a bug."""
    snapshot = take_snapshot(_state({"large": torch.zeros(1_000_000)}), copy=True)
    with pytest.raises(OSError, match="No space left") as caught:
        snapshot.write(_full(monkeypatch))
    assert caught.value.errno == errno.ENOSPC


def _full(monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory of which every file is /dev/full, the kernel's own full disk."""
    own = os.open
    monkeypatch.setattr("os.open", lambda path, *rest: own("/dev/full", *rest))
    monkeypatch.setattr("os.fsync", lambda _: None)
    monkeypatch.setattr("os.fdatasync", lambda _: None)
    return Path("/nowhere")


def test_every_file_is_on_the_disk_when_its_rank_has_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rank 0 flushes what it sees, which is not what another node still has in memory."""
    flushed: dict[str, int] = {}
    sync = os.fsync

    def record(descriptor: int) -> None:
        flushed[Path(os.readlink(f"/proc/self/fd/{descriptor}")).name] = os.fstat(descriptor).st_size
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", record)
    take_snapshot(_state(_tensors()), copy=False).write(tmp_path)
    assert flushed == {path.name: path.stat().st_size for path in tmp_path.iterdir()} and len(flushed) > 1


def test_a_flush_that_failed_on_the_way_fails_the_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The system tells of a write that did not reach the disk once; the flush at the end would not know of it."""

    def fail(_: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(early_flush, "_EVERY_BYTES", 1)
    monkeypatch.setattr(os, "fdatasync", fail)
    with pytest.raises(OSError, match="Input/output error"):
        take_snapshot(_state(_tensors()), copy=False).write(tmp_path)
