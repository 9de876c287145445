"""Which device and which layer implementation a run uses.

Process groups are `runtime.distributed`; which kernels there are is `runtime.kernels`.
"""

import importlib
import os
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from megafuser.errors import UserError

_ALLOCATED_BY_SLURM = ("SLURM_JOB_GPUS", "SLURM_STEP_GPUS", "SLURM_GPUS_ON_NODE")


def select_device(wanted: str, local_rank: int, environment: Mapping[str, str] = os.environ) -> torch.device:
    """The device of this rank.

    Args:
        wanted: the configuration's `device`: `auto`, `cuda` or `cpu`.
        local_rank: index of this rank within its node.
        environment: where Slurm says what it allocated.

    Raises:
        UserError: CUDA is asked for, or GPUs are there, and PyTorch cannot use them: training on the CPU of an
            allocated GPU node would waste it silently.
    """
    if wanted == "cpu":
        return torch.device("cpu")
    if torch.cuda.is_available():
        if local_rank >= torch.cuda.device_count():
            raise UserError(
                f"local rank {local_rank} has no GPU: it sees {torch.cuda.device_count()} of its node's; start one "
                "process per GPU, and let each see all of them (srun: --gpus-per-node, not --gpus-per-task)"
            )
        return torch.device("cuda", local_rank)
    if wanted == "cuda":
        raise UserError("device: cuda, but PyTorch finds no GPU; install a CUDA build of torch or set device: cpu")
    allocated = [name for name in _ALLOCATED_BY_SLURM if environment.get(name)]
    if allocated or Path("/dev/nvidia0").exists():
        source = allocated[0] if allocated else "/dev/nvidia0"
        raise UserError(
            f"{source} shows a GPU that PyTorch cannot use; install a CUDA build of torch or set device: cpu"
        )
    return torch.device("cpu")


def select_backend(wanted: str, device: torch.device) -> str:
    """The layer implementation: `transformer_engine` or `torch`.

    Args:
        wanted: the configuration's `backend`; `auto` takes Transformer Engine on CUDA and PyTorch on a CPU.
        device: the device of this rank.

    Raises:
        UserError: Transformer Engine is needed and cannot work here.
    """
    backend = wanted if wanted != "auto" else ("transformer_engine" if device.type == "cuda" else "torch")
    if backend == "transformer_engine":
        if device.type != "cuda":
            raise UserError("backend: transformer_engine needs a GPU; set backend: torch")
        if find_spec("transformer_engine") is None:
            raise UserError(
                'Transformer Engine is not installed; pip install --no-build-isolation "megafuser[gpu]", as '
                "the documentation says under GPUs, or set backend: torch"
            )
        try:
            importlib.import_module("transformer_engine.pytorch")
        except (ImportError, OSError, RuntimeError) as error:  # its compiled part is missing, or for another PyTorch
            reason = str(error).strip().splitlines()
            raise UserError(
                f"Transformer Engine is installed but does not load ({reason[0] if reason else type(error).__name__}); "
                "build it for this PyTorch and CUDA, or set backend: torch"
            ) from error
    return backend


def check_fp8(recipe: str) -> None:
    """Asks Transformer Engine, which has been loaded, whether this GPU can do it.

    Args:
        recipe: `delayed`, `tensorwise` or `blockwise`.

    Raises:
        UserError: it cannot, for Transformer Engine's own reason.
    """
    engine: Any = importlib.import_module("transformer_engine.pytorch")
    probe = engine.is_fp8_block_scaling_available if recipe == "blockwise" else engine.is_fp8_available
    available, reason = probe(return_reason=True)
    if not available:
        raise UserError(f"precision.fp8: {recipe} cannot work here ({reason}); set precision.fp8=null")
