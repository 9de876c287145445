"""Saves beside training: what is in them, how they fail, and what a run does then."""

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from megafuser.checkpoint import background
from megafuser.checkpoint.background import BackgroundSave, Outcome
from megafuser.checkpoint.manifest import read_manifest, verify_files
from megafuser.checkpoint.snapshot import Snapshot
from megafuser.config.run_directory import RunDirectory
from megafuser.runtime.heartbeat import Heartbeat
from megafuser.training import checkpoint_saver as module
from megafuser.training.checkpoint_saver import CheckpointSaver
from megafuser.training.engine import Engine
from megafuser.training.history import History
from megafuser.training.loop import Loop
from megafuser.training.session import Session
from megafuser.training.stop import ExitTime
from tests.unit.training.small_run import STEPS, SmallRun, model_of, parameters_of, step_rows, stored_hashes

write = Snapshot.write
complete = Snapshot.complete


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PAUSES_SECONDS", (0.0, 0.0))


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Writing waits for it."""
    opened = threading.Event()

    def wait(self: Snapshot, *arguments: Any) -> Any:
        assert opened.wait(600)
        return write(self, *arguments)

    monkeypatch.setattr(Snapshot, "write", wait)
    yield opened
    opened.set()


def full_disk(*_: object) -> None:
    raise OSError(28, "No space left on device")


def fail(monkeypatch: pytest.MonkeyPatch, times: int, method: str = "write") -> list[int]:
    """The disk is full for so many saves; gives back a list that grows with each."""
    attempts: list[int] = []
    original = getattr(Snapshot, method)

    def attempt(self: Snapshot, *arguments: Any) -> Any:
        attempts.append(1)
        return full_disk() if len(attempts) <= times else original(self, *arguments)

    monkeypatch.setattr(Snapshot, method, attempt)
    return attempts


def saver_of(run: SmallRun, session: Session, engine: Engine) -> tuple[CheckpointSaver, History]:
    history = History.begin(session.domain_names, None)
    return CheckpointSaver(RunDirectory(run.directory), "joint", engine, session), history


def test_written_beside_training_or_not_the_files_are_the_same(finished: SmallRun, case: Path, tmp_path: Path) -> None:
    """That a run goes on from those that were written beside it, `test_stages` shows."""
    stopped = SmallRun(case / "config.yaml", tmp_path / "run", ("checkpoint.async=false",))
    for stage in ("warmup", "joint"):
        assert stopped.stage(stage) == 0
        for step in (2, STEPS):
            assert stored_hashes(stopped.step(stage, step)) == stored_hashes(finished.step(stage, step))
        assert stopped.lines(stage) == finished.lines(stage)


def test_updates_while_it_is_written_do_not_reach_the_file(run: SmallRun, gate: threading.Event) -> None:
    """Weights, and the optimizer's states: as they were at the step, though all have changed before a byte is out."""
    with run.engine("joint") as (session, engine):
        rows = step_rows(session, "joint", 1)
        engine.step(rows)
        saver, history = saver_of(run, session, engine)
        before = parameters_of(engine.model)
        saver.start(1, history)
        for _ in range(2):
            engine.step(rows)
        with torch.no_grad():
            for parameter in engine.model.parameters():
                parameter.fill_(7.0)
        assert not saver._save.done
        gate.set()
        assert saver.wait().error is None
        saved = parameters_of(model_of(session, run.step("joint", 1)))
        assert all(torch.equal(saved[name], value) for name, value in before.items())
    # and the states: the same step saved with training standing still
    other = SmallRun(run.config_file, run.directory.with_name("other"), ("checkpoint.async=false",))
    with other.engine("joint") as (session, engine):
        engine.step(step_rows(session, "joint", 1))
        saver, history = saver_of(other, session, engine)
        saver.start(1, history)
    assert stored_hashes(run.step("joint", 1)) == stored_hashes(other.step("joint", 1))


