"""The file beside --out, as one killed process after another leaves it."""

import json
from pathlib import Path

import pytest

from megafuser.errors import NotSavedError, UserError
from megafuser.inference.partial_answers import PartialAnswers
from tests.full_disk import full_disk

SETTINGS = {"file": "abc", "seed": 3, "stop": ["\ud800é"], "temperature": 0.1, "overrides": ()}


def opened(out: Path, overwrite: bool = False, **changed) -> PartialAnswers:
    answers = PartialAnswers(out, SETTINGS | changed)
    answers.check(overwrite=overwrite)
    answers.begin(overwrite=overwrite)
    return answers


def killed(answers: PartialAnswers) -> None:
    assert answers._log is not None
    answers._log.close()


def answer(number: int) -> dict:
    return {"completion": f"é\n{number}", "finish_reason": "stop"}


def test_every_answer_outlives_every_process(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out.jsonl"
    path = out.with_name("out.jsonl.partial")
    first = opened(out)
    for index in (4, 0):
        first.keep(index, answer(index))
        assert str(index) in path.read_text("utf-8").splitlines()[-1]  # on disk while the process goes on
    killed(first)
    whole = path.read_bytes()
    path.write_bytes(whole + json.dumps({"index": 2, "answer": {"completion": "x" * 500}}).encode()[:-3])
    second = opened(out)
    assert len(second) == 2 and 4 in second and 0 in second and 2 not in second
    second.keep(2, answer(2))
    killed(second)
    # nothing is left of the half line, which was longer than the one that came instead
    assert path.read_bytes().startswith(whole) and len(path.read_bytes().splitlines()) == 4
    for torn in (b"\0" * 40, b'{"index": 1}\n', b"3\n", path.read_bytes().splitlines()[1]):
        before = path.read_bytes()
        path.write_bytes(before + torn)
        third = opened(out)
        assert [third[index] for index in (0, 2, 4)] == [answer(0), answer(2), answer(4)]
        killed(third)
        assert path.read_bytes() == before
    last = opened(out)
    last.finish("é\n")
    assert out.read_text("utf-8") == "é\n"
    assert list(out.parent.iterdir()) == [out]


def test_other_settings_are_refused_unless_it_is_to_begin_again(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    first = opened(out)
    first.keep(0, answer(0))
    for overwrite in (False, True):
        with pytest.raises(UserError, match="is being written by another process"):
            opened(out, overwrite=overwrite)
    killed(first)
    with pytest.raises(UserError, match=r"other settings \(seed, stop\); choose another --out, or give --overwrite"):
        opened(out, seed=4, stop=[])
    killed(opened(out))
    again = opened(out, overwrite=True, seed=4)
    assert len(again) == 0
    killed(again)
    with pytest.raises(UserError, match=r"other settings \(seed\)"):
        opened(out)


def test_a_full_disk_is_told_in_one_line_and_costs_no_answer_that_was_kept(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    first = opened(out)
    first.keep(0, answer(0))
    told = r"cannot be written \(File too large\); make room and run the same command again"
    with full_disk(first.path.stat().st_size + 5), pytest.raises(NotSavedError, match=rf"^{first.path} {told}"):
        first.keep(1, answer(1))
    killed(first)
    second = opened(out)
    assert len(second) == 1 and second[0] == answer(0)
    with full_disk(5), pytest.raises(NotSavedError, match=rf"^{out} {told}"):
        second.finish("longer\n")
    assert second.path.exists() and not out.exists()


def test_a_disk_without_room_to_begin_is_no_reason_for_another_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("megafuser.inference.partial_answers.write_text_atomic", full)
    with pytest.raises(OSError, match="No space left"):
        opened(tmp_path / "out.jsonl")


def test_what_another_command_has_written_since_the_check_stays(tmp_path: Path) -> None:
    """The model is loaded in between, which takes minutes."""
    out = tmp_path / "out.jsonl"
    late = PartialAnswers(out, SETTINGS)
    late.check(overwrite=False)
    first = opened(out)
    first.finish("theirs\n")
    with pytest.raises(UserError, match=r"another command has written .*out\.jsonl meanwhile; choose another --out"):
        late.begin(overwrite=False)
    assert out.read_text() == "theirs\n"
    assert PartialAnswers(out, SETTINGS).check(overwrite=True) is None, "nothing of theirs or ours is in the way"
    out.unlink()
    for path in tmp_path.iterdir():
        path.unlink()
    other = opened(out, seed=4)
    other.keep(0, answer(0))
    killed(other)
    kept = other.path.read_bytes()
    with pytest.raises(UserError, match=r"another command has written .*out.jsonl.partial meanwhile"):
        late.begin(overwrite=False)
    assert other.path.read_bytes() == kept
