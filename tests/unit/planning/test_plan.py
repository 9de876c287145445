"""Whole plans: what adds up, what nodes hold, and the size of the 13B trio against arithmetic by hand."""

import pytest

from megafuser.config.compute import MemoryConfig, ParallelConfig, PrecisionConfig
from megafuser.config.optimizer import OptimizerConfig
from megafuser.config.stages import JointConfig, WarmupConfig
from megafuser.errors import UserError
from megafuser.planning.gpus import GIB, find_gpu
from megafuser.planning.plan import Task, plan_stage, rank_states
from tests.unit.planning.architectures import ULTRAFUSER_13B
from tests.unit.planning.made_up_tasks import make_task

TP8_PP2 = ParallelConfig(tensor=8, pipeline=2, sequence=True)


def test_sixteen_ranks_hold_the_13b_trio() -> None:
    task = make_task(parallel=TP8_PP2)
    plan = plan_stage(task, "joint")
    held = sum(8 * rank.states.parameters for rank in plan.ranks)
    cards = ULTRAFUSER_13B.values()
    padding = sum((32128 - card.vocab_size) * 2 * 5120 for card in cards)
    norms = sum(7 * (2 * 40 + 1) * 5120 for _ in cards)  # which every tensor-parallel rank has
    gates = 8 * (5120 * 512 + 512 + 512 + 1)
    assert held == sum(card.parameter_count() for card in cards) + padding + norms + gates
    # 625 GB: the paper-sized number that makes spreading and offloading necessary
    states = sum(8 * (r.states.weights + r.states.gradients + r.states.optimizer) for r in plan.ranks)
    assert states == pytest.approx(18 * 39.05e9, rel=0.01)


def test_a_total_is_the_sum_of_its_parts() -> None:
    rank = plan_stage(make_task(parallel=TP8_PP2, precision=PrecisionConfig(fp8="delayed")), "joint").ranks[1]
    states = rank.states.weights + rank.states.gradients + rank.states.optimizer
    others = rank.activations + rank.recompute + rank.logits + rank.communication + rank.working + rank.reserved
    assert rank.total == states + rank.fp8_weights + others
    assert rank.fp8_weights == 2 * 60 * ULTRAFUSER_13B["text"].layer_matrix_count() / 8


def test_stages_differ_where_they_should() -> None:
    task = make_task(parallel=ParallelConfig(tensor=8, pipeline=4, sequence=True), gpus=32)
    joint, warmup = plan_stage(task, "joint"), plan_stage(task, "warmup")
    activations = [rank.activations for rank in joint.ranks]
    assert activations[0] > activations[1] > activations[2], "the earlier, the more micro-batches in flight"
    assert [rank.logits > 0 for rank in joint.ranks] == [False, False, False, True]
    assert [rank.activations > 0 for rank in warmup.ranks] == [False, False, False, True]
    assert [rank.states.optimizer > 0 for rank in warmup.ranks] == [False, False, False, True]
    assert [rank.layers for rank in joint.ranks] == [(10, 10, 10)] * 4


def test_recompute_trades_activations() -> None:
    kept = [
        plan_stage(make_task(parallel=TP8_PP2, memory=MemoryConfig(recompute=how)), "joint").ranks[0]
        for how in ("none", "selective", "full")
    ]
    assert kept[0].activations > kept[1].activations > 5 * kept[2].activations
    assert kept[0].recompute == 0 < kept[1].recompute < kept[2].recompute


def test_more_data_parallel_ranks_hold_less_each() -> None:
    alone = rank_states(make_task(gpus=16, parallel=TP8_PP2), joint=True, pipeline_rank=0)
    spread = rank_states(make_task(gpus=64, parallel=TP8_PP2), joint=True, pipeline_rank=0)
    assert spread.optimizer == pytest.approx(alone.optimizer / 4, rel=1e-3)
    assert spread.weights == pytest.approx(alone.weights, rel=1e-6)
    copied = make_task(gpus=64, parallel=TP8_PP2, optimizer=OptimizerConfig(distributed=False))
    assert rank_states(copied, joint=True, pipeline_rank=0).optimizer == alone.optimizer


def test_layouts_that_stages_refuse() -> None:
    make_task(parallel=TP8_PP2).check()
    with pytest.raises(UserError, match=r"--gpus 8 is not a multiple of 16 \(tensor 8 x pipeline 2\); try --gpus 16"):
        make_task(gpus=8, parallel=TP8_PP2).check()
    with pytest.raises(UserError, match=r"parallel\.pipeline"):
        make_task(gpus=64, parallel=ParallelConfig(pipeline=64)).check()


def test_fp8_is_refused_where_the_gpu_has_none() -> None:
    fp8 = PrecisionConfig(fp8="delayed")
    with pytest.raises(
        UserError, match=r"precision\.fp8: delayed needs .* a100-80gb has none; set precision\.fp8=null"
    ):
        make_task(gpu="a100-80gb", parallel=TP8_PP2, precision=fp8).check()
    make_task(gpu="a100-80gb", parallel=TP8_PP2).check()
    for gpu in ("l40s", "h100-pcie", "b200"):
        make_task(gpu=gpu, parallel=TP8_PP2, precision=fp8).check()


def test_gpus() -> None:
    assert find_gpu("H100").memory_gib * GIB == pytest.approx(85.5e9, rel=0.01)
    with pytest.raises(UserError, match="--gpu a100: unknown; say a100-80gb or a100-40gb"):
        find_gpu("a100")


def test_a_frozen_specialist_has_weights_and_a_forward_only() -> None:
    """Of three alike, two thirds of the gradients, states, activations and backward operations are left."""
    whole, part = (plan_stage(frozen_task(names), "joint") for names in ((), ("math",)))
    for all_of_it, left in zip(whole.ranks, part.ranks, strict=True):
        assert left.states.parameters == all_of_it.states.parameters
        assert left.states.gradients == pytest.approx(all_of_it.states.gradients * 2 / 3, rel=0.01)
        assert left.states.optimizer == pytest.approx(all_of_it.states.optimizer * 2 / 3, rel=0.01)
    assert part.ranks[0].activations == pytest.approx(whole.ranks[0].activations * 2 / 3, rel=0.01)
    # three forwards and two backwards, of twice a forward each
    assert part.time.flops == pytest.approx(whole.time.flops * 7 / 9, rel=1e-4)


def test_all_frozen_is_planned_as_the_warm_up_is() -> None:
    task = frozen_task(tuple(ULTRAFUSER_13B))
    joint, warmup = plan_stage(task, "joint"), plan_stage(task, "warmup")
    assert [rank.states for rank in joint.ranks] == [rank.states for rank in warmup.ranks]
    assert [rank.activations for rank in joint.ranks] == pytest.approx([rank.activations for rank in warmup.ranks])
    # half the samples a step
    assert joint.time.flops == pytest.approx(warmup.time.flops / 2)


def frozen_task(names: tuple[str, ...]) -> Task:
    return make_task(parallel=TP8_PP2, joint=JointConfig(frozen=names))


def test_load_balance_takes_another_forward_without_heads() -> None:
    plain, balanced = (
        plan_stage(make_task(parallel=TP8_PP2, warmup=WarmupConfig(load_balance=c)), "warmup").time for c in (0.0, 0.1)
    )
    assert plain.seconds is not None and balanced.seconds is not None
    assert 1.9 < balanced.seconds / plain.seconds < 2.0
    assert balanced.flops == plain.flops
