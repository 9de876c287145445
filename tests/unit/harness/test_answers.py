"""Answers on disk after a machine broke down."""

import json
from pathlib import Path

import pytest

from megafuser.errors import NotSavedError
from megafuser.harness.answers import Answers
from megafuser.harness.evaluation_directory import EvaluationDirectory
from tests.full_disk import full_disk


@pytest.mark.parametrize("rest", ['{"key": "half a li', "\0\0\0\n", "[1]\n", '{"key": "c"}\n', "nonsense\n"])
def test_what_is_damaged_is_dropped_and_what_is_before_it_kept(tmp_path: Path, rest: str) -> None:
    path = tmp_path / "answers.jsonl"
    with Answers(path, {}) as answers:
        answers["a"] = "ünd"
        answers["b"] = [1.5, True]
    whole = path.read_bytes()
    with path.open("a") as file:
        file.write(rest)
        file.write('{"key": "after", "answer": "lost with it"}\n' if rest.endswith("\n") else "")
    with Answers(path, {}) as answers:
        assert (len(answers), answers["a"], answers["b"]) == (2, "ünd", [1.5, True])
        assert path.read_bytes() == whole
        answers["c"] = 3
    assert [json.loads(line)["key"] for line in path.read_text("utf-8").splitlines()] == ["a", "b", "c"]


def test_a_key_is_of_model_kind_request_and_repeat() -> None:
    one, other = Answers(None, {"model": 1}), Answers(None, {"model": 2})
    keys = [
        one.key("loglikelihood", ("a", "b")),
        other.key("loglikelihood", ("a", "b")),
        one.key("generate_until", ("a", "b")),
        one.key("loglikelihood", ("a", "c")),
        one.key("loglikelihood", ("a", "b"), 1),
    ]
    assert len(set(keys)) == 5
    assert keys[0] == Answers(None, {"model": 1}).key("loglikelihood", ["a", "b"])


def test_a_full_disk_is_told_in_one_line_and_costs_no_answer_that_was_kept(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    told = rf"^{path} cannot be written \(File too large\); make room and run the same command again"
    with pytest.raises(NotSavedError, match=told), Answers(path, {}) as answers:
        answers["a"] = "first"
        with full_disk(path.stat().st_size + 5):
            answers["b"] = "second"
    with Answers(path, {}) as answers:
        assert len(answers) == 1 and answers["a"] == "first"
    with full_disk(0), pytest.raises(NotSavedError, match="samples cannot be written"):
        EvaluationDirectory(tmp_path, {}).write_samples("fused", {"task": [{"doc_id": 0}]})
    with full_disk(0), pytest.raises(NotSavedError, match="cannot be written"):
        EvaluationDirectory(tmp_path, {}).finish({}, "table\n")
