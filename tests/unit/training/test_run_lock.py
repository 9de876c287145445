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
from megafuser.training.run_lock import RunLock
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


def test_a_second_start_that_is_interrupted_is_no_end_of_the_run(
    finished: SmallRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before it has met the lock: `megafuser status` would take its end for that of the run."""
    run = finished.copy(tmp_path / "run")
    run.go_back("joint", 2)

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("megafuser.training.session.Session.load_data", interrupt)
    before = run.events("stopped")
    with held(run.directory, host="elsewhere", pid=7):
        assert run.stage("joint") == 130
    assert run.events("stopped") == before
    assert run.stage("joint") == 130
    (told,) = run.events("stopped")[len(before) :]
    assert told["message"] == "interrupted"


@pytest.mark.parametrize("file", ["run.lock", "config.yaml"])
def test_a_start_on_a_full_disk_is_told_and_can_be_made_again(
    finished: SmallRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], file: str
) -> None:
    run = finished.copy(tmp_path / "run")
    run.go_back("joint", 2)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device", file)

    with monkeypatch.context() as patch:
        if file == "run.lock":
            patch.setattr(run_lock, "whereabouts", full)
        else:
            patch.setattr("megafuser.training.stages.write_text_atomic", full)
        assert run.stage("joint") == 75
    said = capsys.readouterr().err
    assert f"error: {file} cannot be written (No space left on device); make room and run the same command" in said
    assert run.stage("joint") == 0 and run.lines("joint") == finished.lines("joint")


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
    with RunLock(run).held():
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
        RunLock(RunDirectory(tmp_path)).held(),
    ):
        pass
    assert time.monotonic() - began >= 0.05


def test_where_there_are_no_locks_it_begins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def without_locks(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(file_lock.fcntl, "flock", without_locks)
    with RunLock(RunDirectory(tmp_path / "run")).held(), RunLock(RunDirectory(tmp_path / "run")).held():
        pass


def test_an_end_of_a_run_is_its_own_though_the_next_start_has_begun(tmp_path: Path) -> None:
    """What has waited for it takes the lock as soon as it is free."""
    lock_of_ours = RunLock(RunDirectory(tmp_path))
    with held(tmp_path, host="elsewhere", pid=7):
        assert lock_of_ours.is_anothers()
    assert not lock_of_ours.is_anothers()
    with lock_of_ours.held():
        pass
    with held(tmp_path, host="elsewhere", pid=7):
        assert not lock_of_ours.is_anothers()


def test_a_directory_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    """As a link to scratch that was purged."""
    (tmp_path / "trial").symlink_to(tmp_path / "purged")
    with (
        pytest.raises(run_lock.UserError, match=r"trial cannot be made \(File exists\); choose another run_dir"),
        RunLock(RunDirectory(tmp_path / "trial")).held(),
    ):
        pass
