"""Host memory that saving a checkpoint of the joint stage takes beside what training holds there, on the fullest node.

What is copied or gathered stays until it is written: `megafuser.checkpoint.snapshot` and
`megafuser.training.optimizer_state_gather`. What a checkpoint takes of the disk is `planning.disk`.
"""

from collections.abc import Callable
from dataclasses import dataclass

from megafuser.planning.gpus import PER_NODE
from megafuser.planning.memory import StateBytes
from megafuser.planning.plan import StagePlan, Task

# weight, and both of Adam's moments, in float32
_STATE_BYTES = 12


@dataclass(frozen=True)
class SaveMemory:
    """Bytes of host memory on the fullest node.

    Attributes:
        between_steps: of a save between two steps, as `checkpoint` in the configuration has it.
        always: the same with `checkpoint.reshardable: always`.
        by_rank: the same with `on_exit`, where ranks share the optimizer's states.
        on_exit: of the last save, which training waits for.
    """

    between_steps: float
    always: float
    by_rank: float
    on_exit: float


def save_memory(task: Task, joint: StagePlan) -> SaveMemory:
    """The memory that saves of the joint stage take.

    Args:
        task: what is planned.
        joint: the plan of its joint stage.
    """
    settings = task.config.checkpoint
    always = _saved(task, joint, gathered=True, copied=settings.async_)
    shared = task.config.optimizer.distributed and task.data_parallel > 1
    by_rank = _saved(task, joint, gathered=False, copied=settings.async_) if shared else always
    return SaveMemory(
        between_steps=by_rank if settings.reshardable == "on_exit" else always,
        always=always,
        by_rank=by_rank,
        on_exit=_saved(task, joint, gathered=True, copied=False),
    )


def checkpoint_gather(task: Task, joint: StagePlan) -> float:
    """Bytes of host memory, on the fullest node, that saving the joint stage's optimizer takes for a while.

    The layout-independent form (`fully_reshardable`) gathers weights and moments in float32 over data parallelism, to
    the first data-parallel rank of each tensor- and pipeline-parallel place.
    """
    if not task.config.optimizer.distributed:
        return 0.0
    return _fullest_node(task, joint, lambda states, data_rank: 0.0 if data_rank else 3 * states.gradients)


def _saved(task: Task, joint: StagePlan, *, gathered: bool, copied: bool) -> float:
    """What a save holds on the fullest node.

    Args:
        task: what is planned.
        joint: the plan of its joint stage.
        gathered: whether the first data-parallel ranks get all of the optimizer's states.
        copied: whether what is written is a copy.
    """
    ranks = task.data_parallel

    def held(states: StateBytes, data_rank: int) -> float:
        elements = states.gradients / 4
        size = 0.0
        if data_rank == 0 and copied:
            size += states.weights  # its replicas are the same, and write nothing
        if not task.config.optimizer.distributed:
            size += _STATE_BYTES * elements if data_rank == 0 and copied else 0.0
        elif gathered:
            share = _STATE_BYTES * elements / ranks if ranks > 1 else 0.0
            size += share + (_STATE_BYTES * elements if data_rank == 0 else 0.0)
        elif copied:
            size += _STATE_BYTES * elements / ranks
        return size

    return _fullest_node(task, joint, held)


def _fullest_node(task: Task, joint: StagePlan, held: Callable[[StateBytes, int], float]) -> float:
    """Adds up what the ranks of each node hold, in megatron-core's order: tensor fastest, then data, then pipeline.

    Args:
        task: what is planned.
        joint: the plan of its joint stage.
        held: bytes that a rank holds, of its states and its data-parallel rank.
    """
    tensor, ranks = task.config.parallel.tensor, task.data_parallel
    by_node: dict[int, float] = {}
    for rank in range(task.gpus):
        size = held(joint.ranks[rank // (tensor * ranks)].states, rank // tensor % ranks)
        by_node[rank // PER_NODE] = by_node.get(rank // PER_NODE, 0.0) + size
    return max(by_node.values())
