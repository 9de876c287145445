"""Seconds of communication against arithmetic by hand, for three models of 40 layers of width 5120 on H100."""

import dataclasses

import pytest

from megafuser.config.compute import MemoryConfig, OptimizerConfig, ParallelConfig, PrecisionConfig
from megafuser.config.schema import JointConfig, WarmupConfig
from megafuser.planning.communication import Communication, group_rate
from megafuser.planning.gpus import find_gpu
from megafuser.planning.plan import Task, plan_stage
from tests.unit.planning.made_up_tasks import make_task

TP8_PP2 = ParallelConfig(tensor=8, pipeline=2, sequence=True)
TP8_DP2 = ParallelConfig(tensor=8, sequence=True)
STREAM = 4096 * 5120 * 2  # bytes of one specialist's hidden states in a row, in bf16
NVLINK, INFINIBAND = 450e9, 50e9


def communication(stage: str = "joint", **sections: object) -> Communication:
    return plan_stage(make_task(**{"parallel": TP8_PP2} | sections), stage).time.communication  # type: ignore[arg-type]


def test_layers_that_ranks_share() -> None:
    """24 rows, 60 layers on a rank, two gatherings and two reductions forward and as many backward."""
    row = 60 * 8 * 7 / 8 * STREAM / NVLINK
    assert communication().tensor == pytest.approx(24 * row * (1 + 1 / 24))
    # 48 rows, forward only
    assert communication("warmup").tensor == pytest.approx(48 * row / 2 * (1 + 1 / 48))
    assert communication(parallel=ParallelConfig(pipeline=16)).tensor == 0


def test_whole_reductions_move_what_gatherings_and_reductions_to_shares_do() -> None:
    plain = dataclasses.replace(TP8_PP2, sequence=False)
    assert communication(parallel=plain).tensor == communication().tensor


def test_passes_forward_that_are_done_twice() -> None:
    assert communication(memory=MemoryConfig(recompute="full")).tensor == pytest.approx(1.5 * communication().tensor)
    twice = communication("warmup", warmup=WarmupConfig(load_balance=0.1))
    assert twice.tensor == pytest.approx(2 * communication("warmup").tensor)
    assert twice.pipeline == pytest.approx(2 * communication("warmup").pipeline)


def test_frozen_specialists_exchange_nothing_backward() -> None:
    frozen = communication(joint=JointConfig(frozen=("math",)))
    assert frozen.tensor == pytest.approx(communication().tensor * 5 / 6)


def test_streams_between_stages() -> None:
    """A stream and its gradient for each row; a tensor-parallel rank's part of it under sequence parallelism."""
    row = 2 * 3 * STREAM / INFINIBAND
    assert communication().pipeline == pytest.approx(24 * row / 8 * (1 + 1 / 24))
    assert communication(parallel=dataclasses.replace(TP8_PP2, sequence=False)).pipeline == pytest.approx(25 * row)
    assert communication("warmup").pipeline == pytest.approx(49 * row / 2 / 8)
    within = communication(gpus=8, parallel=ParallelConfig(tensor=4, pipeline=2, sequence=True))
    assert within.pipeline == pytest.approx(25 * 2 * 3 * STREAM / 4 / NVLINK)
    assert communication(parallel=dataclasses.replace(TP8_PP2, virtual_pipeline=2)).pipeline == 0


@pytest.mark.parametrize(
    ("optimizer", "dtype", "bytes_each"),
    [
        (OptimizerConfig(), "bf16", 4 + 2),  # a reduction to shares in float32, a gathering of weights
        (OptimizerConfig(), "fp32", 4 + 4),
        (OptimizerConfig(distributed=False), "bf16", 2 * 4),
    ],
)
def test_gradients_and_weights_of_replicas(optimizer: OptimizerConfig, dtype: str, bytes_each: int) -> None:
    """Two replicas on a node each: half of everything crosses the network, on a rank's own card."""
    task = make_task(parallel=TP8_DP2, optimizer=optimizer, precision=PrecisionConfig(dtype=dtype))  # type: ignore[arg-type]
    plan = plan_stage(task, "joint")
    assert plan.time.communication.data == pytest.approx(
        plan.ranks[0].states.trainable * bytes_each / 2 / INFINIBAND, rel=1e-3
    )
    assert plan.time.communication.hidden == 0


def test_what_overlaps_is_not_waited_for() -> None:
    plain = communication(parallel=TP8_DP2)
    reduced = communication(parallel=dataclasses.replace(TP8_DP2, overlap_grad_reduce=True))
    both = communication(parallel=dataclasses.replace(TP8_DP2, overlap_grad_reduce=True, overlap_param_gather=True))
    # gradients have four of six bytes; 12 rows take 8 s, so that two thirds of one hide 0.2 s of reduction
    assert reduced.hidden == pytest.approx(plain.data * 2 / 3)
    assert both.hidden == pytest.approx(plain.data) and both.data == pytest.approx(0, abs=1e-12)
    slow = dataclasses.replace(find_gpu("h100"), network=INFINIBAND / 100)
    task = dataclasses.replace(make_task(parallel=dataclasses.replace(TP8_DP2, overlap_grad_reduce=True)), gpu=slow)
    time = plan_stage(task, "joint").time
    assert time.seconds is not None
    row = (time.seconds - time.communication.total) / 12
    assert time.communication.hidden == pytest.approx(2 / 3 * row)
    assert time.communication.hidden + time.communication.data == pytest.approx(100 * plain.data)


def test_the_gate_alone_is_next_to_nothing() -> None:
    gate = 5120 * 512 + 512 + 512 + 1
    assert communication("warmup", parallel=TP8_DP2).data == pytest.approx(2 * gate * 4 / 2 / INFINIBAND, rel=1e-3)


@pytest.mark.parametrize(
    ("gpus", "stride", "count", "rate"),
    [
        (16, 1, 8, NVLINK),  # a node
        (16, 2, 4, NVLINK),
        (8, 1, 3, NVLINK),
        (16, 8, 2, INFINIBAND),  # one rank of the group on each node
        (32, 2, 16, 4 * INFINIBAND),  # four
        (16, 1, 16, 8 * INFINIBAND),
        (24, 1, 3, 8 * INFINIBAND),  # some group lies on two nodes
    ],
)
def test_links(gpus: int, stride: int, count: int, rate: float) -> None:
    assert group_rate(find_gpu("h100"), gpus, stride=stride, count=count) == min(rate, NVLINK)


def test_tensor_parallelism_pays_off_with_nvlink_only() -> None:
    """Sixteen GPUs as 8 x 2 and as 2 x 8, whose bubble is larger."""

    def seconds(gpu: str, tensor: int) -> float:
        parallel = ParallelConfig(tensor=tensor, pipeline=16 // tensor, sequence=True)
        task: Task = make_task(gpu=gpu, parallel=parallel)
        found = plan_stage(task, "joint").time.seconds
        assert found is not None
        return found

    assert seconds("h100", 8) < seconds("h100", 2)
    assert seconds("l40s", 8) > seconds("l40s", 2)
