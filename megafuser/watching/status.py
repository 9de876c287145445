"""What a run's directory tells of the run, without torch: where it is, how fast, when it ends, what it warned of.

Whether a process is still there cannot be seen from files (it may be on another machine). A run whose last line is
much older than its steps take is called stalled; it may also have been killed. Putting it into words is
`watching.status_text`.
"""

import json
import math
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from megafuser.checkpoint.validation_record import ValidationRecord
from megafuser.config.load import load_config
from megafuser.config.run_directory import MANIFEST, RunDirectory, step_number
from megafuser.config.schema import STAGES
from megafuser.errors import UserError, explained_paths
from megafuser.runtime.json_values import json_safe
from megafuser.watching.json_lines import read_lines

RECENT = 50
"""Steps that a speed is the median of."""
WARNINGS = 5
STALLED_STEPS = 20.0
STALLED_SECONDS = 300.0
"""A run is called stalled after both: so many steps' time, and so many seconds, without a line."""

_ENDS = ("failed", "stopped", "finished")


@dataclass(frozen=True)
class Checkpoint:
    """A stage's last complete checkpoint; `age` in seconds."""

    path: str
    step: int
    age: float


@dataclass(frozen=True)
class Status:
    """A run at one moment; times are seconds since 1970, durations are seconds, what is not known is None.

    Attributes:
        run_dir: the run's directory.
        state: `not started`, `starting`, `running`, `stalled`, `stopped`, `failed` or `finished`.
        stage: the one that ran last.
        step: its last step.
        steps: how many it has.
        patience: validations without improvement after which it ends before them; None: it does not.
        early: whether it has ended so; then `said` tells of the validations.
        later_stages: the run's stages that come after it, with their numbers of steps.
        step_seconds: median of the last steps.
        pace: seconds a step since the stage was last started, with validations and checkpoints.
        tokens_per_second: median of the last steps.
        mfu: likewise; on devices with a known peak only.
        remaining: until the stage's last step.
        ends_at: when that is.
        last_line_age: since the last line of `metrics.jsonl`.
        train: the last training line.
        valid: the last validation line.
        checkpoint: the stage's last complete one.
        starts: how often the stage was started.
        loss_spikes: steps of the stage that were flagged.
        warnings: the last ones, errors included, oldest first: `time`, `event`, `stage`, `message`.
        warning_count: of all stages and starts.
        said: what the run ended with, if it did not come to the last step.
    """

    run_dir: str
    state: str
    stage: str | None = None
    step: int = 0
    steps: int | None = None
    patience: int | None = None
    early: bool = False
    later_stages: dict[str, int] = field(default_factory=dict)
    step_seconds: float | None = None
    pace: float | None = None
    tokens_per_second: float | None = None
    mfu: float | None = None
    remaining: float | None = None
    ends_at: float | None = None
    last_line_age: float | None = None
    train: dict[str, Any] | None = None
    valid: dict[str, Any] | None = None
    checkpoint: Checkpoint | None = None
    starts: int = 0
    loss_spikes: int = 0
    warnings: list[dict[str, Any]] = field(default_factory=list)
    warning_count: int = 0
    said: str | None = None

    def to_json(self) -> str:
        """All fields by name."""
        return json.dumps(json_safe(asdict(self)), indent=2, ensure_ascii=False)


@explained_paths()
def read_status(path: str | Path, now: float | None = None) -> Status:
    """Looks at a run's directory.

    Args:
        path: the directory.
        now: seconds since 1970; the clock's where it is not given.

    Raises:
        UserError: there is no such directory, it is not a run's, or it cannot be read.
    """
    run, now = RunDirectory(Path(path)), time.time() if now is None else now
    if not run.path.is_dir():
        raise UserError(f"no run directory at {path}: no such directory; give a configuration's run_dir")
    if not run.config_file.is_file() and not run.metrics_file.is_file():
        raise UserError(
            f"{path} is not a run directory: it has neither {run.config_file.name} nor metrics.jsonl; give a "
            "configuration's run_dir"
        )
    lines = read_lines(run.metrics_file, ("stage", "split", "step"))
    happened = read_lines(run.events_file, ("time", "event", "stage", "message"))
    told = [event for event in happened if event["event"] in ("warning", "error", "failed")]
    common: dict[str, Any] = {"warnings": told[-WARNINGS:], "warning_count": len(told)}
    written = run.metrics_file.stat().st_mtime if run.metrics_file.is_file() else None
    stage = _stage(lines, happened)
    if stage is None:
        return Status(str(path), "not started", **common)
    steps, patience = _settings(run)
    train, valid = _of(lines, stage, "train"), _of(lines, stage, "valid")
    checkpoint = _checkpoint(run, stage, now)
    run_out = _run_out(train, valid, patience)
    return Status(
        run_dir=str(path),
        stage=stage,
        steps=steps.get(stage),
        patience=patience,
        later_stages={name: steps[name] for name in STAGES[STAGES.index(stage) + 1 :] if name in steps},
        train=train[-1] if train else None,
        valid=valid[-1] if valid else None,
        checkpoint=checkpoint,
        starts=sum(event["event"] == "started" and event["stage"] == stage for event in happened),
        loss_spikes=sum(bool(line.get("loss_spike")) for line in train),
        **_speed(train),
        **_progress(train, happened, stage, steps.get(stage), run_out, checkpoint, written, now),
        **common,
    )


