"""Refuses to plan what a stage would refuse to run, by the stages' own checks."""

from megafuser.planning.plan import Task


def check_task(task: Task) -> None:
    """Checks the layout against the number of GPUs and every specialist.

    Raises:
        UserError: what does not fit, and the nearest that does.
    """
    from megafuser.runtime.distributed import check_world_size
    from megafuser.specialist.transformer_config import check_layout

    config = task.config
    check_world_size(config.parallel, task.gpus)
    for name, card in task.cards.items():
        check_layout(name, card, config.parallel, config.data.sequence_length)
