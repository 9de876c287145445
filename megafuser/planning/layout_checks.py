"""Refuses to plan what a stage would refuse to run, by the stages' own checks."""

from megafuser.planning.plan import Task
from megafuser.runtime.world import check_world_size
from megafuser.specialist.layout_checks import check_layout


def check_task(task: Task) -> None:
    """Checks the layout against the number of GPUs and every specialist.

    Raises:
        UserError: what does not fit, and the nearest that does.
    """
    check_world_size(task.config.parallel, task.gpus)
    check_layout(task.cards, task.config, task.gpus)
