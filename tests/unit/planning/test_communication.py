"""Seconds of communication against arithmetic by hand, for three models of 40 layers of width 5120 on H100."""

import dataclasses

import pytest

from megafuser.config.compute import MemoryConfig, ParallelConfig, PrecisionConfig
from megafuser.config.optimizer import OptimizerConfig
from megafuser.config.stages import JointConfig, WarmupConfig
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


# Seconds in which TP 8 gathers a stream in bf16 or reduces it to shares, and in which a rank computes one of the three
# products of queries, keys and values, and of gate and up projection, at the peak in bf16.
COLLECTIVE = 7 / 8 * STREAM / NVLINK  # 81.56 microseconds
QKV = 2 * 4096 * 5120 * 15360 / 8 / 989e12  # 81.43
UP = 2 * 4096 * 5120 * 27648 / 8 / 989e12  # 146.57
FASTER = 1979 / 989  # are products in FP8


def test_layers_that_ranks_share() -> None:
    """60 layers on a rank, each with two gatherings and two reductions forward.

    Backward two gatherings of gradients are waited for. Two of inputs and two reductions travel beside products, which
    hide all of them but 0.13 microseconds beside those of queries, keys and values.
    """
    assert communication().tensor == pytest.approx(60 * 25 * 1e-6 * (6 * 81.5559 + 2 * 0.1296), rel=1e-6)
    assert communication().tensor == pytest.approx(60 * 25 * (6 * COLLECTIVE + 2 * (COLLECTIVE - QKV)))
    assert communication().tensor_hidden == pytest.approx(60 * 24 * 2 * (QKV + COLLECTIVE))
    # 48 rows, forward only
    assert communication("warmup").tensor == pytest.approx(60 * 49 * 4 * COLLECTIVE)
    assert communication("warmup").tensor_hidden == 0
    assert communication(parallel=ParallelConfig(pipeline=16)).tensor == 0


def test_whole_reductions_wait_forward_only() -> None:
    """They move what a gathering and a reduction to shares do; backward both are beside products of weights."""
    plain = dataclasses.replace(TP8_PP2, sequence=False)
    assert communication("warmup", parallel=plain).tensor == communication("warmup").tensor
    backward = (2 * COLLECTIVE - QKV) + (2 * COLLECTIVE - UP)
    assert communication(parallel=plain).tensor == pytest.approx(60 * 25 * (4 * COLLECTIVE + backward))
    assert communication(parallel=plain).tensor_hidden == pytest.approx(60 * 24 * (QKV + UP))


@pytest.mark.parametrize(
    ("recipe", "gathered", "gradient"),
    [
        ("delayed", 1, 1),
        ("tensorwise", 1, 1),
        ("blockwise", 1 + 4 / 128, 2 * (1 + 4 / 128)),  # by rows and by columns, each with scales
    ],
)
def test_fp8_is_gathered_and_not_reduced(recipe: str, gathered: float, gradient: float) -> None:
    """Of bf16's two bytes: reductions are as they were, and products at twice the speed hide less of them."""
    precision = PrecisionConfig(fp8=recipe)  # type: ignore[arg-type]
    byte = COLLECTIVE / 2
    forward = 2 * (gathered + 2) * byte
    assert communication("warmup", precision=precision).tensor == pytest.approx(60 * 49 * forward)
    beside = [(sent * byte, product / FASTER) for sent in (gathered, 2) for product in (QKV, UP)]
    joint = communication(precision=precision)
    backward = 2 * gradient * byte + sum(max(0, sent - product) for sent, product in beside)
    assert joint.tensor == pytest.approx(60 * 25 * (forward + backward))
    assert joint.tensor_hidden == pytest.approx(60 * 24 * sum(min(pair) for pair in beside))
    plain = dataclasses.replace(TP8_PP2, sequence=False)  # nothing is gathered
    wide, narrow = (communication("warmup", parallel=plain, precision=one) for one in (PrecisionConfig(), precision))
    assert wide == narrow


def test_slow_links_outlast_the_products() -> None:
    """PCIe at 32 GB/s: a collective takes 1147 microseconds, the two products 222 and 400."""
    task = dataclasses.replace(make_task(parallel=TP8_PP2), gpu=find_gpu("l40s"))
    exchanged = plan_stage(task, "joint").time.communication
    waited = 6 * 1146.88 + 2 * (1146.88 - 222.46) + 2 * (1146.88 - 400.42)
    assert exchanged.tensor == pytest.approx(60 * 25 * 1e-6 * waited, rel=1e-4)
    assert exchanged.tensor_hidden == pytest.approx(60 * 24 * 1e-6 * 2 * (222.46 + 400.42), rel=1e-4)


def test_what_products_hide_is_no_matter_of_how_near_to_the_peak_a_rank_comes() -> None:
    task = make_task(parallel=TP8_PP2)
    one, other = (plan_stage(dataclasses.replace(task, mfu=mfu), "joint").time for mfu in (0.2, 0.4))
    assert one.communication == other.communication


def test_passes_forward_that_are_done_twice() -> None:
    forward = 60 * 25 * 4 * COLLECTIVE
    for how, more in (("full", forward), ("selective", 0)):
        again = communication(memory=MemoryConfig(recompute=how))  # type: ignore[arg-type]
        assert again.tensor == pytest.approx(communication().tensor + more)
        assert again.tensor_hidden == communication().tensor_hidden
    twice = communication("warmup", warmup=WarmupConfig(load_balance=0.1))
    assert twice.tensor == pytest.approx(2 * communication("warmup").tensor)
    assert twice.pipeline == pytest.approx(2 * communication("warmup").pipeline)


def test_frozen_specialists_exchange_nothing_backward() -> None:
    frozen, whole = communication(joint=JointConfig(frozen=("math",))), communication()
    forward = 60 * 25 * 4 * COLLECTIVE
    assert frozen.tensor == pytest.approx(forward + (whole.tensor - forward) * 2 / 3)
    assert frozen.tensor_hidden == pytest.approx(whole.tensor_hidden * 2 / 3)
    again = communication(joint=JointConfig(frozen=("math",)), memory=MemoryConfig(recompute="full"))
    assert again.tensor == pytest.approx(frozen.tensor + forward * 2 / 3)


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
