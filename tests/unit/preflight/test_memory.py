"""Memory by the plan, on GPUs of several sizes."""

import dataclasses

import pytest

from megafuser.config.compute import ParallelConfig
from megafuser.planning.gpus import GIB, Gpu, find_gpu, installed_gpu
from megafuser.planning.plan import plan_stage
from megafuser.planning.workload import find_samples
from megafuser.preflight.memory import misfit
from tests.unit.planning.made_up_tasks import make_task

H100 = find_gpu("h100")
LAYOUT = ParallelConfig(tensor=8, sequence=True)


def said(stage: str, gpu: Gpu, gpus: int = 8, layout: ParallelConfig = LAYOUT) -> list[str]:
    task = make_task(gpus=gpus, parallel=layout)
    return misfit(task.config, stage, task.cards, gpus=gpus, gpu=gpu, backend="transformer_engine")


def test_what_does_not_fit_is_told_with_what_would() -> None:
    task = make_task(gpus=8, parallel=LAYOUT)
    peak = plan_stage(dataclasses.replace(task, samples=find_samples(task.config, None)), "joint").peak / GIB
    assert said("joint", H100) == [
        f"joint needs {peak:.1f} of 79.6 GiB by the plan; optimizer.offload_fraction=0.5 would fit"
    ]


def test_only_the_stage_counts() -> None:
    assert said("warmup", H100) == []
    assert said("joint", find_gpu("b200")) == []


def test_more_gpus_are_the_planners_to_find() -> None:
    """Going through all numbers of them takes too long for a preflight."""
    (line,) = said("joint", H100, gpus=2, layout=ParallelConfig(tensor=2, sequence=True))
    assert line.endswith(" of 79.6 GiB by the plan; megafuser plan says on how many GPUs it would fit")


def test_the_drivers_memory_counts() -> None:
    assert said("joint", installed_gpu("NVIDIA H100 80GB HBM3", 120 * GIB)) == []
    (line,) = said("joint", installed_gpu("a GPU of tomorrow", 90 * GIB))
    assert " of 90.0 GiB by the plan; " in line


@pytest.mark.parametrize(("name", "kind"), [("NVIDIA H200", "h200"), ("NVIDIA L40S", "l40s"), ("unknown", "h100")])
def test_the_kind_is_the_drivers(name: str, kind: str) -> None:
    assert installed_gpu(name, GIB).name == kind