def _of(lines: list[dict[str, Any]], stage: str, split: str) -> list[dict[str, Any]]:
    return [line for line in lines if line.get("stage") == stage and line.get("split") == split]


def _stage(lines: list[dict[str, Any]], happened: list[dict[str, Any]]) -> str | None:
    """The stage that was started last, or that has the last line where no start is known."""
    starts = [event for event in happened if event["event"] == "started"]
    known = starts or lines
    return str(known[-1]["stage"]) if known else None


def _settings(run: RunDirectory) -> tuple[dict[str, int], int | None]:
    """Of each stage, how many steps, and the patience of both; nothing where the configuration cannot be read."""
    try:
        config = load_config(run.config_file)
    except UserError:
        return {}, None
    return {"warmup": config.warmup.steps, "joint": config.joint.steps}, config.evaluation.patience


def _run_out(train: list[dict[str, Any]], valid: list[dict[str, Any]], patience: int | None) -> str | None:
    """What ended a stage with its last step, where validation did; as the stage itself decides and says it."""
    record = ValidationRecord()
    for line in valid:
        record = record.after(line["step"], line.get("loss", math.nan), line.get("samples"))
    if not (record.has_run_out(patience) and train and record.step == train[-1]["step"]):
        return None
    return f"stopped early: {record}"


def _checkpoint(run: RunDirectory, stage: str, now: float) -> Checkpoint | None:
    latest = run.latest(stage)
    if latest is None:
        return None
    step = step_number(latest.name)
    assert step is not None, "RunDirectory.latest gives a step's directory"
    return Checkpoint(str(latest), step, max(0.0, now - (latest / MANIFEST).stat().st_mtime))


def _speed(train: list[dict[str, Any]]) -> dict[str, Any]:
    recent = train[-RECENT:]
    return {
        key: median(values) if (values := [line[key] for line in recent if line.get(key) is not None]) else None
        for key in ("step_seconds", "tokens_per_second", "mfu")
    }


def _progress(
    train: list[dict[str, Any]], happened: list[dict[str, Any]], stage: str, steps: int | None, run_out: str | None,
    checkpoint: Checkpoint | None, written: float | None, now: float,
) -> dict[str, Any]:  # fmt: skip
    """Step, state, pace, and when it ends."""
    own = [event for event in happened if event["stage"] == stage]
    start = next((event for event in reversed(own) if event["event"] == "started"), None)
    step = max(train[-1]["step"] if train else 0, start["step"] if start else 0)
    last = max(written or 0.0, start["time"] if start else 0.0)
    end = own[-1] if own and own[-1]["event"] in _ENDS else None
    # validations and checkpoints are in what passed since the start, but the file's time is of use in place only
    done = step - start["step"] if start else 0
    passed = (written or 0.0) - start["time"] if start else 0.0
    seconds = _speed(train)["step_seconds"]
    pace = passed / done if done > 0 and passed > 0 and (seconds is None or passed / done > 0.5 * seconds) else seconds
    # what has run out is started again for other samples only, and goes on
    starts_again = end is None and start is not None and start["step"] == step
    early = run_out is not None and (steps is None or step < steps) and not starts_again
    finished = early or (steps is not None and step >= steps)
    # the last checkpoint may still be on its way to the disk, or have been killed there
    saved = end is not None or start is None or (checkpoint is not None and checkpoint.step >= step)
    state = _state(finished and saved, end, step_seconds=seconds, has_line=done > 0 or start is None, age=now - last)
    is_going = state in ("running", "starting", "stalled") and steps is not None and pace is not None
    left = 0 if steps is None or early else max(0, steps - step)
    remaining = left * pace if is_going and pace is not None else None
    return {
        "step": step,
        "state": state,
        "pace": pace,
        "remaining": remaining,
        "ends_at": last + remaining if remaining is not None and state == "running" else None,
        "last_line_age": max(0.0, now - written) if written is not None and train else None,
        "early": early and state in ("running", "finished"),
        "said": end["message"] if end and state in ("stopped", "failed") else run_out if early else None,
    }


def _state(
    finished: bool, end: dict[str, Any] | None, *, step_seconds: float | None, has_line: bool, age: float
) -> str:
    if end is not None and end["event"] == "failed":
        return "failed"
    if end is not None and end["event"] == "stopped":
        return "stopped"
    if finished:
        return "finished"
    if age > max(STALLED_SECONDS, STALLED_STEPS * (step_seconds or 0.0)):
        return "stalled"
    return "running" if has_line else "starting"
