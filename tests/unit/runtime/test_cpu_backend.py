"""The CPU backend: what it answers in CUDA's place, also where megatron-core has chosen CUDA kernels."""

import importlib

import pytest
import torch
from megatron.core import utils

from megafuser.runtime import cpu_backend, cpu_speed, norms


def test_fused_kernels_are_not_used_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    optimizers = importlib.import_module("megatron.core.optimizer")
    clipping = importlib.import_module("megatron.core.optimizer.clip_grads")
    copying = importlib.import_module("megatron.core.optimizer.optimizer")
    chosen = [(optimizers, "Adam"), (optimizers, "SGD"), (clipping, "l2_norm_impl")]
    chosen += [(module, f"multi_tensor_{what}") for module in (clipping, copying) for what in ("applier", "scale_impl")]
    for module, name in chosen:
        monkeypatch.setattr(module, name, None)
    monkeypatch.setattr(optimizers, "USING_PYTORCH_OPTIMIZER", False)
    states = importlib.import_module("megatron.core.optimizer.distrib_optimizer")
    flags = ("HAVE_APEX_OR_TE", "USING_TE_OPTIMIZER", "USING_APEX_OPTIMIZER")
    for name in flags:
        monkeypatch.setattr(states, name, True)
    cpu_backend._patch_fused_kernels()
    # otherwise checkpoints would lose Adam's step count, silently
    assert not any(getattr(states, name) for name in flags)
    assert optimizers.Adam is torch.optim.AdamW and optimizers.SGD is torch.optim.SGD
    assert optimizers.USING_PYTORCH_OPTIMIZER
    assert clipping.l2_norm_impl is norms.multi_tensor_l2_norm
    for module in (clipping, copying):
        assert module.multi_tensor_applier is utils.local_multi_tensor_applier
        assert module.multi_tensor_scale_impl is utils.local_multi_tensor_scale


def test_it_is_refused_where_cuda_is_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    with pytest.raises(RuntimeError, match="must not be installed in a process that uses CUDA"):
        cpu_backend.install.__wrapped__()


@pytest.fixture
def installed() -> None:
    cpu_backend.install()


def test_cuda_tensors_are_made_on_the_cpu_and_others_where_they_are_asked_for(installed: None) -> None:
    view = importlib.import_module("megatron.core.pipeline_parallel.schedules").torch
    for wanted in ("cuda", "cuda:1", torch.device("cuda", 0), None):
        assert view.zeros(2, device=wanted).device.type == "cpu"
    assert view.empty(2, device="meta").device.type == "meta"
    assert view.empty_like(torch.empty(2, device="meta")).device.type == "meta"
    assert view.arange is torch.arange


def test_tensors_are_named_as_on_cuda_and_still_converted(installed: None) -> None:
    tensor = torch.ones(2)
    assert tensor.type() == "torch.cuda.FloatTensor" and tensor.bfloat16().type() == "torch.cuda.BFloat16Tensor"
    assert tensor.type(torch.int32).dtype is torch.int32


def test_the_random_state_of_cuda_is_the_cpus(installed: None) -> None:
    from megatron.core.tensor_parallel import random

    for get, set_ in [
        (torch.cuda.get_rng_state, torch.cuda.set_rng_state),
        (random._get_cuda_rng_state, random._set_cuda_rng_state),
    ]:
        state = get()
        first = torch.rand(3)
        assert not torch.equal(torch.rand(3), first)
        set_(state)
        torch.cuda.manual_seed(1)  # the CPU's generator has a seed of its own
        assert torch.equal(torch.rand(3), first)


def test_what_is_faster_on_a_cpu_takes_the_place_of_megatron_cores(installed: None) -> None:
    """Also of the fallbacks that stand in for CUDA kernels."""
    assert importlib.import_module("megatron.core.optimizer.clip_grads").multi_tensor_scale_impl is cpu_speed._scale
    buffers = importlib.import_module("megatron.core.distributed.param_and_grad_buffer")
    for name in ("dist_reduce_scatter_func", "dist_all_gather_func"):
        assert getattr(buffers, name).__code__.co_filename == cpu_speed.__file__
