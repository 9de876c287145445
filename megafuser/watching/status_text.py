"""A run's status in words, for a terminal.

Finding it out is `watching.status`.
"""

from datetime import datetime, timedelta

from megafuser.watching.status import Status

_WIDTH = 12


def status_text(status: Status) -> str:
    """A headline and a line for each thing that is known."""
    rows = [*_speed(status), *_numbers(status), *_checkpoint(status)]
    lines = [_headline(status), *(f"  {name:<{_WIDTH}} {text}" for name, text in rows)]
    if status.warning_count:
        shown = len(status.warnings)
        which = "" if shown == status.warning_count else f", the last {shown}"
        lines.append(f"  {'warnings':<{_WIDTH}} {status.warning_count}{which}:")
        lines += [f"    {_clock(event['time'])}  {event['stage']}: {event['message']}" for event in status.warnings]
    return "\n".join(lines)


def _headline(status: Status) -> str:
    if status.stage is None:
        return f"{status.run_dir}: not started"
    of = f" of {status.steps:,} ({status.step / status.steps:.1%})" if status.steps else ""
    head = f"{status.run_dir}: {status.stage}, step {status.step:,}{of}, {status.state}"
    if status.state == "stalled" and status.last_line_age is not None and status.step_seconds is not None:
        head += (
            f": no new line for {duration(status.last_line_age)}, where a step takes {duration(status.step_seconds)}; "
            "look whether the job is still there"
        )
    if status.said:
        head += f": {status.said}"
    return head


def _speed(status: Status) -> list[tuple[str, str]]:
    rows = []
    if status.step_seconds is not None:
        parts = [f"{status.step_seconds:.2f} s/step"]
        if status.tokens_per_second is not None:
            parts.append(f"{status.tokens_per_second:,.0f} tokens/s")
        if status.mfu is not None:
            parts.append(f"MFU {status.mfu:.1%}")
        rows.append(("speed", ", ".join(parts)))
    if status.ends_at is not None and status.remaining is not None and status.pace is not None:
        then = "".join(f"; then {name}, {steps:,} steps" for name, steps in status.later_stages.items())
        pace = f"{status.pace:.2f} s a step with validations and checkpoints"
        latest = "at the latest " if status.patience is not None and not status.early else ""
        rows.append(("ends", f"{latest}{_clock(status.ends_at)}, in {duration(status.remaining)} ({pace}){then}"))
    if status.starts > 1:
        rows.append(("started", f"{status.starts} times"))
    return rows


def _numbers(status: Status) -> list[tuple[str, str]]:
    rows = []
    for name, line in (("train", status.train), ("validation", status.valid)):
        if line is None:
            continue
        domains = [key.removeprefix("loss/") for key in line if key.startswith("loss/")]
        own = ", ".join(f"{domain} {line[f'loss/{domain}']:.4f}" for domain in domains)
        age = f", {duration(status.last_line_age)} ago" if name == "train" and status.last_line_age is not None else ""
        # a line has no loss where that was not finite
        absent = "skipped, since its loss was not finite" if name == "train" else "the loss was not finite"
        loss = f"loss {line['loss']:.4f} ({own})" if "loss" in line else absent
        rows.append((name, f"step {line['step']:,}{age}: {loss}"))
    line = status.train or {}
    gates: dict[str, list[str]] = {}
    for key, weight in line.items():
        if key.startswith("gate/"):
            _, domain, specialist = key.split("/")
            gates.setdefault(domain, []).append(f"{specialist} {weight:.2f}")
    rows += [("gate" if not index else "", f"{d}: {', '.join(own)}") for index, (d, own) in enumerate(gates.items())]
    if status.loss_spikes:
        rows.append(("spikes", f"{status.loss_spikes} steps with a loss far above those before them"))
    return rows


def _checkpoint(status: Status) -> list[tuple[str, str]]:
    if status.checkpoint is None:
        return [("checkpoint", "none yet")] if status.stage is not None else []
    return [("checkpoint", f"{status.checkpoint.path}, {duration(status.checkpoint.age)} old")]


def duration(seconds: float) -> str:
    """`3.2 s`, `0:12:05`, `2 days, 1:00:00`."""
    return f"{seconds:.1f} s" if seconds < 60 else str(timedelta(seconds=round(seconds)))


def _clock(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds):%a %Y-%m-%d %H:%M:%S}"
