"""What a check found, and the report of all checks: `report.json` with every number, `report.md` to read."""

import json
import math
import platform
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

from megafuser.runtime.kernels import describe

PASSED, FAILED, SKIPPED = "passed", "FAILED", "skipped"


class Skip(Exception):
    """A check that cannot be made here; says why."""


@dataclass(frozen=True)
class Finding:
    """What a check measured.

    Attributes:
        numbers: by name.
        limits: for some of the numbers, the largest value that passes; NaN never does.
        series: curves, by name.
    """

    numbers: Mapping[str, float]
    limits: Mapping[str, float] = field(default_factory=dict)
    series: Mapping[str, list[float]] = field(default_factory=dict)

    def exceeded(self) -> list[str]:
        """The numbers beyond their limits."""
        return [name for name, limit in self.limits.items() if not self.numbers[name] <= limit]


@dataclass(frozen=True)
class Check:
    """A finding with what became of it.

    Attributes:
        part: of the suite.
        name: of the check within the part.
        status: `passed`, `FAILED` or `skipped`.
        note: why it was skipped, or how it failed.
        seconds: that it took.
        finding: empty where skipped or broken off.
    """

    part: str
    name: str
    status: str
    note: str
    seconds: float
    finding: Finding


def run_check(part: str, name: str, measure: Callable[[], Finding]) -> Check:
    """Makes one check; whatever goes wrong in it is its failure, so that one broken kernel does not hide the others."""
    start = time.perf_counter()
    finding, note, status = Finding({}), "", PASSED
    try:
        finding = measure()
        if exceeded := finding.exceeded():
            status, note = FAILED, "beyond the limit: " + ", ".join(exceeded)
    except Skip as skip:
        status, note = SKIPPED, str(skip)
    except Exception:
        status, note = FAILED, traceback.format_exc()
    return Check(part, name, status, note, time.perf_counter() - start, finding)


def environment(device: torch.device, backend: str) -> dict[str, str]:
    """What the numbers were measured on."""
    on_gpu = device.type == "cuda"
    kernels, versions = describe(backend, None)
    return {
        "device": torch.cuda.get_device_name(device) if on_gpu else f"CPU, {platform.machine()}",
        "CUDA": str(torch.version.cuda),
        "cuDNN": str(torch.backends.cudnn.version()) if on_gpu else "unused",
        "Python": platform.python_version(),
        "kernels": kernels,
        "versions": versions,
    }


def write_report(directory: Path, facts: Mapping[str, str], checks: list[Check]) -> None:
    """Writes `report.json` and `report.md`; NaN and infinities become words, which every JSON reader takes."""
    directory.mkdir(parents=True, exist_ok=True)
    content = {"environment": dict(facts), "checks": [_plain(asdict(check)) for check in checks]}
    (directory / "report.json").write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    (directory / "report.md").write_text(markdown(facts, checks), encoding="utf-8")


def markdown(facts: Mapping[str, str], checks: list[Check]) -> str:
    """The report as text."""
    counts = ", ".join(f"{sum(check.status == status for check in checks)} {status}" for status in _STATUSES)
    lines = ["# megafuser on this machine", "", f"{counts}; {sum(check.seconds for check in checks):.0f} s", ""]
    lines += [f"- {name}: {value}" for name, value in facts.items()]
    for part in dict.fromkeys(check.part for check in checks):
        lines += ["", f"## {part}", "", "| check | status | number | value | at most |", "|---|---|---|---|---|"]
        for check in (check for check in checks if check.part == part):
            rows = [
                (name, f"{value:.6g}", f"{check.finding.limits[name]:g}" if name in check.finding.limits else "")
                for name, value in check.finding.numbers.items()
            ] or [("", "", "")]
            lines += [f"| {check.name} | {check.status} | {' | '.join(row)} |" for row in rows]
        notes = [check for check in checks if check.part == part and check.note]
        lines += [line for check in notes for line in ("", f"{check.name}: {check.status}:", *_quoted(check.note))]
    return "\n".join(lines) + "\n"


_STATUSES = (PASSED, FAILED, SKIPPED)


def _quoted(note: str) -> list[str]:
    return ["```", *note.rstrip().splitlines(), "```"]


def _plain(value: object) -> object:
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_plain(inner) for inner in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
