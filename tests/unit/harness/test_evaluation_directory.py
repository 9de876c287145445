"""The directory of an evaluation, where two commands are given it."""

from pathlib import Path

import pytest

from megafuser.errors import UserError
from megafuser.harness.answers import Answers
from megafuser.harness.evaluation_directory import EvaluationDirectory

SETTINGS = {"tasks": ["gsm8k"], "raw": False}
OTHERS = SETTINGS | {"raw": True}


def refusal(output: EvaluationDirectory, overwrite: bool) -> str:
    with pytest.raises(UserError) as caught, output.begin(overwrite=overwrite):
        pass
    return str(caught.value)


@pytest.mark.parametrize(("settings", "overwrite"), [(SETTINGS, False), (SETTINGS, True), (OTHERS, True)])
def test_a_second_evaluation_is_kept_out_and_takes_nothing_away(
    tmp_path: Path, settings: dict, overwrite: bool
) -> None:
    first, second = EvaluationDirectory(tmp_path / "out", SETTINGS), EvaluationDirectory(tmp_path / "out", settings)
    first.check(overwrite=False)
    second.check(overwrite=overwrite)
    path = first.answers_file("fused")
    with first.begin(overwrite=False), Answers(path, {}) as answers:
        answers["a"] = 1
        assert "is being written by another evaluation" in refusal(second, overwrite)
        answers["b"] = 2
        assert len(path.read_bytes().splitlines()) == 2
    with second.begin(overwrite=overwrite):  # once the first one has been cut off
        assert path.exists() != overwrite


def test_one_that_another_process_has_finished_meanwhile_is_refused(tmp_path: Path) -> None:
    first, second = EvaluationDirectory(tmp_path / "out", SETTINGS), EvaluationDirectory(tmp_path / "out", SETTINGS)
    with first.begin(overwrite=False):
        second.check(overwrite=False)  # and opens its model, for minutes
        first.finish({"results": {}}, "table\n")
    assert "exists; choose another directory or give --overwrite" in refusal(second, False)
    with second.begin(overwrite=True):
        assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["evaluation.json", "evaluation.lock"]


def test_a_disk_without_room_to_begin_is_no_reason_for_another_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = EvaluationDirectory(tmp_path / "out", SETTINGS)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("megafuser.harness.evaluation_directory.write_text_atomic", full)
        with pytest.raises(OSError, match="No space left"), output.begin(overwrite=False):
            pass
    output.check(overwrite=False)  # the same command
    with output.begin(overwrite=False):
        assert (tmp_path / "out" / "evaluation.json").exists()


def test_what_a_kill_left_before_the_first_answer_can_be_overwritten(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "evaluation.lock").touch()
    output = EvaluationDirectory(tmp_path / "out", SETTINGS)
    output.check(overwrite=True)
    with output.begin(overwrite=True):
        assert (tmp_path / "out" / "evaluation.json").exists()
