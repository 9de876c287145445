"""Which device and backend; no GPU is needed, CUDA's answers are made up."""

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from megafuser.errors import UserError
from megafuser.runtime import device
from megafuser.runtime.device import check_fp8, select_backend, select_device

CPU = torch.device("cpu")
CUDA = torch.device("cuda", 0)


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(Path, "exists", lambda self: False)


@pytest.fixture
def four_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)


def test_auto_takes_the_cpu_where_there_is_no_gpu(no_gpu: None) -> None:
    assert select_device("auto", 0, {}) == CPU
    assert select_device("auto", 0, {"SLURM_JOB_GPUS": ""}) == CPU


@pytest.mark.parametrize("wanted", ["auto", "cuda"])
def test_each_rank_takes_its_own_gpu(four_gpus: None, wanted: str) -> None:
    assert select_device(wanted, 3, {}) == torch.device("cuda", 3)


def test_more_ranks_than_gpus(four_gpus: None) -> None:
    with pytest.raises(UserError, match="local rank 4 has no GPU: it sees 4 of its node's"):
        select_device("auto", 4, {})


def test_cpu_is_taken_when_asked_for(four_gpus: None) -> None:
    assert select_device("cpu", 9, {"SLURM_JOB_GPUS": "0"}) == CPU


def test_cuda_without_a_gpu(no_gpu: None) -> None:
    with pytest.raises(UserError, match="device: cuda, but PyTorch finds no GPU"):
        select_device("cuda", 0, {})


@pytest.mark.parametrize("variable", ["SLURM_JOB_GPUS", "SLURM_STEP_GPUS", "SLURM_GPUS_ON_NODE"])
def test_allocated_gpus_that_torch_cannot_use_are_not_wasted_silently(no_gpu: None, variable: str) -> None:
    with pytest.raises(UserError, match=f"{variable} shows a GPU .* set device: cpu"):
        select_device("auto", 0, {variable: "0,1"})


def test_a_gpu_on_the_machine_that_torch_cannot_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(Path, "exists", lambda self: str(self) == "/dev/nvidia0")
    with pytest.raises(UserError, match="/dev/nvidia0 shows a GPU"):
        select_device("auto", 0, {})
    assert select_device("cpu", 0, {}) == CPU


@pytest.mark.parametrize(("wanted", "on"), [("auto", CPU), ("torch", CPU), ("torch", CUDA)])
def test_torch_backend(wanted: str, on: torch.device) -> None:
    assert select_backend(wanted, on) == "torch"


@pytest.mark.parametrize("wanted", ["auto", "transformer_engine"])
def test_transformer_engine_on_cuda(monkeypatch: pytest.MonkeyPatch, wanted: str) -> None:
    monkeypatch.setattr(device, "find_spec", lambda name: object() if name == "transformer_engine" else None)
    monkeypatch.setitem(sys.modules, "transformer_engine", ModuleType("transformer_engine"))
    monkeypatch.setitem(sys.modules, "transformer_engine.pytorch", ModuleType("transformer_engine.pytorch"))
    assert select_backend(wanted, CUDA) == "transformer_engine"
    monkeypatch.setattr(device, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="Transformer Engine is not installed"):
        select_backend(wanted, CUDA)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (RuntimeError("Could not find shared object file\nsearched: /a"), "Could not find shared object file"),
        (ImportError("undefined symbol: x"), "undefined symbol: x"),
        (OSError("libcublas.so.13: cannot open"), "libcublas.so.13: cannot open"),
        (ImportError(), "ImportError"),
    ],
)
def test_a_transformer_engine_that_does_not_load(
    monkeypatch: pytest.MonkeyPatch, error: Exception, reason: str
) -> None:
    def fail(name: str) -> None:
        raise error

    monkeypatch.setattr(device, "find_spec", lambda name: object())
    monkeypatch.setattr(device.importlib, "import_module", fail)
    with pytest.raises(UserError, match=rf"installed but does not load \({reason}\); .* set backend: torch"):
        select_backend("auto", CUDA)


@pytest.mark.parametrize(
    ("recipe", "probe"),
    [
        ("delayed", "is_fp8_available"),
        ("tensorwise", "is_fp8_available"),
        ("blockwise", "is_fp8_block_scaling_available"),
    ],
)
def test_fp8_on_a_gpu_that_lacks_it(monkeypatch: pytest.MonkeyPatch, recipe: str, probe: str) -> None:
    engine: Any = ModuleType("transformer_engine.pytorch")
    monkeypatch.setitem(sys.modules, "transformer_engine", ModuleType("transformer_engine"))
    monkeypatch.setitem(sys.modules, "transformer_engine.pytorch", engine)
    setattr(engine, probe, lambda return_reason: (True, ""))
    check_fp8(recipe)
    setattr(engine, probe, lambda return_reason: (False, "compute capability 8.9 or later is needed"))
    with pytest.raises(UserError, match=rf"precision.fp8: {recipe} cannot work here \(compute capability 8.9 .*=null"):
        check_fp8(recipe)


def test_transformer_engine_on_a_cpu() -> None:
    with pytest.raises(UserError, match="needs a GPU; set backend: torch"):
        select_backend("transformer_engine", CPU)
