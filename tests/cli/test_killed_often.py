"""Both stages, killed without warning again and again at moments of all kinds, and always started again."""

import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from megafuser.config.run_directory import RunDirectory
from tests.cli.stopping import WITHIN, finish, read, start
from tests.fused_case import make_case, write_config

STEPS, INTERVAL = 80, 3
STAGES = ("warmup", "joint")

Moment = Callable[[Path, str], bool]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("killed_often")
    values = make_case(root, train=6, valid=1)
    values["data"]["sequence_length"] = 256
    for stage, rate in (("warmup", 1e-2), ("joint", 1e-3)):
        values[stage] = {"steps": STEPS, "samples_per_domain": 2, "lr": rate}
    values["evaluation"]["interval"] = values["checkpoint"]["interval"] = INTERVAL
    return write_config(root / "config.yaml", values)


def lines(run: Path) -> int:
    metrics = RunDirectory(run).metrics_file
    return metrics.read_bytes().count(b"\n") if metrics.exists() else 0


def moments(generator: random.Random, run: Path) -> list[tuple[str, Moment]]:
    """When to kill: each is asked again and again while the stage runs."""
    begun = time.monotonic()
    delay = generator.uniform(0, 12)
    there = lines(run) + generator.randint(1, 2 * INTERVAL)

    def hidden(directory: Path) -> set[str]:
        return {path.name for stage in STAGES for path in (directory / stage).glob(".step*")}

    left = hidden(run)  # by an earlier kill, until the stage has begun

    def is_saving(directory: Path, stage: str) -> bool:
        return not hidden(directory).issubset(left)

    def is_renamed(directory: Path, stage: str) -> bool:
        """A checkpoint has its name, and `latest` does not name it yet."""
        found = RunDirectory(directory)
        folder, latest = directory / stage, found.latest(stage)
        steps = sorted(path for path in folder.glob("step_*")) if folder.exists() else []
        return bool(steps) and steps[-1] != latest

    return [
        ("any time", lambda directory, stage: time.monotonic() - begun > delay),
        ("between steps", lambda directory, stage: lines(directory) >= there),
        ("during a save", is_saving),
        ("after the rename", is_renamed),
    ]


def kill_once(config: Path, run: Path, stage: str, moment: Moment) -> bool:
    """Starts a stage and kills it at a moment; returns whether it was finished before."""
    process = start(stage, config, run)
    deadline = time.monotonic() + WITHIN
    while process.poll() is None and not moment(run, stage):
        assert time.monotonic() < deadline
        time.sleep(0.0005)
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        finish(process)
        return False
    code, _, err = finish(process)
    assert code == 0, err
    return True


def kill_often(config: Path, run: Path, kills: int, seed: int) -> list[str]:
    """Runs both stages to their ends; returns the kinds of moments at which they were killed."""
    generator = random.Random(seed)
    killed: list[str] = []
    for stage in STAGES:
        share = kills // 2 if stage == "warmup" else kills
        while len(killed) < share:
            kind, moment = moments(generator, run)[len(killed) % 4]
            if kill_once(config, run, stage, moment):
                break  # it was faster
            killed.append(kind)
        code, _, err = finish(start(stage, config, run))
        assert code == 0, err
    return killed


@pytest.mark.slow
def test_twenty_kills_change_no_number(config: Path, tmp_path: Path) -> None:
    whole, run = tmp_path / "whole", tmp_path / "run"
    for stage in STAGES:
        code, _, err = finish(start(stage, config, whole))
        assert code == 0, err
    killed = kill_often(config, run, kills=20, seed=1)
    print(killed)
    assert len(killed) >= 16 and len(set(killed)) == 4
    assert read(run) == read(whole)
    for stage in STAGES:
        steps = [line["step"] for line in read(run) if line["stage"] == stage and line["split"] == "train"]
        assert steps == list(range(1, STEPS + 1))
        assert not [path for path in (run / stage).iterdir() if path.name.startswith(".")]
