"""Host memory of saves: sums done by hand, and a snapshot that was really taken."""

import dataclasses

import pytest
import torch

from megafuser.checkpoint.snapshot import Snapshot, take_snapshot
from megafuser.config.checkpoint import CheckpointConfig
from megafuser.config.compute import ParallelConfig, PrecisionConfig
from megafuser.config.gate import GateConfig
from megafuser.config.optimizer import OptimizerConfig
from megafuser.config.stages import StageConfig
from megafuser.planning.checkpoint_memory import checkpoint_gather, save_memory
from megafuser.planning.plan import plan_stage
from megafuser.runtime.distributed import single_process_cpu
from megafuser.training.checkpoint_contents import training_state
from megafuser.training.engine import Engine
from megafuser.training.optimizer_state import private_storages
from tests.unit.planning.architectures import EQUAL
from tests.unit.planning.made_up_tasks import make_task
from tests.unit.planning.pretended import GATE, build_chunks
from tests.unit.planning.rows import make_row

TP8_PP2 = ParallelConfig(tensor=8, pipeline=2, sequence=True)
ON_EXIT = CheckpointConfig(reshardable="on_exit")


def test_the_trio_on_two_nodes() -> None:
    """One data-parallel rank: nothing to spare by keeping the ranks' own form; 12 + 2 bytes a parameter of a stage."""
    task = make_task(parallel=TP8_PP2)
    joint = plan_stage(task, "joint")
    fullest = 8 * joint.ranks[1].states.trainable
    memory = save_memory(task, joint)
    assert memory.on_exit == pytest.approx(12 * fullest, rel=0.01)
    assert memory.always == memory.by_rank == memory.between_steps == pytest.approx(14 * fullest, rel=0.01)
    waited = make_task(parallel=TP8_PP2, checkpoint=CheckpointConfig(async_=False))
    assert save_memory(waited, joint).always == memory.on_exit


def test_ranks_that_share_states() -> None:
    """Four nodes of two pipeline stages; a node of first ranks gathers, the others hold their halves for a while."""
    task = make_task(gpus=32, parallel=TP8_PP2, checkpoint=ON_EXIT)
    joint = plan_stage(task, "joint")
    fullest = 8 * joint.ranks[1].states.trainable
    memory = save_memory(task, joint)
    assert memory.always == pytest.approx((12 + 12 / 2 + 2) * fullest, rel=0.01)
    assert memory.on_exit == pytest.approx((12 + 12 / 2) * fullest, rel=0.01)
    assert memory.between_steps == memory.by_rank == pytest.approx((12 / 2 + 2) * fullest, rel=0.01)
    waited = make_task(gpus=32, parallel=TP8_PP2, checkpoint=dataclasses.replace(ON_EXIT, async_=False))
    assert save_memory(waited, joint).between_steps == 0


@pytest.mark.parametrize(
    ("gpus", "parallel", "nodes"),
    [
        # by node, how many ranks of each stage are the first of their data-parallel group
        (16, TP8_PP2, [(8, 0), (0, 8)]),
        (32, TP8_PP2, [(8, 0), (0, 8)]),
        (32, ParallelConfig(tensor=4, pipeline=2, sequence=True), [(4, 0), (0, 4)]),
        (8, ParallelConfig(tensor=2, pipeline=2), [(2, 2)]),
    ],
)
def test_gathering_for_a_checkpoint(gpus: int, parallel: ParallelConfig, nodes: list[tuple[int, int]]) -> None:
    task = make_task(EQUAL, gpus=gpus, parallel=parallel)
    joint = plan_stage(task, "joint")
    sizes = [12 * rank.states.trainable for rank in joint.ranks]
    expected = max(sum(count * size for count, size in zip(node, sizes, strict=True)) for node in nodes)
    assert checkpoint_gather(task, joint) == pytest.approx(expected, rel=0.03)


def test_nothing_is_gathered_of_states_that_are_whole() -> None:
    task = make_task(EQUAL, gpus=2, optimizer=OptimizerConfig(distributed=False))
    assert checkpoint_gather(task, plan_stage(task, "joint")) == 0


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_a_snapshot_holds_what_is_planned(dtype: str) -> None:
    """The tensors that a snapshot keeps, each storage once, and nothing else was copied."""
    precision = PrecisionConfig(dtype=dtype)  # type: ignore[arg-type]
    task = make_task(EQUAL, gpus=1, gpu=None, precision=precision, gate=GateConfig(GATE))
    with single_process_cpu():
        chunks = build_chunks(EQUAL, ParallelConfig(), dtype)
        settings = StageConfig(steps=2, samples_per_domain=1)
        engine = Engine(chunks, OptimizerConfig(), settings, domains=1, joint=True)
        engine.step([make_row([40, 30, 20], 96, len(EQUAL))])
        state = training_state(engine, 1, is_loading=False)
        snapshot = take_snapshot(state, copy=True, private=private_storages(engine.optimizer, state["optimizer"]))
        held = storages(snapshot)
        shared = held.keys() & {p.untyped_storage().data_ptr() for chunk in chunks for p in chunk.parameters()}
        assert not shared
        random_state = torch.get_rng_state().nbytes
        planned = save_memory(task, plan_stage(task, "joint")).always
        assert sum(held.values()) - random_state == pytest.approx(planned, rel=1e-3)


def storages(snapshot: Snapshot) -> dict[int, int]:
    tensors = (data for items in snapshot._files.values() for _, data in items if isinstance(data, torch.Tensor))
    kept = [tensor.untyped_storage() for tensor in tensors]
    return {storage.data_ptr(): storage.nbytes() for storage in kept}
