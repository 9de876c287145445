"""Stages as programs that are signalled: on one rank, and on two that start as srun starts them."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from megafuser.config.run_directory import RunDirectory
from tests.fused_case import make_case, write_config
from tests.metrics_lines import read_lines
from tests.parallel.launch import ROOT
from tests.ports import free_ports

WITHIN = 300  # seconds, on a machine that is busy


def write_quick_config(root: Path, *, steps: int, interval: int) -> Path:
    """A configuration of warm-up steps that take hundredths of seconds, with a checkpoint every `interval`."""
    values = make_case(root, train=6, valid=1)
    values["data"]["sequence_length"] = 256
    values["warmup"] = {"steps": steps, "samples_per_domain": 2, "lr": 1e-2}
    values["evaluation"]["interval"] = values["checkpoint"]["interval"] = interval
    return write_config(root / "config.yaml", values)


def start(stage: str, config: Path, run: Path, *more: str, **environment: str) -> subprocess.Popen[str]:
    """Starts a stage in a process group of its own."""
    return start_command(stage, "--config", str(config), f"run_dir={run}", *more, **environment)


def start_command(*arguments: str, **environment: str) -> subprocess.Popen[str]:
    """Starts a command in a process group of its own."""
    command = [sys.executable, "-m", "megafuser", *arguments]
    variables = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | environment
    return subprocess.Popen(
        command, env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def start_ranks(count: int, stage: str, config: Path, run: Path, *more: str) -> list[subprocess.Popen[str]]:
    """As srun does: a process for each task, which reads rank and world size from Slurm's variables."""
    return [start(stage, config, run, *more, **variables) for variables in rank_variables(count)]


def rank_variables(count: int) -> list[dict[str, str]]:
    """What srun sets for each task, and the job's script for all."""
    shared = {
        **{"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0", "SLURM_NTASKS": str(count), "SLURM_JOB_NODELIST": "localhost"},
        **{"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_ports(1)[0], "SLURM_STEP_NUM_TASKS": str(count)},
    }
    return [shared | {"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)} for rank in range(count)]


def wait_for_lines(run: Path, lines: int, process: subprocess.Popen[str]) -> None:
    """Waits until the metrics have so many lines."""
    metrics, deadline = RunDirectory(run).metrics_file, time.monotonic() + WITHIN
    while not metrics.exists() or metrics.read_bytes().count(b"\n") < lines:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "no steps in time"
        time.sleep(0.005)


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Its exit code and what it said."""
    try:
        out, err = process.communicate(timeout=WITHIN)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    return process.returncode, out, err


def read(run: Path) -> list[dict[str, Any]]:
    """Lines of metrics.jsonl without timings."""
    return read_lines(RunDirectory(run).metrics_file)
