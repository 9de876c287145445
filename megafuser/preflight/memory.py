"""Whether a stage will fit into the GPUs' memory, by the planner's arithmetic.

Nothing is allocated or measured: a trial does that (`training.trial`).
"""

from collections.abc import Mapping

from megafuser.config.schema import RunConfig
from megafuser.planning.advice import advise
from megafuser.planning.compute import default_mfu
from megafuser.planning.gpus import GIB, Gpu
from megafuser.planning.plan import Task, plan_stage
from megafuser.planning.workload import find_samples
from megafuser.specialist.card import ArchitectureCard


def misfit(
    config: RunConfig, stage: str, cards: Mapping[str, ArchitectureCard], *, gpus: int, gpu: Gpu, backend: str
) -> list[str]:
    """A line where a stage needs more memory than a GPU has, with the nearest change that fits; none where it fits.

    Args:
        config: the run's configuration, with a layout that works.
        stage: `warmup` or `joint`.
        cards: the specialists' architectures, by name.
        gpus: number of ranks.
        gpu: the kind that each has, with the memory that the driver shows.
        backend: `torch` or `transformer_engine`.
    """
    samples = find_samples(config, None)
    task = Task(
        config=config,
        cards=cards,
        samples=samples,
        gpu=gpu,
        gpus=gpus,
        mfu=default_mfu(config.precision),
        backend=backend,
    )
    limit = gpu.memory_gib * GIB
    peak = plan_stage(task, stage).peak
    if peak <= limit:
        return []
    advice = advise(task, limit, most_gpus=gpus)
    fitting = f"{advice.text} would fit" if advice else "megafuser plan says on how many GPUs it would fit"
    return [f"{stage} needs {peak / GIB:.1f} of {gpu.memory_gib:.1f} GiB by the plan; {fitting}"]
