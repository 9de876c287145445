"""Host memory that saving a checkpoint of the joint stage takes beside what training holds there, on the fullest node.

What is copied or gathered stays until it is written: `megafuser.checkpoint.snapshot` and
`megafuser.training.optimizer_state_gather`.
"""

from dataclasses import dataclass

from megafuser.planning.gpus import PER_NODE
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
    always = _fullest_node(task, joint, gathered=True, copied=settings.async_)
    shared = task.config.optimizer.distributed and task.data_parallel > 1
    by_rank = _fullest_node(task, joint, gathered=False, copied=settings.async_) if shared else always
    return SaveMemory(
        between_steps=by_rank if settings.reshardable == "on_exit" else always,
        always=always,
        by_rank=by_rank,
        on_exit=_fullest_node(task, joint, gathered=True, copied=False),
    )


def _fullest_node(task: Task, joint: StagePlan, *, gathered: bool, copied: bool) -> float:
    """Adds up what the ranks of each node hold, in megatron-core's order: tensor fastest, then data, then pipeline."""
    tensor, ranks = task.config.parallel.tensor, task.data_parallel
    by_node: dict[int, float] = {}
    for rank in range(task.gpus):
        data_rank = rank // tensor % ranks
        states = joint.ranks[rank // (tensor * ranks)].states
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
        by_node[rank // PER_NODE] = by_node.get(rank // PER_NODE, 0.0) + size
    return max(by_node.values())
