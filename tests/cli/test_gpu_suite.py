"""The suite for GPUs on a CPU: every part runs at a tiny size, says what it left out, and can fail."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from megafuser.fusion.vocabulary_parallel import VocabularyChunk
from megafuser.specialist.core_attention import PackedSegments, packed_segments
from tests.gpu import __main__ as suite
from tests.gpu import curves, models
from tests.gpu.report import Finding, Skip, run_check, write_report

ON_CPU = ("--device", "cpu", "--backend", "torch")


def run(directory: Path, *arguments: str) -> tuple[int, list[dict[str, Any]]]:
    code = suite.main([*ON_CPU, "--report", str(directory), *arguments])
    return code, json.loads((directory / "report.json").read_text(encoding="utf-8"))["checks"]


def test_every_part_runs_on_a_cpu(tmp_path: Path) -> None:
    code, checks = run(tmp_path)
    assert code == 0, (tmp_path / "report.md").read_text(encoding="utf-8")
    assert [check["part"] for check in checks if check["status"] == "passed"] == [
        *["mixture"] * 4, *["parity"] * 3, *["packing"] * 2, *["curves"] * 3, *["speed"] * 2, "time",
    ]  # fmt: skip
    skipped = [check for check in checks if check["status"] == "skipped"]
    assert len(skipped) == 16
    assert {check["note"] for check in skipped} == {"Transformer Engine computes on CUDA only"}
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "15 passed, 0 FAILED, 16 skipped" in text and "device: CPU" in text


def mix_too_much(monkeypatch: pytest.MonkeyPatch) -> None:
    right = VocabularyChunk.mix
    monkeypatch.setattr(VocabularyChunk, "mix", lambda self, weights: right(self, weights * 1.001))


def forget_the_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    def whole(cu_seqlens: torch.Tensor, max_seqlen: int, segments: int) -> PackedSegments:
        width = int(cu_seqlens[-1])
        return packed_segments(torch.tensor([0, width], dtype=torch.int32), width, 1)

    monkeypatch.setattr("megafuser.fusion.row.packed_segments", whole)


def learn_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(curves, "engine_of", lambda model, **_: models.engine_of(model, lr=0.0))
    monkeypatch.setattr(curves, "TINY_STEPS", 2 * curves.LAST)  # steps that change nothing are all alike


@pytest.mark.parametrize(
    ("part", "breaks", "failed"),
    [
        ("mixture", mix_too_much, ["fp32, 1 chunk", "fp32, 5 chunks"]),
        ("packing", forget_the_segments, ["torch fp32", "torch bf16"]),
        ("curves", learn_nothing, ["bf16 on torch learns"]),
    ],
)
def test_a_part_fails_where_the_code_is_broken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str, breaks: Callable, failed: list[str]
) -> None:
    breaks(monkeypatch)
    code, checks = run(tmp_path, "--part", part)
    assert code == 1
    assert set(failed) <= {check["name"] for check in checks if check["status"] == "FAILED"}


def raise_value_error() -> Finding:
    raise ValueError("no such kernel")


def raise_skip() -> Finding:
    raise Skip("not here")


def test_the_report_holds_whatever_happens(tmp_path: Path) -> None:
    nan = Finding({"error": float("nan"), "other": 2.0}, {"error": 1.0, "other": 2.0})
    made = [run_check("part", name, measure) for name, measure in {
        "nan": lambda: nan, "error": raise_value_error, "skip": raise_skip,
    }.items()]  # fmt: skip
    assert [check.status for check in made] == ["FAILED", "FAILED", "skipped"]
    assert "no such kernel" in made[1].note and made[2].note == "not here"
    write_report(tmp_path, {"device": "none"}, made)
    content = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert content["checks"][0]["finding"]["numbers"] == {"error": "nan", "other": 2.0}
    assert "beyond the limit: error" in (tmp_path / "report.md").read_text(encoding="utf-8")


def test_a_device_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--device", "cpu", "--backend", "transformer_engine", "--report", str(tmp_path / "report")]
    assert suite.main(arguments) == 2
    assert "transformer_engine needs a GPU" in capsys.readouterr().err
    assert not (tmp_path / "report").exists()
