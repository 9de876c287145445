"""The nearest change that fits: it does fit, nothing nearer does, and it can be typed as it is said."""

import dataclasses

import pytest

from megafuser.config.compute import MemoryConfig, ParallelConfig
from megafuser.config.optimizer import OptimizerConfig
from megafuser.config.schema import STAGES
from megafuser.planning import advice
from megafuser.planning.advice import advise
from megafuser.planning.gpus import GIB
from megafuser.planning.plan import plan_stage
from tests.unit.planning.architectures import EQUAL
from tests.unit.planning.made_up_tasks import make_task

TP8_PP2 = ParallelConfig(tensor=8, pipeline=2, sequence=True)


def peak(**sections: object) -> float:
    """Bytes of the fullest rank of the 13B trio on 16 GPUs."""
    task = make_task(**{"parallel": TP8_PP2} | sections)
    return max(plan_stage(task, stage).peak for stage in STAGES)


def test_recompute_where_activations_are_what_is_too_much() -> None:
    task = make_task(parallel=TP8_PP2)
    wide = dataclasses.replace(task.config, data=dataclasses.replace(task.config.data, sequence_length=32768))
    found = advise(dataclasses.replace(task, config=wide), 79 * GIB)
    assert found is not None and found.text == "memory.recompute=full" and found.gpus == 16
    assert found.peak <= 79 * GIB and found.host_per_node == 0


def test_states_leave_the_gpu_where_they_are_what_is_too_much() -> None:
    found = advise(make_task(parallel=TP8_PP2), 30 * GIB)
    assert found is not None and "optimizer.offload_fraction=" in found.text
    assert found.peak <= 30 * GIB


@pytest.mark.parametrize(("overlapped", "text"), [(True, "optimizer.distributed=true"), (False, "parallel.pipeline=8")])
def test_spreading_the_states_is_as_near_as_more_stages(overlapped: bool, text: str) -> None:
    """Of two changes of one key the faster: four replicas whose gradients travel meanwhile, or none and more waits."""
    parallel = dataclasses.replace(TP8_PP2, overlap_grad_reduce=overlapped)
    task = make_task(gpus=64, parallel=parallel, optimizer=OptimizerConfig(distributed=False))
    found = advise(task, 50 * GIB)
    assert found is not None and found.text == text


def test_a_layout_that_uses_the_gpus_at_hand() -> None:
    task = make_task(gpus=16, parallel=ParallelConfig(tensor=8, sequence=True))
    found = advise(task, 100 * GIB)
    assert found is not None and set(found.overrides) <= {"parallel.pipeline", "memory.recompute"}


def test_more_gpus_where_no_setting_fits() -> None:
    task = make_task(gpus=1, parallel=ParallelConfig())
    found = advise(task, 79 * GIB)
    assert found is not None and found.gpus > 1 and found.peak <= 79 * GIB
    assert task.gpus == 1


def test_nothing_where_nothing_helps() -> None:
    assert advise(make_task(EQUAL, gpus=1, parallel=ParallelConfig()), 1000, most_gpus=2) is None


@pytest.mark.parametrize(("asked", "tried"), [(256, [256, 512, 1024]), (384, [384, 768]), (2048, [2048])])
def test_how_many_gpus_are_tried(asked: int, tried: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Twice as many each time, up to 1024; where more were asked for, those alone."""
    seen: list[int] = []
    monkeypatch.setattr(advice, "_nearest", lambda task, _: seen.append(task.gpus))
    assert advise(make_task(gpus=asked), 1000) is None
    assert seen == tried


@pytest.mark.parametrize("limit", [35, 45, 60])
def test_a_single_override_is_not_passed_over(limit: int) -> None:
    """Tried by hand: where one of these alone fits, the advice is no longer than that."""
    alone = [
        peak(memory=MemoryConfig(recompute="selective")),
        peak(memory=MemoryConfig(recompute="full")),
        peak(optimizer=OptimizerConfig(offload_fraction=1.0)),
        peak(optimizer=OptimizerConfig(precision_aware=True)),
    ]
    found = advise(make_task(parallel=TP8_PP2), limit * GIB)
    assert found is not None
    if min(alone) <= limit * GIB:
        assert len(found.overrides) <= 1
