"""What GPUs have: memory and dense peak rates of their tensor cores, from NVIDIA's data sheets."""

from dataclasses import dataclass

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
        fp8: dense FP8 operations a second; bf16's where the GPU has no FP8.
    """

    name: str
    memory_gib: float
    bf16: float
    fp8: float


GPUS = {
    gpu.name: gpu
    for gpu in (
        Gpu("h100", 79.6, 989e12, 1979e12),
        Gpu("h100-pcie", 79.6, 756e12, 1513e12),
        Gpu("h200", 139.8, 989e12, 1979e12),
        Gpu("b200", 178.4, 2250e12, 4500e12),
        Gpu("a100-80gb", 79.3, 312e12, 312e12),
        Gpu("a100-40gb", 39.4, 312e12, 312e12),
        Gpu("l40s", 44.4, 362e12, 733e12),
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
        raise UserError(f"--gpu {name}: unknown; {hint}; --gpu-memory gives another size")
    return GPUS[wanted]
