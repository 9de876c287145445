"""What megatron-core and PyTorch leave slow on a CPU, and need not: memory handed back too soon, copies to oneself.

Applied by the CPU backend. Results are the same bit for bit. What does not work on a CPU at all is
`runtime.cpu_backend`.
"""

import ctypes
import functools
import importlib
from typing import Any

import torch

# From glibc's malloc.h: how much free memory at the end of the heap is kept, where -1 is all; and how many blocks may
# be mapped each by itself, which are given back when they are freed.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4


def keep_freed_memory() -> None:
    """Lets glibc keep what tensors freed, for the next ones: a page that was given back is cleared anew by the kernel.

    A training step allocates the same sizes again and again, and its time fell by a tenth to a fifth. The peak did not
    grow over steps with rows of other widths. Nothing happens where the C library is another one.
    """
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):
        library.mallopt(_M_MMAP_MAX, 0)
        library.mallopt(_M_TRIM_THRESHOLD, -1)


def skip_collectives_of_one() -> None:
    """Lets the distributed optimizer's reduce-scatter and all-gather do nothing in a group of one rank.

    megatron-core calls both on every bucket whatever the size of the group. In a group of one the output is the input,
    in the same place; gloo copies it to a buffer and back.
    """
    buffers: Any = importlib.import_module("megatron.core.distributed.param_and_grad_buffer")
    for name in ("dist_reduce_scatter_func", "dist_all_gather_func"):
        setattr(buffers, name, _unless_alone(getattr(buffers, name)))


def _unless_alone(collective: Any) -> Any:
    @functools.wraps(collective)
    def call(output: torch.Tensor, source: torch.Tensor, *args: Any, group: Any, **kwargs: Any) -> Any:
        if group.size() == 1 and output.data_ptr() == source.data_ptr():
            return None
        return collective(output, source, *args, group=group, **kwargs)

    return call


def scale_in_place() -> None:
    """Lets gradient clipping multiply where the gradients are; megatron-core's fallback makes a copy of each first."""
    importlib.import_module("megatron.core.optimizer.clip_grads").multi_tensor_scale_impl = _scale  # type: ignore[attr-defined]


def _scale(_chunk: int, _flag: torch.Tensor, tensors: list[list[torch.Tensor]], scale: float) -> None:
    """As `amp_C.multi_tensor_scale`: tensors[1] = tensors[0] · scale."""
    for source, out in zip(*tensors, strict=True):
        torch.mul(source, scale, out=out)
