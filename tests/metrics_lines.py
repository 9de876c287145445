"""Lines of metrics.jsonl as tests compare them: without what differs from one run to the next of the same."""

import json
from pathlib import Path
from typing import Any

TIMING = frozenset(
    ("tokens_per_second", "step_seconds", "checkpoint_stall_seconds", "tflops_per_device", "peak_memory_gib")
)


def read_lines(metrics_file: Path, stage: str | None = None) -> list[dict[str, Any]]:
    """The lines of a stage or of all, without timings; fails at one that is not whole."""
    return _parse(metrics_file.read_text(encoding="utf-8").splitlines(), stage)


def read_growing_lines(metrics_file: Path, stage: str) -> list[dict[str, Any]]:
    """The same while the stage writes: none before the file is there, and not a last line that has no end yet."""
    text = metrics_file.read_text(encoding="utf-8") if metrics_file.exists() else ""
    return _parse(text.split("\n")[:-1], stage)


def _parse(texts: list[str], stage: str | None) -> list[dict[str, Any]]:
    return [
        {key: value for key, value in line.items() if key not in TIMING}
        for line in map(json.loads, texts)
        if stage in (None, line["stage"])
    ]
