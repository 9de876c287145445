"""The plan as text: a table for each stage, and what follows from it in a line each.

The numbers come from `planning.plan`.
"""

from megafuser.figures.text_table import aligned
from megafuser.planning.communication import Communication
from megafuser.planning.gpus import GIB, Gpu
from megafuser.planning.plan import RankPlan, StagePlan, Task

_COLUMNS = ("weights", "gradients", "optimizer", "activations", "recompute", "logits", "pipeline", "working", "other")


def heading(task: Task, limit: float | None) -> list[str]:
    """What is planned: two lines."""
    config, parallel = task.config, task.config.parallel
    parameters = sum(card.parameter_count() for card in task.cards.values())
    virtual = f" x VP {parallel.virtual_pipeline}" if parallel.virtual_pipeline > 1 else ""
    layout = f"TP {parallel.tensor} x PP {parallel.pipeline}{virtual} x DP {task.data_parallel}"
    where = f"{task.gpus} {task.gpu.name}" if task.gpu else f"{task.gpus} CPU ranks"
    room = f" of {limit / GIB:.1f} GiB" if limit else ""
    formats = config.precision.dtype + (f", fp8 {config.precision.fp8}" if config.precision.fp8 else "")
    return [
        f"{len(task.cards)} specialists, {parameters / 1e9:.2f} billion parameters, on {where}{room}",
        f"{layout}{', sequence parallel' if parallel.sequence else ''}; {formats}; backend {task.backend}; "
        f"recompute {config.memory.recompute}",
    ]


def stage_lines(task: Task, stage: StagePlan, steps: int) -> list[str]:
    """One stage: its step, a row for each pipeline rank in GiB, and the time."""
    work = stage.work
    rows = f"{work.micro_batches} row{'s' if work.micro_batches > 1 else ''} of {work.width}"
    lines = [
        f"{stage.name}: {work.samples} samples a step, {work.tokens:,.0f} tokens, {rows} on each data-parallel rank",
        *aligned([_header(), *(_row(task, rank) for rank in stage.ranks)]),
    ]
    if stage.host_per_node:
        lines.append(f"host memory for offloaded states: {stage.host_per_node / GIB:.1f} GiB a node")
    return [*lines, *_time_lines(task, stage, steps)]


def _header() -> list[str]:
    return ["GiB on each rank", "layers", "parameters", *_COLUMNS, "total"]


def _row(task: Task, rank: RankPlan) -> list[str]:
    states = rank.states
    weights = states.weights + rank.fp8_weights
    values = (
        *(weights, states.gradients, states.optimizer, rank.activations, rank.recompute, rank.logits),
        *(rank.communication, rank.working, rank.reserved, rank.total),
    )
    ranks = task.gpus // task.config.parallel.pipeline
    return [
        f"pipeline rank {rank.pipeline_rank} ({ranks} ranks)" if ranks > 1 else f"pipeline rank {rank.pipeline_rank}",
        "+".join(map(str, rank.layers)),
        f"{states.parameters / 1e6:,.1f} M",
        *(_gib(value) for value in values),
    ]


def _gib(size: float) -> str:
    return f"{size / GIB:.2f}" if size else "-"


def _time_lines(task: Task, stage: StagePlan, steps: int) -> list[str]:
    time, patience = stage.time, task.config.evaluation.patience
    waits = f"pipeline bubble {time.bubble:.1%}, busiest rank {time.imbalance:.2f} times the mean"
    if time.seconds is None or time.mfu is None:
        return [f"step: {time.flops:.3g} FLOPs, {waits}; no time is predicted for a CPU"]
    peak = "FP8 peak" if task.config.precision.fp8 else "peak"
    return [
        f"step: {time.flops:.3g} FLOPs, {time.seconds:.2f} s where ranks compute at {task.mfu:.0%} of the {peak} "
        f"({time.mfu:.1%} with all waits), {time.tokens_per_second:,.0f} tokens/s; {waits}",
        *_communication_lines(time.communication, task.gpu),
        f"stage: {steps} steps, {duration(steps * time.seconds)}"
        if patience is None
        else f"stage: at most {steps} steps, at most {duration(steps * time.seconds)}: evaluation.patience={patience} "
        "may end it before",
    ]


def _communication_lines(communication: Communication, gpu: Gpu | None) -> list[str]:
    """What of a step's time is not computing; nothing where ranks have nothing to say to each other."""
    hidden = communication.hidden + communication.tensor_hidden
    if gpu is None or communication.total + hidden == 0:
        return []
    behind = f", {hidden:.2f} s more while ranks compute" if hidden else ""
    return [
        f"of it communication: {communication.total:.2f} s (tensor {communication.tensor:.2f}, pipeline "
        f"{communication.pipeline:.2f}, data {communication.data:.2f}){behind}; at {gpu.link / 1e9:.0f} GB/s within a "
        f"node and {gpu.network / 1e9:.0f} between nodes"
    ]


def duration(seconds: float) -> str:
    """Seconds in the largest unit of which there are two."""
    for unit, size in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} seconds"
