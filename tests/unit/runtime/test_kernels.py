"""Which kernels are taken for there: modules by their names, each situation with modules that stand for real ones."""

import sys
import types
from importlib import metadata

import megatron.core.optimizer
import pytest
import torch

from megafuser.errors import UserError
from megafuser.runtime import kernels

MODULES = ("apex", "amp_C", "fused_weight_gradient_mlp_cuda")


@pytest.fixture(autouse=True)
def nothing_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in MODULES:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)


def give(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    for name in names:
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))


def test_without_anything_it_is_pytorchs_own() -> None:
    assert kernels.fused_weight_gradients("torch") is None
    assert not kernels.apex_module("amp_C")


def test_the_other_project_named_apex_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    give(monkeypatch, "apex")
    assert kernels.fused_weight_gradients("torch") is None and not kernels.apex_module("amp_C")


def test_apex_without_the_weight_gradient_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    give(monkeypatch, "apex", "amp_C")
    assert kernels.fused_weight_gradients("torch") is None and kernels.apex_module("amp_C")


def test_apex_with_them(monkeypatch: pytest.MonkeyPatch) -> None:
    give(monkeypatch, *MODULES)
    assert kernels.fused_weight_gradients("torch") == "Apex"


def test_not_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    give(monkeypatch, *MODULES)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    assert kernels.fused_weight_gradients("torch") is None


def test_transformer_engine_has_its_own() -> None:
    assert kernels.fused_weight_gradients("transformer_engine") == "Transformer Engine"


@pytest.mark.parametrize(
    ("module", "shown"),
    [
        ("transformer_engine.pytorch.optimizers.fused_adam", "Transformer Engine FusedAdam"),
        ("apex.optimizers.fused_adam", "Apex FusedAdam"),
        ("torch.optim.adamw", "torch FusedAdam"),
    ],
)
def test_the_optimizer_is_the_one_that_megatron_core_chose(
    monkeypatch: pytest.MonkeyPatch, module: str, shown: str
) -> None:
    monkeypatch.setattr(megatron.core.optimizer, "Adam", type("FusedAdam", (), {"__module__": module}))
    assert kernels.optimizer_in_use() == shown


def test_the_lines_of_the_log() -> None:
    kernels_line, versions = kernels.describe("torch", None)
    assert kernels_line == (
        "backend torch: optimizer torch AdamW, weight-gradient accumulation torch autograd, "
        "attention torch SDPA per segment, FP8 off"
    )
    assert versions == f"torch {torch.__version__}, megatron-core 0.16.1, Transformer Engine not installed"


def test_the_lines_of_the_log_with_transformer_engine() -> None:
    kernels_line, _ = kernels.describe("transformer_engine", "delayed")
    assert kernels_line.endswith(
        "weight-gradient accumulation Transformer Engine, attention Transformer Engine THD, FP8 delayed"
    )


def test_a_package_without_its_metadata(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where it was put on the path and not installed."""

    def fail(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(kernels, "find_spec", lambda name: object())
    monkeypatch.setattr(metadata, "version", fail)
    assert kernels.describe("torch", None)[1].endswith(
        "megatron-core of unknown version, Transformer Engine of unknown version"
    )


def test_an_apex_without_its_cuda_modules_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "optimizer_in_use", lambda: "Apex FusedAdam")
    with pytest.raises(UserError, match=r"without its CUDA modules \(amp_C does not load\)"):
        kernels.check_apex()
    give(monkeypatch, "apex")
    with pytest.raises(UserError, match="without its CUDA modules"):
        kernels.check_apex()
    give(monkeypatch, "amp_C")
    kernels.check_apex()
    monkeypatch.setattr(kernels, "optimizer_in_use", lambda: "torch AdamW")
    kernels.check_apex()
