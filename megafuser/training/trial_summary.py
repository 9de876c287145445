"""What a trial took, beside what was planned.

The steps are run by `training.trial`; the plan is `planning.plan`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
from megatron.core import parallel_state

from megafuser.config.run_directory import RunDirectory
from megafuser.planning.compute import default_mfu
from megafuser.planning.gpus import GIB, gpu_of_driver
from megafuser.planning.plan import StagePlan, Task, plan_stage
from megafuser.planning.table import duration
from megafuser.planning.workload import Samples
from megafuser.runtime.distributed import by_every_rank, is_rank_zero
from megafuser.training.loop import Loop
from megafuser.training.metrics import Line, peak_memory_gib
from megafuser.training.session import Session
from megafuser.watching.json_lines import read_lines

_SLOW_STEPS = 3
"""The first ones, which allocate memory, choose kernels and fill caches."""


@dataclass(frozen=True)
class Measured:
    """What a trial's steps were like; the same on every rank but for `lines`, which rank 0 has.

    Attributes:
        lines: training lines of `metrics.jsonl`.
        peaks: by pipeline rank, the peak memory of its fullest rank in GiB.
        valid_seconds: of a validation, on rank 0.
        samples: all steps' samples.
    """

    lines: list[Line]
    peaks: Mapping[int, float]
    valid_seconds: float
    samples: Samples

    @property
    def kept(self) -> list[Line]:
        """The lines without those of the first steps."""
        return self.lines[min(_SLOW_STEPS, len(self.lines) - 1) :]

    def middle(self, key: str) -> float:
        """The median of a number over the steps that count."""
        return float(median(line[key] for line in self.kept))


def measured(loop: Loop, valid_seconds: float) -> Measured:
    """Collects what the ranks know; every rank calls it, at the end of the steps."""
    session, stage = loop.session, loop.stage
    own = parallel_state.get_pipeline_model_parallel_rank(), peak_memory_gib(loop.engine.device)
    found = by_every_rank(lambda *_: own)
    peaks: dict[int, float] = {}
    for rank, peak in sorted(found):
        peaks[rank] = max(peak, peaks.get(rank, 0.0))
    lines: list[Line] = []
    if is_rank_zero():
        every = read_lines(RunDirectory(Path(session.config.run_dir)).metrics_file, ("stage", "split"))
        lines = [line for line in every if (line["stage"], line["split"]) == (stage, "train")]
    steps = [loop.batches.lengths(step) for step in range(1, loop.settings.steps + 1)]
    lengths, responses = (np.concatenate(part) for part in zip(*steps, strict=True))
    return Measured(lines, peaks, valid_seconds, Samples(lengths, responses, "the trial's"))


def summary(session: Session, stage: str, found: Measured) -> list[str]:
    """A few lines for the user."""
    config, seconds = session.config, found.middle("step_seconds")
    plan, mfu = _planned(session, stage, found)
    planned = f"; planned {plan.time.seconds:.3g} s at --mfu {mfu}" if plan.time.seconds is not None else ""
    left_out = len(found.lines) - len(found.kept)
    steps = config.stage(stage).steps
    validations = -(-steps // config.evaluation.interval)
    return [
        f"step: {seconds:.3g} s (median of {len(found.kept)}, the first {left_out} left out), "
        f"{found.middle('tokens') / seconds:,.0f} tokens/s{planned}",
        *_memory_lines(session, found, plan),
        _speed_line(session, found, plan, mfu),
        f"stage: {steps} steps, {duration(steps * seconds + validations * found.valid_seconds)} with "
        f"{validations} validation{'s' * (validations > 1)} of {found.valid_seconds:.3g} s, without saving",
    ]


def _planned(session: Session, stage: str, found: Measured) -> tuple[StagePlan, float]:
    """The plan for samples as long as the trial's, and the share of the peak that it takes for granted."""
    config = session.config
    task = Task(
        config=config,
        cards={source.name: source.card for source in session.sources},
        samples=found.samples,
        gpu=gpu_of_driver(session.device_name),
        gpus=session.world.size,
        mfu=default_mfu(config.precision),
        backend=session.backend,
    )
    return plan_stage(task, stage), task.mfu


def _memory_lines(session: Session, found: Measured, plan: StagePlan) -> list[str]:
    """Peak and plan of each pipeline rank; what the plan sets aside is not a tensor of PyTorch's."""
    what = "peak memory of tensors" if session.device.type == "cuda" else "peak memory of the process"
    return [
        f"{what}: {peak:.2f} GiB on the fullest rank{f' of pipeline rank {rank}' * (len(found.peaks) > 1)}; "
        f"planned {(plan.ranks[rank].total - plan.ranks[rank].reserved) / GIB:.2f} GiB of tensors"
        + (f", {plan.ranks[rank].reserved / GIB:.0f} GiB beside them" if plan.ranks[rank].reserved else "")
        for rank, peak in found.peaks.items()
    ]


def _speed_line(session: Session, found: Measured, plan: StagePlan, mfu: float) -> str:
    """Operations a second; on a known device their share of the peak, and what to plan with."""
    tflops = found.middle("tflops_per_device")
    line = f"speed: {tflops:.3g} TFLOP/s on each {'GPU' if session.device.type == 'cuda' else 'process'}"
    if "mfu" in found.lines[0]:
        line += f", MFU {found.middle('mfu'):.1%}"
    fitting = fitting_mfu(plan, mfu, found.middle("step_seconds"))
    return line if fitting is None else f"{line}; megafuser plan says the same time with --mfu {fitting:.2g}"


def fitting_mfu(plan: StagePlan, mfu: float, seconds: float) -> float | None:
    """The share of the peak with which a plan would say the time that a step took.

    Args:
        plan: a plan of the same step.
        mfu: with which it was made.
        seconds: what the step took.

    Returns:
        None where there is none: no rate is known, or less time was taken than communication is planned to take.
    """
    time = plan.time
    if time.seconds is None:
        return None
    others = time.communication.total + time.host_seconds
    if seconds <= others:
        return None
    share = mfu * (time.seconds - others) / (seconds - others)
    return share if share <= 1 else None
