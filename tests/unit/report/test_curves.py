"""Reading `metrics.jsonl` for the page."""

import json
from pathlib import Path

import pytest

from megafuser.report.curves import read_curves


def line(stage: str, split: str, step: int) -> str:
    return json.dumps({"stage": stage, "split": split, "step": step, "loss": 1.0}) + "\n"


def test_lines_by_split_and_stage(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    lines = [line("warmup", "train", 1), line("joint", "train", 2), line("joint", "train", 1)]
    path.write_text("".join(lines) + line("joint", "valid", 2) + '{"stage": "joi')
    curves = read_curves(path)
    assert curves is not None
    assert curves.stages == ["warmup", "joint"]
    assert [own["step"] for own in curves.train["joint"]] == [1, 2]
    assert list(curves.valid) == ["joint"]


def test_no_file_no_curves(tmp_path: Path) -> None:
    assert read_curves(tmp_path / "metrics.jsonl") is None


@pytest.mark.parametrize("broken", ["nonsense\n", "[1]\n", '{"stage": "warmup"}\n', '{"split": "train"}\n'])
def test_a_damaged_file_costs_the_curves_and_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    warnings: list[str] = []
    monkeypatch.setattr("megafuser.report.curves.logger.warning", lambda text, *_: warnings.append(text))
    path = tmp_path / "metrics.jsonl"
    path.write_text(line("warmup", "train", 1) + broken)
    assert read_curves(path) is None
    assert len(warnings) == 1


def test_a_file_without_training_lines_has_none(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(line("warmup", "valid", 1))
    assert read_curves(path) is None