def test_training_goes_on_while_it_is_written(
    run: SmallRun, gate: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    wait = BackgroundSave.wait

    def opens_the_gate(self: BackgroundSave, seconds: float | None = None) -> Outcome | None:
        threading.Timer(0.2, gate.set).start()
        return wait(self, seconds)

    with run.engine("joint") as (session, engine):
        saver, history = saver_of(run, session, engine)
        saver.start(1, history)
        assert not run.step("joint", 1).exists() and RunDirectory(run.directory).latest("joint") is None
        assert saver.take_stall() > 0 and saver.take_stall() == 0
        saver.poll()
        assert saver._save is not None, "it is not waited for"
        monkeypatch.setattr(BackgroundSave, "wait", opens_the_gate)
        saver.start(2, history)  # waits for the former
        assert run.latest("joint") == "step_000001"
        assert saver.take_stall() > 0.1
        assert saver.finish(2, history) == run.step("joint", 2)
        assert run.latest("joint") == "step_000002"


def test_stopping_takes_longer_while_a_save_is_under_way(run: SmallRun, gate: threading.Event) -> None:
    """It has to end before the last one begins."""
    with run.engine("joint") as (session, engine):
        saver, history = saver_of(run, session, engine)
        saver.start(1, history)
        assert saver.exit_time is None, "nothing is measured yet"
        threading.Timer(0.5, gate.set).start()
        saver.wait()
        measured = saver.exit_time
        assert measured is not None and measured.seconds >= 0.4 and measured.of_its_kind
        gate.clear()
        saver.start(2, history)
        assert saver.exit_time == ExitTime(2 * measured.seconds, of_its_kind=True)
        gate.set()
        saver.wait()


def test_latest_is_moved_when_what_it_names_is_there(run: SmallRun, monkeypatch: pytest.MonkeyPatch) -> None:
    was_there: list[bool] = []

    def write_latest(_: RunDirectory, stage: str, target: Path) -> None:
        was_there.append(verify_files(target, read_manifest(target, stage)) == [])

    monkeypatch.setattr(module, "write_latest", write_latest)
    with run.engine("joint") as (session, engine):
        saver, history = saver_of(run, session, engine)
        saver.start(1, history)
        saver.wait()
    assert was_there == [True]


def test_the_step_that_is_saved_already_is_not_saved_again(run: SmallRun, monkeypatch: pytest.MonkeyPatch) -> None:
    with run.engine("joint") as (session, engine):
        saver, history = saver_of(run, session, engine)
        saver.start(1, history)
        saver.wait()
        attempts = fail(monkeypatch, 9)
        assert saver.finish(1, history) == run.step("joint", 1)
    assert attempts == []


@pytest.mark.parametrize("method", ["write", "complete"])
def test_a_full_disk_does_not_end_a_run(
    finished: SmallRun,
    case: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    method: str,
) -> None:
    """Said in one line; the next interval tries again."""
    run = SmallRun(case / "config.yaml", tmp_path / "run", ("checkpoint.interval=1", "checkpoint.keep=9"))
    fail(monkeypatch, 2, method)
    assert run.stage("warmup") == 0
    # a progress bar may stand in front of it
    told = capsys.readouterr().err.splitlines()
    warnings = [line.partition("megafuser: warning: ")[2] for line in told if "could not be saved" in line]
    assert warnings == [
        f"checkpoint {run.step('warmup', step)} could not be saved ([Errno 28] No space left on "
        "device); the last complete one is none"
        for step in (1, 2)
    ]
    names = sorted(path.name for path in (run.directory / "warmup").iterdir())
    assert names == ["latest", "step_000003", "step_000004"], "nothing half is left"
    assert run.lines("warmup", "train") == finished.lines("warmup", "train")


def test_the_last_complete_checkpoint_stays_where_the_next_cannot_be_saved(
    case: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = SmallRun(case / "config.yaml", tmp_path / "run", ("checkpoint.keep=1",))
    assert run.stage("warmup", "warmup.steps=2") == 0
    attempts = fail(monkeypatch, 99)
    assert run.stage("warmup") == 75
    (error,) = [line for line in capsys.readouterr().err.splitlines() if "megafuser: error: " in line]
    assert error == (
        f"megafuser: error: {run.step('warmup', STEPS)} could not be saved ([Errno 28] No space left on device); make "
        f"room and run the same command again, it goes on from {run.step('warmup', 2)}"
    )
    assert len(attempts) == 3
    assert sorted(path.name for path in (run.directory / "warmup").iterdir()) == ["latest", "step_000002"]
    monkeypatch.undo()
    assert run.stage("warmup") == 0
    assert run.latest("warmup") == "step_000004"


def test_the_last_save_is_tried_again(run: SmallRun, monkeypatch: pytest.MonkeyPatch) -> None:
    attempts = fail(monkeypatch, 2)
    assert run.stage("warmup", "checkpoint.interval=100") == 0
    assert len(attempts) == 3 and run.latest("warmup") == "step_000004"


def test_every_attempt_to_save_is_getting_on(run: SmallRun, monkeypatch: pytest.MonkeyPatch) -> None:
    """The heartbeat would end a run whose last saves take longer than a step may."""
    marks: list[int | None] = []
    monkeypatch.setattr(Heartbeat, "mark", lambda self, step=None: marks.append(step))
    fail(monkeypatch, 2)
    assert run.stage("warmup", "checkpoint.interval=100", "evaluation.interval=100") == 0
    assert marks == [1, 2, 3, 4, 4, None, None, None]


def test_a_bug_while_saving_ends_the_run(run: SmallRun, monkeypatch: pytest.MonkeyPatch) -> None:
    def bug(*_: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(Snapshot, "write", bug)
    with pytest.raises(RuntimeError, match="ZeroDivisionError: a bug"):
        run.stage("warmup")
    assert not (run.directory / "warmup").exists()


@pytest.mark.parametrize("ends", [True, False], ids=["in time", "not in time"])
def test_a_run_that_fails_leaves_nothing_half(
    run: SmallRun, gate: threading.Event, monkeypatch: pytest.MonkeyPatch, ends: bool
) -> None:
    """A save that is under way then may end, but is not waited for without end."""
    monkeypatch.setattr(module, "_GRACE_SECONDS", 60.0 if ends else 0.0)
    train, cancel = Loop._train, BackgroundSave.cancel

    def fails_late(self: Loop, step: int) -> dict[str, Any]:
        if step == 4:
            if ends:
                threading.Timer(0.2, gate.set).start()
            raise FloatingPointError
        return train(self, step)

    def opens_the_gate(self: BackgroundSave) -> None:
        threading.Timer(0.2, gate.set).start()
        cancel(self)

    monkeypatch.setattr(Loop, "_train", fails_late)
    monkeypatch.setattr(BackgroundSave, "cancel", opens_the_gate)
    with pytest.raises(FloatingPointError):
        run.stage("warmup")
    names = sorted(path.name for path in (run.directory / "warmup").glob("*"))
    assert names == (["latest", "step_000002"] if ends else [])


def test_old_checkpoints_that_cannot_be_removed_are_no_failure(
    run: SmallRun, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(module, "remove_old_checkpoints", refuse)
    assert run.stage("warmup") == 0
    assert "could not be removed" in capsys.readouterr().err


def test_stalls_stand_in_the_training_lines(finished: SmallRun) -> None:
    """A step's line has what stood still between the step before and it."""
    lines = [json.loads(line) for line in (finished.directory / "metrics.jsonl").read_text().splitlines()]
    for stage in ("warmup", "joint"):
        stalls = {
            line["step"]: line["checkpoint_stall_seconds"]
            for line in lines
            if (line["stage"], line["split"]) == (stage, "train")
        }
        assert [step for step, stall in stalls.items() if stall > 0] == [3]


def test_what_a_manifest_says(finished: SmallRun) -> None:
    for stage in ("warmup", "joint"):
        content = read_manifest(finished.step(stage, STEPS)).content
        assert content["versions"]["torch"] == torch.__version__.split("+")[0] or torch.__version__
        assert {"python", "megatron-core", "transformers", "tokenizers"} <= set(content["versions"])
        directories = {path.name for path in (finished.directory / "data").iterdir()}
        named = {f"{name}-{split}-{key}" for name, keys in content["data"].items() for split, key in keys.items()}
        assert named == directories and len(named) == 6


@pytest.mark.parametrize("split", ["train", "valid"])
def test_other_data_is_refused_before_anything_is_made_of_it(
    finished: SmallRun, case: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], split: str
) -> None:
    """The configuration names the same files; one has other content."""
    copy = finished.copy(tmp_path / "run")
    copy.go_back("warmup", 2)
    (file,) = copy.config().data.domains["code"].sources(split)
    path, original = Path(file.path), Path(file.path).read_bytes()
    before = {path: path.stat().st_mtime_ns for path in copy.directory.rglob("*")}
    try:
        path.write_bytes(original.replace(b"e", b"a", 1))
        assert copy.stage("warmup") == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert f"data.domains.code: its {split} samples are not those that the run began with" in error
        assert {path: path.stat().st_mtime_ns for path in copy.directory.rglob("*")} == before
    finally:
        path.write_bytes(original)
    assert copy.stage("warmup") == 0
    assert copy.lines("warmup") == finished.lines("warmup")


def test_a_file_that_another_rank_wrote_but_is_not_there_is_missed(
    run: SmallRun, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def loses_one(self: Snapshot, directory: Path, written: Any) -> dict[str, str]:
        hashes = complete(self, directory, written)
        (directory / "__0_0.distcp").unlink()
        return hashes

    monkeypatch.setattr(Snapshot, "complete", loses_one)
    assert run.stage("warmup") == 75
    assert "No such file or directory" in capsys.readouterr().err


def test_every_checkpoint_is_verified_as_its_manifest_says(finished: SmallRun) -> None:
    for stage in ("warmup", "joint"):
        for step in (2, STEPS):
            checkpoint = finished.step(stage, step)
            assert verify_files(checkpoint, read_manifest(checkpoint)) == []
            assert f"{background.WEIGHTS}/common.pt" in read_manifest(checkpoint).files
