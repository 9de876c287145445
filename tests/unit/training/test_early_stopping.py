"""Early stopping and the best checkpoint, of runs whose validation losses are given."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from megafuser.checkpoint.manifest import read_manifest, write_manifest
from megafuser.config.run_directory import RunDirectory, resolve_checkpoint
from megafuser.training.kept_checkpoints import best_checkpoints
from megafuser.training.loop import Loop
from megafuser.training.metrics import Line
from megafuser.watching.status import read_status
from tests.unit.training.small_run import SmallRun

EVERY_STEP = ("evaluation.interval=1", "checkpoint.interval=1")


@pytest.fixture
def given_losses(monkeypatch: pytest.MonkeyPatch) -> Callable[[Sequence[float]], None]:
    """Makes validations find these losses, by step."""

    validate = Loop._validate

    def give(losses: Sequence[float]) -> None:
        def given(self: Loop, step: int) -> tuple[Line, Any]:
            line, seen = validate(self, step)
            return line | {"loss": losses[step - 1]}, seen

        monkeypatch.setattr(Loop, "_validate", given)

    return give


def changes(run: SmallRun) -> list[tuple[Path, int]]:
    """What is there, and when it was changed, but for the lock that every start takes."""
    paths = [path for path in run.directory.rglob("*") if path.name != "run.lock"]
    return sorted((path, path.stat().st_mtime_ns) for path in paths)


def names(run: SmallRun) -> list[str]:
    return sorted(path.name for path in (run.directory / "warmup").iterdir())


def test_a_stage_ends_early_and_stays_ended(
    run: SmallRun, given_losses: Callable, capsys: pytest.CaptureFixture[str]
) -> None:
    given_losses([5.0, 4.0, 4.5, 4.0, 3.0, 2.0])
    stopping = ("warmup.steps=6", "evaluation.interval=1", "checkpoint.interval=3", "evaluation.patience=2")
    assert run.stage("warmup", *stopping) == 0
    told = capsys.readouterr().out
    assert "warmup stopped early: the best validation loss is 4.0000, of step 2, and the 2 validations since" in told
    assert told.endswith(f"warmup is finished: {run.step('warmup', 4)}\n")
    assert names(run) == ["latest", "step_000003", "step_000004"]
    status = read_status(run.directory)
    assert (status.state, status.early, status.step) == ("finished", True, 4)
    assert status.said is not None and f"warmup {status.said}\n" in told
    before = changes(run)
    assert run.stage("warmup", *stopping) == 0
    assert capsys.readouterr().out == told
    assert changes(run) == before
    # joint training starts from there, without a warning
    assert run.stage("joint", *stopping, "joint.steps=1") == 0
    assert "the warm-up stopped" not in capsys.readouterr().err
    # with more patience, or none of it, the stage goes on
    assert run.stage("warmup", "warmup.steps=6") == 0
    assert [line["step"] for line in run.lines("warmup", "train")] == [1, 2, 3, 4, 5, 6]
    assert "stopped early" not in capsys.readouterr().out


def test_a_resumed_stage_counts_on(run: SmallRun, given_losses: Callable) -> None:
    """The validations before the interruption count: 2 of 3 are in the checkpoint of step 3."""
    given_losses([4.0, 4.5, 4.5, 4.5, 1.0, 1.0])
    stopping = (*EVERY_STEP, "warmup.steps=6", "evaluation.patience=3")
    assert run.stage("warmup", *stopping) == 0
    assert run.latest("warmup") == "step_000004"
    run.go_back("warmup", 3)
    assert run.stage("warmup", *stopping) == 0
    assert run.latest("warmup") == "step_000004"
    expected = {"step": 4, "loss": 4.5, "best_step": 1, "best_loss": 4.0, "since": 3, "samples": 6}
    assert read_manifest(run.step("warmup", 4)).content["validation"] == expected


def test_losses_of_other_samples_are_not_compared(
    run: SmallRun, given_losses: Callable, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first two are of one sample of each domain; of two, all losses are higher, but fall."""
    given_losses([4.0, 4.1, 5.0, 4.9, 4.8, 4.7])
    stopping = (*EVERY_STEP, "evaluation.patience=2", "checkpoint.keep_best=true", "checkpoint.keep=1")
    assert run.stage("warmup", *stopping, "warmup.steps=2", "evaluation.samples_per_domain=1") == 0
    assert (run.directory / "warmup" / "best").read_text() == "step_000001\n"
    capsys.readouterr()
    assert run.stage("warmup", *stopping, "warmup.steps=6", "evaluation.samples_per_domain=2") == 0
    assert "validations look at 6 samples from now on, not at 3: " in capsys.readouterr().err
    assert names(run) == ["best", "latest", "step_000001", "step_000006"]
    assert not read_status(run.directory).early
    assert run.latest("warmup") == "step_000006"
    assert (run.directory / "warmup" / "best").read_text() == "step_000006\n"
    # the best of those that were looked at before is not thrown away
    found = best_checkpoints(RunDirectory(run.directory), "warmup")
    assert found == [run.step("warmup", 6), run.step("warmup", 1)]


