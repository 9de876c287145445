"""What a rank looks at by itself: versions, its device, and whether its node sees the specialists.

Whether all nodes agree is found by `preflight.report`.
"""

import os
import platform
from collections.abc import Mapping
from pathlib import Path

from megafuser import __version__
from megafuser.checkpoint.specialist_sources import converted_source
from megafuser.config.schema import RunConfig
from megafuser.errors import UserError
from megafuser.preflight.report import MachineFailure
from megafuser.runtime.versions import library_versions

_PACKAGES = ("torch", "megatron-core", "transformer-engine", "transformers")
_FREE_ENOUGH = 0.9  # of a GPU's memory; the rest is what drivers and contexts take
_PROBE = 256  # rows and columns of a product that tells whether a GPU computes


def versions() -> dict[str, str]:
    """Of what has to be the same on all nodes, by name; nothing is imported."""
    libraries = {package: version or "none" for package, version in library_versions(_PACKAGES).items()}
    return {"Python": platform.python_version(), "megafuser": __version__, **libraries}


def missing_specialists(config: RunConfig) -> list[str]:
    """A line for each converted checkpoint that this node does not see, or cannot read."""
    problems = []
    for specialist in config.specialists:
        try:
            converted_source(specialist.name, Path(specialist.checkpoint))
        except UserError as error:
            problems.append(str(error))
    return problems


def check_device(
    config: RunConfig, local_rank: int, environment: Mapping[str, str] = os.environ
) -> tuple[str, dict[str, str], list[str]]:
    """Uses this rank's device once.

    Args:
        config: the run's configuration.
        local_rank: index of the GPU.
        environment: where Slurm says what it allocated.

    Returns:
        `cuda` or `cpu`; facts that must be equal everywhere; and warnings.

    Raises:
        UserError: there is no such device, or no such backend for it.
        MachineFailure: the GPU computes wrongly.
        RuntimeError: it does not compute, for CUDA's own reason.
    """
    import torch

    from megafuser.runtime.device import check_fp8, select_backend, select_device

    device = select_device(config.device, local_rank, environment)
    backend = select_backend(config.backend, device)
    facts, warnings = {"backend": backend, "device": device.type}, []
    if device.type == "cuda":
        torch.cuda.set_device(device)
        ones = torch.ones(_PROBE, _PROBE, device=device)
        if (ones @ ones).sum().item() != _PROBE**3:
            raise MachineFailure(
                f"GPU {device.index} computes a wrong product; exclude the node (sbatch --exclude=NODE) and submit "
                "again, and tell who runs the cluster"
            )
        free, total = torch.cuda.mem_get_info(device)
        if free < _FREE_ENOUGH * total:
            warnings.append(
                f"GPU {device.index} has only {free / 2**30:.1f} of {total / 2**30:.1f} GiB free; "
                "another process may be using it"
            )
        facts |= {"GPU": torch.cuda.get_device_name(device), "CUDA": str(torch.version.cuda)}
        if config.precision.fp8 and backend == "transformer_engine":
            check_fp8(config.precision.fp8)
    return device.type, facts, warnings
