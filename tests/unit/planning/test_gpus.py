"""Peak rates by the driver's names, from NVIDIA's data sheets."""

import re

import pytest

from megafuser.planning.gpus import GPUS, peak_flops

BF16 = {
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H200": 989e12,
    "NVIDIA B200": 2250e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA A100 80GB PCIe": 312e12,
    "NVIDIA A100-PCIE-40GB": 312e12,
    "NVIDIA L40S": 362e12,
}


@pytest.mark.parametrize(("name", "rate"), BF16.items())
def test_known_gpus(name: str, rate: float) -> None:
    assert peak_flops(name) == rate


def test_fp8_is_twice_as_fast_where_there_is_any() -> None:
    assert peak_flops("NVIDIA H100 80GB HBM3", fp8=True) == pytest.approx(2 * 989e12, rel=1e-3)
    assert peak_flops("NVIDIA A100-SXM4-80GB", fp8=True) is None


@pytest.mark.parametrize(
    "name",
    [
        "cpu", "NVIDIA H100 NVL", "NVIDIA H200 NVL", "NVIDIA GH200 480GB", "NVIDIA H100 80GB HBM3 MIG 1g.10gb",
        "NVIDIA A100-SXM4-40GB MIG 1g.5gb", "NVIDIA H100 PCIe MIG 1g.10gb", "Tesla V100-SXM2-16GB",
    ],
)  # fmt: skip
def test_others_and_parts_of_gpus_have_none(name: str) -> None:
    assert peak_flops(name) is None


@pytest.mark.parametrize("name", BF16)
def test_a_driver_name_is_of_one_gpu(name: str) -> None:
    assert len([gpu for gpu in GPUS.values() if re.search(gpu.driver_name, name)]) == 1
