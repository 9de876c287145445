"""Both stages, in processes of their own, killed again and again. `test_killed_stage` kills once, and quickly."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.fused_case import make_case, write_config
from tests.metrics_lines import read_growing_lines
from tests.parallel.launch import ROOT

STEPS = 24


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A case with a checkpoint every third step."""
    values = make_case(tmp_path, train=6, valid=1)
    stage = {"steps": STEPS, "samples_per_domain": 2, "lr": 1e-3}
    values |= {"warmup": dict(stage), "joint": dict(stage), "checkpoint": {"interval": 3, "keep": 2}}
    write_config(tmp_path / "config.yaml", values)
    return tmp_path


def start(root: Path, stage: str, run: str = "run") -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "megafuser", stage, "--config", str(root / "config.yaml")]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [*command, f"run_dir={root / run}"], cwd=root, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip


def finish(root: Path, stage: str, run: str = "run") -> None:
    """Runs a stage to its end."""
    process = start(root, stage, run)
    error = process.communicate(timeout=600)[1]
    assert process.returncode == 0, error


def lines(root: Path, stage: str, run: str = "run") -> list[dict[str, Any]]:
    """The stage's whole lines, without timings."""
    return read_growing_lines(root / run / "metrics.jsonl", stage)


def kill_after(root: Path, stage: str, step: int) -> None:
    """Starts a stage and kills it once it has logged a step."""
    process = start(root, stage)
    try:
        deadline = time.monotonic() + 600
        while not any(line["step"] >= step for line in lines(root, stage)):
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < deadline
            time.sleep(0.005)
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert process.returncode == -signal.SIGKILL


def assert_complete(root: Path, stage: str) -> None:
    assert [line["step"] for line in lines(root, stage) if line["split"] == "train"] == list(range(1, STEPS + 1))
    assert (root / "run" / stage / "latest").read_text() == f"step_{STEPS:06d}\n"
    names = {path.name for path in (root / "run" / stage).iterdir()}
    assert names == {"latest", f"step_{STEPS - 3:06d}", f"step_{STEPS:06d}"}


@pytest.mark.slow
def test_stages_that_are_killed_again_and_again_equal_uninterrupted_ones(root: Path) -> None:
    """Killed before the first checkpoint, at others, and while one is written; the numbers stay the same."""
    for stage in ("warmup", "joint"):
        finish(root, stage, run="whole")
        for step in (1, 3, 5, 6, 9):
            kill_after(root, stage, step)
        finish(root, stage)
        assert_complete(root, stage)
        assert lines(root, stage) == lines(root, stage, run="whole")
