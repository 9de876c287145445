"""The torch_dist format: exact round trips, no helper processes, and no foreign code at load."""

import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing import ShardedObject, ShardedTensor
from megatron.core.dist_checkpointing.core import CheckpointingException
from megatron.core.dist_checkpointing.strategies import filesystem_async
from torch.distributed.checkpoint.metadata import BytesStorageMetadata

from megafuser.checkpoint import loading
from megafuser.checkpoint.index import read_index, stored_shapes
from megafuser.errors import UserError
from megafuser.runtime.distributed import single_process_cpu
from tests.saved_weights import save_weights

LAYERS = 3


@pytest.fixture(scope="module", autouse=True)
def process_group():
    with single_process_cpu():
        yield


def _tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    tensors = {f"layer{i}": torch.randn(4, 5, generator=generator).bfloat16() for i in range(LAYERS)}
    return tensors | {"table": torch.tensor([[1.0, -0.0], [float("nan"), float("inf")]])}


def _whole(key: str, tensor: torch.Tensor) -> ShardedTensor:
    return ShardedTensor.from_rank_offsets(key, tensor)


def _sharded(tensors: dict[str, torch.Tensor]) -> dict:
    layers = {
        f"layer{i}": ShardedTensor.from_rank_offsets("stack", tensors[f"layer{i}"].unsqueeze(0), (0, i, LAYERS))
        for i in range(LAYERS)
    }
    return layers | {"table": _whole("table", tensors["table"])}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory, process_group: None) -> Path:
    directory = tmp_path_factory.mktemp("saved")
    save_weights(_sharded(_tensors()), directory)
    return directory


def test_round_trip(saved: Path) -> None:
    assert stored_shapes(saved) == {"stack": (LAYERS, 4, 5), "table": (2, 2)}
    loaded = loading.load_weights(_sharded({k: torch.zeros_like(v) for k, v in _tensors().items()}), saved)
    for name, tensor in _tensors().items():
        assert torch.equal(loaded[name].reshape(tensor.shape).view(torch.uint8), tensor.view(torch.uint8))


def test_what_megatron_core_writes_itself_is_read_alike(saved: Path, tmp_path: Path) -> None:
    """Only the way of writing differs, not the format: megatron-core's loader needs nothing of ours, and vice versa."""
    room = {k: torch.zeros_like(v) for k, v in _tensors().items()}
    dist_checkpointing.load(_sharded(room), str(saved))
    assert torch.equal(room["layer2"], _tensors()["layer2"])


def test_keys_must_be_the_same(saved: Path) -> None:
    few = {"table": _whole("table", torch.zeros(2, 2))}
    with pytest.raises(CheckpointingException, match="stack"):
        loading.load_weights(dict(few), saved)
    assert torch.equal(loading.load_weights(dict(few), saved, exact=False)["table"][0], torch.tensor([1.0, 0.0]))
    with pytest.raises(CheckpointingException, match="other"):
        loading.load_weights({"x": _whole("other", torch.zeros(1))}, saved, exact=False)


def test_saving_starts_no_process_and_leaves_megatron_cores_queue_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a process was started")

    monkeypatch.setattr(os, "fork", refuse)
    monkeypatch.setattr("multiprocessing.process.BaseProcess.start", refuse)
    monkeypatch.setattr(filesystem_async, "_results_queue", "theirs")
    save_weights(_sharded(_tensors()), tmp_path)
    assert filesystem_async._results_queue == "theirs"
    assert (tmp_path / "metadata.json").exists()


def test_failed_write_is_an_error_and_leaves_no_complete_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space left"):
        save_weights(_sharded(_tensors()), tmp_path)
    with pytest.raises(UserError, match="not a complete distributed checkpoint"):
        stored_shapes(tmp_path)


class _Intruder:
    def __reduce__(self):
        return os.mkdir, (os.environ["MEGAFUSER_TEST_INTRUDER"],)


def test_index_cannot_run_code(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = shutil.copytree(saved, tmp_path / "copy")
    monkeypatch.setenv("MEGAFUSER_TEST_INTRUDER", str(tmp_path / "ran"))
    (directory / ".metadata").write_bytes(pickle.dumps(_Intruder()))
    with pytest.raises(UserError, match=r"\.metadata would run posix\.mkdir"):
        loading.load_weights(_sharded(_tensors()), directory)
    assert not (tmp_path / "ran").exists()


def test_objects_cannot_run_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEGAFUSER_TEST_INTRUDER", str(tmp_path / "ran"))
    for name, data in (("plain", {"scale": torch.ones(2), "none": None}), ("intruder", _Intruder())):
        directory = tmp_path / name
        directory.mkdir()
        save_weights(_sharded(_tensors()) | {"o": ShardedObject("o", data, (1,), (0,))}, directory)
    wanted = _sharded(_tensors()) | {"o": ShardedObject("o", None, (1,), (0,))}
    assert torch.equal(loading.load_weights(wanted, tmp_path / "plain")["o"]["scale"], torch.ones(2))
    with pytest.raises(UserError, match="would run code"):
        loading.load_weights(_sharded(_tensors()), tmp_path / "intruder", exact=False)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "damaged",
    [
        lambda length: b"\x80\x02h\x05".ljust(length, b"."),  # refers to what is not there
        lambda length: b"\x80\x02".ljust(length - 1, b"N") + b"j",  # ends within a number
        lambda length: bytes(length),
    ],
)
def test_a_damaged_object_is_told_by_its_own_file(tmp_path: Path, damaged: Callable[[int], bytes]) -> None:
    save_weights(_sharded(_tensors()) | {"o": ShardedObject("o", {"scale": torch.ones(2)}, (1,), (0,))}, tmp_path)
    index = read_index(tmp_path)
    kinds = index.state_dict_metadata
    (where,) = (at for key, at in index.storage_data.items() if isinstance(kinds[key.fqn], BytesStorageMetadata))
    path = tmp_path / where.relative_path
    content = bytearray(path.read_bytes())
    content[where.offset : where.offset + where.length] = damaged(where.length)
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"{path} holds an object at byte {where.offset} that is damaged"):
        read_index(tmp_path)


def test_common_part_cannot_run_code(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = shutil.copytree(saved, tmp_path / "copy")
    monkeypatch.setenv("MEGAFUSER_TEST_INTRUDER", str(tmp_path / "ran"))
    torch.save({"x": _Intruder()}, directory / "common.pt")
    with pytest.raises(pickle.UnpicklingError, match="mkdir"):
        loading.load_weights(_sharded(_tensors()), directory)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("size", [0, 10, 700])
def test_damaged_index(saved: Path, tmp_path: Path, size: int) -> None:
    directory = shutil.copytree(saved, tmp_path / "copy")
    (directory / ".metadata").write_bytes((directory / ".metadata").read_bytes()[:size])
    with pytest.raises(UserError, match=r"\.metadata is damaged"):
        loading.load_weights(_sharded(_tensors()), directory)
    (directory / ".metadata").unlink()
    with pytest.raises(UserError, match=r"\.metadata is missing"):
        loading.load_weights(_sharded(_tensors()), directory)
