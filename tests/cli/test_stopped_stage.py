"""Stages that are asked to stop: everything is saved, the code is 75, and the rest comes out as if nothing had been."""

import json
import signal
from pathlib import Path

import pytest

from megafuser.checkpoint.manifest import read_manifest, verify_files
from megafuser.cli.main import main
from megafuser.config.run_directory import RunDirectory
from tests.cli.stopping import finish, read, start, start_ranks, wait_for_lines, write_quick_config
from tests.parallel.launch import run_commands

STEPS = 30


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Steps of hundredths of seconds, and no checkpoint but the last."""
    return write_quick_config(tmp_path_factory.mktemp("stopped"), steps=STEPS, interval=1000)


@pytest.fixture(scope="module")
def whole(config: Path) -> Path:
    run = config.parent / "whole"
    assert main(["warmup", "--config", str(config), f"run_dir={run}"]) == 0
    return run


def check_saved(run: Path) -> int:
    """Returns the step of the checkpoint, which is the last one in the metrics."""
    latest = RunDirectory(run).latest("warmup")
    assert latest is not None
    manifest = read_manifest(latest)
    assert verify_files(latest, manifest) == []
    step = manifest.content["step"]
    assert [line["step"] for line in read(run) if line["split"] == "train"] == list(range(1, step + 1))
    assert not [path for path in (run / "warmup").iterdir() if path.name.startswith(".")]
    return step


def test_a_signal(config: Path, whole: Path, tmp_path: Path) -> None:
    """SIGTERM; two ranks get the other one."""
    run = tmp_path / "run"
    process = start("warmup", config, run)
    wait_for_lines(run, 3, process)
    process.send_signal(signal.SIGTERM)
    code, _, err = finish(process)
    step = check_saved(run)
    assert code == 75 and 3 <= step < STEPS
    assert f"stopped at step {step}, since SIGTERM was received; saved {run}/warmup/step_{step:06d}" in err
    events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    assert events[-1]["event"] == "stopped"
    assert not [event for event in events if event["event"] == "warning" and "stopped" in event["message"]]
    assert main(["warmup", "--config", str(config), f"run_dir={run}"]) == 0
    assert read(run) == read(whole)


def test_a_signal_to_one_of_two_ranks(config: Path, tmp_path: Path) -> None:
    """Rank 0 leaves with 75, the other with 0, as srun needs it; the second start goes on where the first stopped."""
    run, undisturbed = tmp_path / "run", tmp_path / "undisturbed"
    ranks = start_ranks(2, "warmup", config, run)
    wait_for_lines(run, 3, ranks[0])
    ranks[1].send_signal(signal.SIGUSR1)
    ended = [finish(rank) for rank in ranks]
    assert [code for code, _, _ in ended] == [75, 0], ended
    step = check_saved(run)
    assert 3 <= step < STEPS
    assert f"stopped at step {step}, since SIGUSR1 was received; saved {run}/warmup/step_{step:06d}" in ended[0][2]
    run_commands(2, [["warmup", "--config", str(config), f"run_dir={directory}"] for directory in (run, undisturbed)])
    assert read(run) == read(undisturbed)


@pytest.mark.usefixtures("whole")  # so that nothing is left to import, which would count
def test_the_time_limit(config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In this process; that a process ends with such a code, a signal shows."""
    run = tmp_path / "run"
    arguments = ["--config", str(config), f"run_dir={run}", "--time-limit", "00:00:06", "warmup.steps=100000"]
    code = main(["warmup", *arguments])
    err = capsys.readouterr().err
    assert code == 75 and "since the time limit is near" in err, err
    if RunDirectory(run).latest("warmup") is not None:  # a busy machine may not come to its first step
        check_saved(run)


@pytest.mark.parametrize("given", ["1", "00:00", "1:60", "x"])
def test_a_time_limit_that_is_none(
    config: Path, tmp_path: Path, given: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code = main(["warmup", "--config", str(config), f"run_dir={tmp_path / 'run'}", "--time-limit", given])
    assert code == 2 and "must be HH:MM or HH:MM:SS" in capsys.readouterr().err


@pytest.mark.slow  # as `tests/unit/runtime/test_heartbeat.py`, but of a stage
def test_a_rank_that_is_lost_is_named(config: Path, tmp_path: Path) -> None:
    """Stopped by force, it answers nothing, and its connections stay open: collectives would wait for long."""
    run = tmp_path / "run"
    ranks = start_ranks(2, "warmup", config, run, "faults.silent_seconds=30", "warmup.steps=100000")
    try:
        wait_for_lines(run, 3, ranks[0])
        ranks[1].send_signal(signal.SIGSTOP)
        code, _, err = finish(ranks[0])
        assert code == 1
        assert "rank 1 on" in err and "gave no sign for 30 s" in err
        assert "failed" in [json.loads(line)["event"] for line in (run / "events.jsonl").read_text().splitlines()]
    finally:
        ranks[1].kill()
        ranks[1].wait()
