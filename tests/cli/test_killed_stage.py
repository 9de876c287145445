"""A stage that is killed without warning and started again, and one that is asked to do what is done."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from megafuser.cli.main import main
from megafuser.config.run_directory import RunDirectory
from tests.cli.stopping import WITHIN, read
from tests.parallel.launch import ROOT

STEPS = 30
INTERVAL = 5


@pytest.fixture(scope="module")
def killed(saving_config: Path) -> Path:
    """A run that was killed between two checkpoints, with the half-written line that a kill may leave."""
    run = saving_config.parent / "killed"
    for _ in range(5):  # a busy machine may see too late that it has come so far
        if kill_after(saving_config, run, lines=3 * INTERVAL):
            break
        shutil.rmtree(run)
    directory = RunDirectory(run)
    assert directory.latest("warmup") is not None and not directory.step_directory("warmup", STEPS).exists()
    with directory.metrics_file.open("a", encoding="utf-8") as file:
        file.write('{"stage": "warmup", "split": "train", "st')
    return run


def finish(config: Path, run: Path) -> None:
    """Runs the stage to its end, in this process: torch takes seconds to import."""
    assert main(["warmup", "--config", str(config), f"run_dir={run}"]) == 0


def kill_after(config: Path, run: Path, lines: int) -> bool:
    """Starts the stage as a program and kills it when the metrics have that many lines; whether before its end."""
    command = [sys.executable, "-m", "megafuser", "warmup", "--config", str(config), f"run_dir={run}"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    metrics = RunDirectory(run).metrics_file
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + WITHIN
        while not metrics.exists() or metrics.read_bytes().count(b"\n") < lines:
            assert process.poll() is None or metrics.exists(), "it ended by itself"
            assert time.monotonic() < deadline, "no steps in time"
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
    assert process.returncode in (0, -signal.SIGKILL)
    return process.returncode != 0 and not RunDirectory(run).step_directory("warmup", STEPS).exists()


@pytest.mark.parametrize("has_checkpoint", [True, False], ids=["between checkpoints", "before the first checkpoint"])
def test_killed_and_run_again_equals_uninterrupted(
    saving_config: Path, saving_run: Path, killed: Path, tmp_path: Path, has_checkpoint: bool
) -> None:
    """Every step stands in the metrics once, with the same numbers to the last bit."""
    again = Path(shutil.copytree(killed, tmp_path / "again"))
    if not has_checkpoint:
        shutil.rmtree(again / "warmup")
    finish(saving_config, again)
    lines = read(again)
    assert [line["step"] for line in lines if line["split"] == "train"] == list(range(1, STEPS + 1))
    assert [line["step"] for line in lines if line["split"] == "valid"] == list(range(INTERVAL, STEPS + 1, INTERVAL))
    assert lines == read(saving_run)
    kept = [f"step_{step:06d}" for step in (STEPS - 2 * INTERVAL, STEPS - INTERVAL, STEPS)]
    assert sorted(path.name for path in (again / "warmup").iterdir()) == ["latest", *kept]


def test_a_finished_stage_says_so_before_torch_is_imported(saving_config: Path, saving_run: Path) -> None:
    """And touches nothing."""
    times = {path: path.stat().st_mtime_ns for path in saving_run.rglob("*")}
    code = (
        "import sys; from megafuser.cli.main import main\n"
        f"code = main(['warmup', '--config', {str(saving_config)!r}, {f'run_dir={saving_run}'!r}])\n"
        "assert 'torch' not in sys.modules\nsys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )
    said = f"warmup is finished: {saving_run}/warmup/step_{STEPS:06d}\n"
    assert (done.returncode, done.stdout, done.stderr) == (0, said, "")
    assert {path: path.stat().st_mtime_ns for path in saving_run.rglob("*")} == times
