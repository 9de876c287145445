"""Which fused kernels there are: Transformer Engine's, NVIDIA Apex's, or PyTorch's own operations.

Which layers a specialist is made of is `specialist.layer_specs`.
"""

import importlib
from collections.abc import Iterator
from importlib.util import find_spec

import torch

from megafuser.errors import UserError
from megafuser.runtime.versions import library_versions

# What may be missing, or be there without pip: package → its module, and its name in the log.
_LIBRARIES = {
    "megatron-core": ("megatron", "megatron-core"),
    "transformer-engine": ("transformer_engine", "Transformer Engine"),
}


def apex_module(name: str) -> bool:
    """Whether one of NVIDIA Apex's CUDA modules is there and loads.

    PyPI's `apex` is another project of the same name and has none of them, so the name `apex` itself tells nothing.

    Args:
        name: `amp_C` or `fused_weight_gradient_mlp_cuda`.
    """
    try:
        importlib.import_module(name)
    except ImportError:
        return False
    return True


def fused_weight_gradients(backend: str) -> str | None:
    """Who adds weight gradients to the accumulated ones inside the matrix product, if anyone does.

    Args:
        backend: `transformer_engine` has it of its own; `torch` needs CUDA in use and Apex's module for it.

    Returns:
        `Transformer Engine`, `Apex` or None.
    """
    if backend == "transformer_engine":
        return "Transformer Engine"
    return "Apex" if torch.cuda.is_initialized() and apex_module("fused_weight_gradient_mlp_cuda") else None


def optimizer_in_use() -> str:
    """The Adam that megatron-core has chosen at its import: Transformer Engine's, Apex's or PyTorch's."""
    from megatron.core.optimizer import Adam

    owner = Adam.__module__.split(".")[0]
    return {"transformer_engine": "Transformer Engine", "apex": "Apex"}.get(owner, "torch") + f" {Adam.__name__}"


def check_apex() -> None:
    """megatron-core takes Apex's Adam wherever Apex's Python part is there, with its CUDA modules or without.

    Raises:
        UserError: without.
    """
    if optimizer_in_use().startswith("Apex") and not apex_module("amp_C"):
        raise UserError(
            "NVIDIA Apex is installed without its CUDA modules (amp_C does not load), and megatron-core would use its "
            "Adam; build Apex with its CUDA extensions, or uninstall it"
        )


def describe(backend: str, fp8: str | None) -> list[str]:
    """Two lines for the head of a stage's log: the kernels in use, and versions.

    Args:
        backend: `transformer_engine` or `torch`.
        fp8: the recipes in use, in words; None where there is none.
    """
    attention = "Transformer Engine THD" if backend == "transformer_engine" else "torch SDPA per segment"
    gradients = fused_weight_gradients(backend) or "torch autograd"
    return [
        f"backend {backend}: optimizer {optimizer_in_use()}, weight-gradient accumulation {gradients}, "
        f"attention {attention}, FP8 {fp8 or 'off'}",
        ", ".join([f"torch {torch.__version__}", *_versions()]),
    ]


def _versions() -> Iterator[str]:
    for package, version in library_versions(_LIBRARIES).items():
        module, name = _LIBRARIES[package]
        is_there = find_spec(module) is not None
        yield f"{name} {(version or 'of unknown version') if is_there else 'not installed'}"
