"""Operations against training's own count; times against arithmetic by hand."""

import dataclasses

import numpy as np
import pytest

from megafuser.config.compute import MemoryConfig, ParallelConfig, PrecisionConfig
from megafuser.config.optimizer import OptimizerConfig
from megafuser.planning.compute import StepTime, default_mfu
from megafuser.planning.flops import forward_flops
from megafuser.planning.plan import plan_stage
from tests.unit.planning.architectures import QWEN_7B, UNEQUAL
from tests.unit.planning.made_up_tasks import make_task

TP8_PP2 = ParallelConfig(tensor=8, pipeline=2, sequence=True)


def computing(time: StepTime) -> float:
    """Seconds of a step without communication."""
    assert time.seconds is not None
    return time.seconds - time.communication.total


@pytest.mark.parametrize("stage", ["warmup", "joint"])
@pytest.mark.parametrize("pipeline", [1, 2, 4])
def test_all_ranks_together_do_what_training_counts(stage: str, pipeline: int) -> None:
    task = make_task(UNEQUAL, gpus=4, parallel=ParallelConfig(pipeline=pipeline))
    plan = plan_stage(task, stage)
    lengths = np.full(plan.work.samples, 1024)
    forward = sum(forward_flops(card, lengths, 512 * plan.work.samples) for card in UNEQUAL.values())
    assert plan.time.flops == pytest.approx(forward * (3 if stage == "joint" else 1))


def test_one_gpu_takes_operations_over_rate() -> None:
    plan = plan_stage(make_task(QWEN_7B, gpus=1), "joint")
    assert plan.time.seconds == pytest.approx(plan.time.flops / (0.4 * 989e12))
    assert plan.time.mfu == pytest.approx(0.4)
    assert plan.time.tokens_per_second == pytest.approx(plan.work.tokens / plan.time.seconds)


def test_pipelines_wait() -> None:
    plan = plan_stage(make_task(parallel=TP8_PP2), "joint")
    assert plan.work.micro_batches == 24  # 96 samples of 1024 tokens in rows of 4096
    assert plan.time.bubble == 1 / 24
    computing = plan.time.flops * plan.time.imbalance * (1 + 1 / 24) / (16 * 0.4 * 989e12)
    assert plan.time.seconds == pytest.approx(computing + plan.time.communication.total)


def test_recompute_takes_time_and_is_no_useful_work() -> None:
    plain, full = (
        plan_stage(make_task(parallel=TP8_PP2, memory=MemoryConfig(recompute=how)), "joint").time
        for how in ("none", "full")
    )
    assert full.flops == plain.flops
    assert computing(plain) * 1.3 < computing(full) < computing(plain) * 4 / 3
    warm = plan_stage(make_task(parallel=TP8_PP2, memory=MemoryConfig(recompute="full")), "warmup").time
    assert warm == plan_stage(make_task(parallel=TP8_PP2), "warmup").time


def test_fp8_speeds_the_layers_up_and_not_the_heads() -> None:
    fp8 = make_task(parallel=TP8_PP2, precision=PrecisionConfig(fp8="delayed"))
    bf16 = dataclasses.replace(fp8, config=dataclasses.replace(fp8.config, precision=PrecisionConfig()))
    assert 1.8 < computing(plan_stage(bf16, "joint").time) / computing(plan_stage(fp8, "joint").time) < 2


def test_a_smaller_share_of_the_peak_is_assumed_under_fp8() -> None:
    assert default_mfu(PrecisionConfig()) == 0.4 and default_mfu(PrecisionConfig(fp8="delayed")) == 0.25


def test_offloaded_states_take_time() -> None:
    plan = plan_stage(make_task(parallel=TP8_PP2, optimizer=OptimizerConfig(offload_fraction=0.5)), "joint")
    elements = max(rank.states.trainable for rank in plan.ranks)
    assert plan.time.host_seconds == pytest.approx(elements / 2 * 36 / 25e9, rel=1e-3)


def test_no_time_for_a_cpu() -> None:
    plan = plan_stage(make_task(UNEQUAL, gpus=1, gpu=None), "joint")
    assert plan.time.seconds is None and plan.time.flops > 0
