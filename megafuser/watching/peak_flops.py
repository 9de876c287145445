"""The peak rate of the device that a rank computes on, for the share of it that is used (MFU)."""

import re

from megafuser.planning.gpus import GPUS

# As the driver names them. The variants that are slower than what their first word says have other names, and no peak
# here: a share of a wrong peak would be worse than none.
_NAMES = (
    (re.compile(r"\bH100 PCIe\b"), "h100-pcie"),
    (re.compile(r"\bH100( 80GB HBM3)?$"), "h100"),
    (re.compile(r"\bH200$"), "h200"),
    (re.compile(r"\bB200$"), "b200"),
    (re.compile(r"\bA100\b(?!.*MIG)"), "a100-80gb"),
    (re.compile(r"\bL40S$"), "l40s"),
)


def peak_flops(device_name: str, *, fp8: bool = False) -> float | None:
    """Dense operations a second of a GPU's tensor cores.

    Args:
        device_name: as `torch.cuda.get_device_name` gives it, or `cpu`.
        fp8: the rate in FP8 (where layers compute in it) instead of bf16.

    Returns:
        None where it is not known: on CPUs and on parts of a GPU.
    """
    for pattern, name in _NAMES:
        if pattern.search(device_name):
            return GPUS[name].fp8 if fp8 else GPUS[name].bf16
    return None
