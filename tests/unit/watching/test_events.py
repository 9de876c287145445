"""What a run's events hold, and what they do not."""

import logging
from pathlib import Path
from typing import Any

import pytest

from megafuser.errors import NotSavedError, StoppedEarly, UserError
from megafuser.watching.events import record, record_start, recorded
from megafuser.watching.json_lines import read_lines

logger = logging.getLogger("megafuser.somewhere")


def events(run: Path) -> list[tuple[Any, ...]]:
    return [(line["event"], line["stage"], line["message"]) for line in read_lines(run / "events.jsonl")]


def test_warnings_that_are_logged_are_written_and_others_are_not(tmp_path: Path) -> None:
    logger.warning("before")
    with recorded(tmp_path, "joint", writes=True):
        logger.info("plain")
        logger.warning("loss %s", "spike")
        logger.error("disk is full")
    logger.warning("after")
    assert events(tmp_path) == [
        ("warning", "joint", "loss spike"),
        ("error", "joint", "disk is full"),
        ("finished", "joint", ""),
    ]


def test_a_start_says_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    record_start(tmp_path, "warmup", step=3, steps=9, ranks=16)
    (line,) = read_lines(tmp_path / "events.jsonl")
    assert (line["step"], line["steps"], line["ranks"], line["slurm_job"]) == (3, 9, 16, "77")
    assert line["message"] == "step 3 of 9 done"


def test_how_a_stage_ends_is_told(tmp_path: Path) -> None:
    with pytest.raises(StoppedEarly), recorded(tmp_path, "joint", writes=True):
        raise StoppedEarly("joint stopped at step 3")
    with pytest.raises(ArithmeticError), recorded(tmp_path, "joint", writes=True):
        raise ArithmeticError("the loss\nis no number")
    with pytest.raises(KeyboardInterrupt), recorded(tmp_path, "joint", writes=True):
        raise KeyboardInterrupt
    assert events(tmp_path) == [
        ("stopped", "joint", "joint stopped at step 3"),
        ("failed", "joint", "ArithmeticError: the loss"),
        ("stopped", "joint", "interrupted"),
    ]


@pytest.mark.parametrize("end", [StoppedEarly("soon"), KeyboardInterrupt(), ArithmeticError("no number")])
def test_an_end_of_a_start_beside_the_run_is_none_of_the_runs(tmp_path: Path, end: BaseException) -> None:
    with pytest.raises(type(end)), recorded(tmp_path, "joint", writes=True, is_anothers=lambda: True):
        raise end
    assert events(tmp_path) == []


@pytest.mark.parametrize("end", [StoppedEarly, NotSavedError])
def test_a_full_disk_does_not_hide_how_a_stage_ends(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], end: type[Exception]
) -> None:
    """Its exit code depends on it."""
    (tmp_path / "events.jsonl").symlink_to("/dev/full")
    with pytest.raises(end), recorded(tmp_path, "joint", writes=True):
        logger.warning("a checkpoint could not be saved")
        raise end("stopped")
    told = capsys.readouterr().err
    assert told.count("events.jsonl cannot be written ([Errno 28] No space left on device)") == 2


def test_a_line_that_was_cut_does_not_fail_what_is_finished(tmp_path: Path) -> None:
    (tmp_path / "events.jsonl").write_text('{"time": 1, "event": "warn')
    with recorded(tmp_path, "joint", writes=True):
        pass
    assert events(tmp_path) == [("finished", "joint", "")], "the next line stands by itself"


def test_a_wrong_command_is_no_event_and_nothing_is_made_for_one(tmp_path: Path) -> None:
    with pytest.raises(UserError), recorded(tmp_path, "joint", writes=True):
        raise UserError("the configuration is another one")
    assert events(tmp_path) == []
    record(tmp_path / "absent", "warning", "joint", "x")
    with recorded(tmp_path / "absent", "joint", writes=True):
        logger.warning("too early")
    assert not (tmp_path / "absent").exists()


def test_a_rank_that_does_not_write_writes_nothing(tmp_path: Path) -> None:
    with recorded(tmp_path, "joint", writes=False):
        logger.warning("mine")
    assert list(tmp_path.iterdir()) == []


def test_lines_that_are_being_written_are_not_read(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    path.write_text('{"a": 1, "b": 2}\nbroken\n[1]\n{"a": 2}\n{"a": 3, "b"')
    assert read_lines(path) == [{"a": 1, "b": 2}, {"a": 2}]
    assert read_lines(path, ("b",)) == [{"a": 1, "b": 2}]
    assert read_lines(tmp_path / "none") == []
