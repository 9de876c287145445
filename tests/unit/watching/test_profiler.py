"""Traces of the wanted steps, on the wanted ranks, and of nothing else."""

import json
from pathlib import Path

import pytest
import torch

from megafuser.config.watching import ProfileConfig
from megafuser.watching.profiler import StepProfiler


def run(profiler: StepProfiler, steps: range) -> None:
    """Multiplies two matrices in each step."""
    for step in steps:
        profiler.before(step)
        torch.ones(8, 8) @ torch.ones(8, 8)
        profiler.after(step)
    profiler.close()


def products(path: Path) -> int:
    """Matrix products in a trace."""
    return sum(entry.get("name") == "aten::mm" for entry in json.loads(path.read_text())["traceEvents"])


@pytest.mark.parametrize(
    ("steps", "name", "count"),
    [
        (range(1, 10), "joint.rank1.steps3-5", 3),
        (range(1, 5), "joint.rank1.steps3-4", 2),
        (range(4, 10), "joint.rank1.steps4-5", 2),
    ],
    ids=["whole", "a stage that ends before", "a stage that goes on within"],
)
def test_the_wanted_steps_are_in_the_trace(tmp_path: Path, steps: range, name: str, count: int) -> None:
    settings = ProfileConfig(stage="joint", start=3, steps=3, ranks=(1,))
    run(StepProfiler(settings, "joint", 1, tmp_path / "profile"), steps)
    assert [path.name for path in (tmp_path / "profile").iterdir()] == [f"{name}.pt.trace.json"]
    assert products(tmp_path / "profile" / f"{name}.pt.trace.json") == count


@pytest.mark.parametrize(
    ("settings", "stage", "rank"),
    [
        (None, "joint", 0),
        (ProfileConfig(start=1), "warmup", 0),
        (ProfileConfig(start=1), "joint", 1),
        (ProfileConfig(start=50), "joint", 0),
    ],
    ids=["off", "another stage", "another rank", "never reached"],
)
def test_otherwise_nothing_is_written(tmp_path: Path, settings: ProfileConfig | None, stage: str, rank: int) -> None:
    run(StepProfiler(settings, stage, rank, tmp_path / "profile"), range(1, 10))
    assert list(tmp_path.iterdir()) == []
