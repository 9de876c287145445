"""Lets real megatron-core run on a CPU over gloo. Loaded only there; nothing else in the package patches for a device.

megatron-core 0.16 asks `torch.cuda` for the current device, streams, events and the random state, writes
`device="cuda"` literally in a few modules, and recognizes dtypes by `Tensor.type()` names such as
`torch.cuda.FloatTensor`. Each is answered here by its CPU counterpart. The literal devices are caught by giving just
those modules a view of `torch` with patched factory functions: a `TorchFunctionMode` would tax every operation.

What is merely slow on a CPU is `runtime.cpu_speed`; layers for it are `specialist.layer_specs`.
"""

import functools
import importlib
import types
from typing import Any

import torch

from megafuser.runtime import cpu_speed
from megafuser.runtime.norms import multi_tensor_l2_norm

_CPU = torch.device("cpu")
_FACTORIES = ("tensor", "zeros", "ones", "empty", "empty_like", "zeros_like")
# The modules of megatron-core that write device="cuda" on the paths that training, evaluation and checkpoints take.
_LITERAL_DEVICE_MODULES = (
    "megatron.core.utils",
    "megatron.core.pipeline_parallel.schedules",
    "megatron.core.optimizer.optimizer",
    "megatron.core.optimizer.clip_grads",
    "megatron.core.dist_checkpointing.exchange_utils",
    "megatron.core.dist_checkpointing.strategies.state_dict_saver",
)


class _Nothing:
    """Stands for a CUDA stream or event: every method does nothing, and it is a context manager."""

    def __init__(self, *_: Any, **__: Any) -> None:
        """Accepts what `torch.cuda.Stream` and `torch.cuda.Event` accept."""

    def __getattr__(self, name: str) -> Any:
        return lambda *_, **__: None

    def __enter__(self) -> "_Nothing":
        return self

    def __exit__(self, *_: Any) -> None:
        return None


class _TorchOnCpu(types.ModuleType):
    """`torch`, except that factory functions make CPU tensors where CUDA ones are asked for."""

    def __init__(self) -> None:
        super().__init__("torch")
        for name in _FACTORIES:
            setattr(self, name, _on_cpu(getattr(torch, name)))

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


def _on_cpu(factory: Any) -> Any:
    @functools.wraps(factory)
    def make(*args: Any, **kwargs: Any) -> torch.Tensor:
        if kwargs.get("device") is not None and torch.device(kwargs["device"]).type == "cuda":
            kwargs["device"] = _CPU
        made: torch.Tensor = factory(*args, **kwargs)
        return made

    return make


def _same(self: Any, *_: Any, **__: Any) -> Any:
    """`.cuda()` of a tensor or module that stays where it is."""
    return self


@functools.cache
def install() -> None:
    """Applies the patches, once per process.

    Raises:
        RuntimeError: called where CUDA is in use, which the patches would break.
    """
    if torch.cuda.is_initialized():
        raise RuntimeError("the CPU backend must not be installed in a process that uses CUDA")
    _patch_torch_cuda()
    _patch_tensor_type()
    _patch_random_state()
    view = _TorchOnCpu()
    for name in _LITERAL_DEVICE_MODULES:
        importlib.import_module(name).torch = view  # type: ignore[attr-defined]
    _patch_fused_kernels()
    cpu_speed.keep_freed_memory()
    cpu_speed.skip_collectives_of_one()
    cpu_speed.scale_in_place()


def _patch_torch_cuda() -> None:
    cuda: Any = torch.cuda
    cuda.current_device = lambda: _CPU
    cuda.Stream = cuda.Event = _Nothing
    cuda.stream = cuda.current_stream = cuda.default_stream = lambda *_, **__: _Nothing()
    for name in ("synchronize", "empty_cache", "set_device"):
        setattr(cuda, name, lambda *_, **__: None)
    torch.Tensor.cuda = _same  # type: ignore[method-assign]
    torch.nn.Module.cuda = _same  # type: ignore[method-assign]


def _patch_tensor_type() -> None:
    """megatron-core's optimizers and gradient clipping accept parameters by the name `torch.cuda.XTensor`."""
    tensor_type = torch.Tensor.type

    @functools.wraps(tensor_type)
    def type_with_cuda_name(self: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if args or kwargs:
            return tensor_type(self, *args, **kwargs)
        return "torch.cuda." + tensor_type(self).rsplit(".", 1)[-1]

    torch.Tensor.type = type_with_cuda_name  # type: ignore[method-assign,assignment]


def _patch_fused_kernels() -> None:
    """Takes PyTorch's optimizers and megatron-core's fallbacks where CUDA kernels were chosen for being installed.

    A machine with GPUs has Transformer Engine or Apex, and megatron-core picks theirs when it is imported.
    """
    optimizers: Any = importlib.import_module("megatron.core.optimizer")
    optimizers.Adam, optimizers.SGD, optimizers.USING_PYTORCH_OPTIMIZER = torch.optim.AdamW, torch.optim.SGD, True
    # which of them the distributed optimizer saves and loads step counts for
    states: Any = importlib.import_module("megatron.core.optimizer.distrib_optimizer")
    states.HAVE_APEX_OR_TE = states.USING_TE_OPTIMIZER = states.USING_APEX_OPTIMIZER = False
    fallbacks: Any = importlib.import_module("megatron.core.utils")
    for name in ("clip_grads", "optimizer"):
        module: Any = importlib.import_module(f"megatron.core.optimizer.{name}")
        module.multi_tensor_applier = fallbacks.local_multi_tensor_applier
        module.multi_tensor_scale_impl = fallbacks.local_multi_tensor_scale
    clipping: Any = importlib.import_module("megatron.core.optimizer.clip_grads")
    clipping.l2_norm_impl = multi_tensor_l2_norm  # megatron-core's own fallback is wrong for large tensors


def _patch_random_state() -> None:
    from megatron.core.tensor_parallel import random as tensor_parallel_random

    cuda: Any = torch.cuda
    cuda.get_rng_state = cuda.random.get_rng_state = lambda *_, **__: torch.get_rng_state()
    cuda.set_rng_state = cuda.random.set_rng_state = lambda state, *_, **__: torch.set_rng_state(state)
    cuda.manual_seed = lambda seed: None  # the CPU's generator is seeded by itself
    tensor_parallel_random._get_cuda_rng_state = lambda *_, **__: torch.get_rng_state()
    tensor_parallel_random._set_cuda_rng_state = lambda state, *_, **__: torch.set_rng_state(state)
