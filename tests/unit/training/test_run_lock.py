"""One start at a time trains in a run's directory."""

import json
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from megafuser.config.run_directory import RunDirectory
from megafuser.runtime import file_lock
from megafuser.runtime.file_lock import lock
from megafuser.runtime.world import whereabouts
from megafuser.training import run_lock
from megafuser.training.run_lock import alone_in
from tests.unit.training.small_run import SmallRun

GONE = 2**22 + 1  # above every process id


@contextmanager
def held(directory: Path, **holder: object) -> Iterator[None]:
    """The lock as another process has it, which says so."""
    directory.mkdir(exist_ok=True)
    with RunDirectory(directory).lock_file.open("w", encoding="utf-8") as file:
        lock(file)
        file.write(json.dumps(holder))
        file.flush()
        yield


def contents(directory: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}


@pytest.mark.parametrize("stage", ["warmup", "joint"])
def test_a_second_start_is_refused_and_changes_nothing(
    finished: SmallRun, tmp_path: Path, stage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also of the other stage: joint training while warm-up goes on."""
    run = finished.copy(tmp_path / "run")
    run.go_back(stage, 2)
    host, pid = whereabouts()["host"], os.getpid()
    with held(run.directory, host=host, pid=pid, slurm_job="12"):
        before = contents(run.directory)
        assert run.stage(stage) == 2
        assert contents(run.directory) == before
    line = f"run_dir: process {pid} on {host} (Slurm job 12) is training in {run.directory}; wait for it, stop it, or"
    assert line in capsys.readouterr().err
    assert run.stage(stage) == 0 and run.lines(stage) == finished.lines(stage)


@pytest.mark.parametrize("holder", [{"host": "elsewhere", "pid": os.getpid()}, {"host": "here", "pid": GONE}, {}])
def test_a_lock_of_a_process_that_may_be_gone_is_waited_for(
    tmp_path: Path, holder: dict[str, object], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As after a requeue: the file server has not noticed yet that the other node is gone."""
    monkeypatch.setattr(run_lock, "_POLL_SECONDS", 0.01)
    monkeypatch.setattr(run_lock, "whereabouts", lambda: {"host": "here", "pid": 5})
    run, entered, is_held, end = RunDirectory(tmp_path), [], threading.Event(), threading.Event()

    def hold() -> None:
        with held(tmp_path, **holder):
            is_held.set()
            end.wait(30)
            entered.append("not yet")

    other = threading.Thread(target=hold)
    other.start()
    assert is_held.wait(30)
    monkeypatch.setattr(run_lock.time, "sleep", lambda _: end.set())
    with alone_in(run):
        entered.append("now")
    other.join()
    assert entered == ["not yet", "now"]
    assert json.loads(run.lock_file.read_text("utf-8")) == {"host": "here", "pid": 5}
    (said,) = [entry.message for entry in caplog.records if entry.levelname == "WARNING"]
    assert said.endswith(f"has {run.lock_file}; waiting for it to end")


def test_it_is_not_waited_for_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_lock, "_PATIENCE_SECONDS", 0.05)
    monkeypatch.setattr(run_lock, "_POLL_SECONDS", 0.01)
    began = time.monotonic()
    with (
        held(tmp_path, host="elsewhere", pid=7),
        pytest.raises(run_lock.UserError, match="process 7 on elsewhere is training in"),
        alone_in(RunDirectory(tmp_path)),
    ):
        pass
    assert time.monotonic() - began >= 0.05


def test_where_there_are_no_locks_it_begins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def without_locks(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(file_lock.fcntl, "flock", without_locks)
    with alone_in(RunDirectory(tmp_path / "run")), alone_in(RunDirectory(tmp_path / "run")):
        pass