def test_a_stage_that_has_run_out_goes_on_by_the_losses_of_other_samples(run: SmallRun, given_losses: Callable) -> None:
    """Also where they are not looked at after its first step."""
    given_losses([4.0, 4.1, 4.2, 5.0, 5.0, 4.9])
    stopping = ("warmup.steps=6", "checkpoint.interval=1", "evaluation.patience=2")
    assert run.stage("warmup", *stopping, "evaluation.interval=1", "evaluation.samples_per_domain=1") == 0
    assert run.latest("warmup") == "step_000003"
    assert run.stage("warmup", *stopping, "evaluation.interval=1", "evaluation.samples_per_domain=1") == 0
    assert run.latest("warmup") == "step_000003"
    assert run.stage("warmup", *stopping, "evaluation.interval=3", "evaluation.samples_per_domain=2") == 0
    assert run.latest("warmup") == "step_000006"


def test_bests_of_checkpoints_that_do_not_say_of_how_many_samples(run: SmallRun, given_losses: Callable) -> None:
    """Those of an earlier release count with the first that came after them."""
    given_losses([3.0, 2.0, 4.0, 5.0])
    keep = (*EVERY_STEP, "checkpoint.keep=4")
    assert run.stage("warmup", *keep, "warmup.steps=3") == 0
    for step in (1, 2):
        manifest = read_manifest(run.step("warmup", step))
        del manifest.run["validation"]["samples"]
        write_manifest(run.step("warmup", step), manifest)
    assert best_checkpoints(RunDirectory(run.directory), "warmup") == [run.step("warmup", 2)]
    assert run.stage("warmup", *keep, "evaluation.samples_per_domain=1") == 0
    assert best_checkpoints(RunDirectory(run.directory), "warmup") == [run.step("warmup", 4), run.step("warmup", 2)]


def test_without_patience_nothing_ends_early(run: SmallRun, given_losses: Callable) -> None:
    given_losses([1.0, 2.0, 3.0, 4.0])
    assert run.stage("warmup", *EVERY_STEP) == 0
    assert run.latest("warmup") == "step_000004"


def test_the_best_checkpoint_is_kept(run: SmallRun, given_losses: Callable) -> None:
    given_losses([5.0, 3.0, 4.0, 3.0, 3.5, 2.0])
    settings = (*EVERY_STEP, "checkpoint.keep=1", "checkpoint.keep_best=true")
    assert run.stage("warmup", *settings, "warmup.steps=5") == 0
    assert names(run) == ["best", "latest", "step_000002", "step_000005"]
    assert resolve_checkpoint(run.directory / "warmup" / "best") == run.step("warmup", 2)
    assert resolve_checkpoint(run.directory / "warmup") == run.step("warmup", 5)
    assert run.stage("warmup", *settings, "warmup.steps=6") == 0
    assert names(run) == ["best", "latest", "step_000006"]
    assert (run.directory / "warmup" / "best").read_text() == "step_000006\n"


def test_a_checkpoint_that_was_not_validated_is_not_the_best(run: SmallRun, given_losses: Callable) -> None:
    """Losses of every other step; the checkpoint of step 3 has the record of step 2."""
    given_losses([9.0, 1.0, 9.0, 2.0])
    assert run.stage("warmup", "checkpoint.interval=1", "evaluation.interval=2") == 0
    settings = ("checkpoint.interval=2", "evaluation.interval=1", "checkpoint.keep=1", "checkpoint.keep_best=true")
    given_losses([9.0, 9.0, 9.0, 9.0, 9.0, 5.0])
    assert run.stage("warmup", *settings, "warmup.steps=6") == 0
    assert names(run) == ["best", "latest", "step_000002", "step_000006"]


def test_no_longer_keeping_the_best(run: SmallRun, given_losses: Callable) -> None:
    given_losses([1.0, 2.0, 3.0, 4.0])
    keep_one = (*EVERY_STEP, "checkpoint.keep=1")
    assert run.stage("warmup", *keep_one, "warmup.steps=3", "checkpoint.keep_best=true") == 0
    assert names(run) == ["best", "latest", "step_000001", "step_000003"]
    assert run.stage("warmup", *keep_one) == 0
    assert names(run) == ["latest", "step_000004"]


def test_a_best_checkpoint_that_went_lost_is_replaced_by_the_next(run: SmallRun, given_losses: Callable) -> None:
    given_losses([1.0, 3.0, 2.0, 4.0])
    settings = (*EVERY_STEP, "checkpoint.keep=2", "checkpoint.keep_best=true")
    assert run.stage("warmup", *settings, "warmup.steps=3") == 0
    (run.step("warmup", 1) / "manifest.json").unlink()
    assert run.stage("warmup", *settings) == 0
    assert (run.directory / "warmup" / "best").read_text() == "step_000003\n"


def test_a_file_that_names_no_checkpoint_is_refused(tmp_path: Path) -> None:
    (tmp_path / "best").write_text("step_000009\n")
    with pytest.raises(Exception, match="no checkpoint at"):
        resolve_checkpoint(tmp_path / "best")
