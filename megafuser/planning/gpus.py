"""What GPUs have: memory, dense peak rates of their tensor cores, and links, from NVIDIA's data sheets.

Which device a run uses is `runtime.device`.
"""

import re
from dataclasses import dataclass, replace

from megafuser.config.values import nearest
from megafuser.errors import UserError

GIB = 1 << 30
PER_NODE = 8
"""GPUs of a node, as in NVIDIA's DGX and HGX; tensor parallelism beyond a node is never advised."""


@dataclass(frozen=True)
class Gpu:
    """One kind of GPU.

    Attributes:
        name: as `--gpu` takes it.
        memory_gib: its memory, in GiB as the driver shows it.
        bf16: dense bf16 operations a second.
        fp8: dense FP8 operations a second; None where its tensor cores have no FP8.
        link: bytes a second in each direction to the other GPUs of its node: NVLink, or PCIe where it has none.
        network: bytes a second in each direction to other nodes, as NVIDIA's reference systems have it for each GPU.
        driver_name: a regular expression that is in the driver's name of it, and in that of no other.
    """

    name: str
    memory_gib: float
    bf16: float
    fp8: float | None
    link: float
    network: float
    driver_name: str


# Variants that are slower than what their first word says have other names at the driver, and so have parts of a GPU
# (MIG). They match none of these: a share of a wrong peak would be worse than none.
GPUS = {
    gpu.name: gpu
    for gpu in (
        Gpu("h100", 79.6, 989e12, 1979e12, 450e9, 50e9, r"\bH100( 80GB HBM3)?$"),
        Gpu("h100-pcie", 79.6, 756e12, 1513e12, 64e9, 50e9, r"\bH100 PCIe$"),
        Gpu("h200", 139.8, 989e12, 1979e12, 450e9, 50e9, r"\bH200$"),
        Gpu("b200", 178.4, 2250e12, 4500e12, 900e9, 50e9, r"\bB200$"),
        Gpu("a100-80gb", 79.3, 312e12, None, 300e9, 25e9, r"\bA100\b(?!.*(MIG|40GB))"),
        Gpu("a100-40gb", 39.4, 312e12, None, 300e9, 25e9, r"\bA100\b(?!.*MIG).*40GB"),
        Gpu("l40s", 44.4, 362e12, 733e12, 32e9, 25e9, r"\bL40S$"),
    )
}


def find_gpu(name: str) -> Gpu:
    """The GPU of that name.

    Raises:
        UserError: there is none; says the nearest.
    """
    wanted = name.lower()
    if wanted not in GPUS:
        sizes = [gpu for gpu in GPUS if gpu.startswith(wanted)]
        hint = f"say {' or '.join(sizes)}" if sizes else nearest(wanted, GPUS)
        raise UserError(f"--gpu {name}: unknown; {hint}, or give another size with --gpu-memory")
    return GPUS[wanted]


def gpu_of_driver(device_name: str) -> Gpu | None:
    """The kind of GPU that the driver calls so, as `torch.cuda.get_device_name` gives it; None where it is unknown."""
    return next((gpu for gpu in GPUS.values() if re.search(gpu.driver_name, device_name)), None)


def installed_gpu(device_name: str, memory: int) -> Gpu:
    """A GPU that is there.

    Args:
        device_name: as `torch.cuda.get_device_name` gives it; one that is unknown counts as fast as an H100.
        memory: its bytes as the driver shows them.
    """
    return replace(gpu_of_driver(device_name) or GPUS["h100"], memory_gib=memory / GIB)


def peak_flops(device_name: str, *, fp8: bool = False) -> float | None:
    """Dense operations a second of a GPU's tensor cores, for the share of them that is used (MFU).

    Args:
        device_name: as `torch.cuda.get_device_name` gives it, or `cpu`.
        fp8: the rate in FP8 (where layers compute in it) instead of bf16.

    Returns:
        None where it is not known: on CPUs, on parts of a GPU, and in FP8 on a GPU without it.
    """
    found = gpu_of_driver(device_name)
    if found is None:
        return None
    return found.fp8 if fp8 else found.bf16
