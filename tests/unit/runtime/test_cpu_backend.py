"""The CPU backend where megatron-core has chosen CUDA kernels, as it does wherever they are installed."""

import importlib

import pytest
import torch
from megatron.core import utils

from megafuser.runtime import cpu_backend


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
    assert clipping.l2_norm_impl is utils.local_multi_tensor_l2_norm
    for module in (clipping, copying):
        assert module.multi_tensor_applier is utils.local_multi_tensor_applier
        assert module.multi_tensor_scale_impl is utils.local_multi_tensor_scale
