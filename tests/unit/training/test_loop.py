"""The loop over a stage's steps: the rows, what is told, what is opened when, and passes without a backward."""

from pathlib import Path
from typing import Any

import pytest
import torch
from megatron.core.transformer.transformer_block import TransformerBlock

from megafuser.fusion.model import FusedModel
from megafuser.fusion.row import PackedRow
from megafuser.runtime.heartbeat import Heartbeat
from megafuser.training.metric_sinks import Watch
from tests.unit.training.small_run import SmallRun, step_rows

TOLERANCE = 1e-5
SEQUENCE_LENGTH = 256
ROW_WIDTH = 600
# what wider rows are there to change
PACKING = ("packing_efficiency",)


@pytest.fixture
def widths(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Of all rows that went through a model, in training and in validation."""
    seen: list[int] = []
    streams = FusedModel.streams

    def watched(self: FusedModel, row: PackedRow) -> list[torch.Tensor]:
        seen.append(row.width)
        return streams(self, row)

    monkeypatch.setattr(FusedModel, "streams", watched)
    return seen


@pytest.mark.parametrize(("stage", "other"), [("warmup", "joint"), ("joint", "warmup")])
def test_row_width_bounds_a_stages_rows_and_changes_no_number(
    finished: SmallRun, tmp_path: Path, widths: list[int], stage: str, other: str
) -> None:
    common = (
        f"joint.init_from={finished.directory / 'warmup'}",
        f"{stage}.samples_per_domain=6",
        f"{stage}.steps=2",
    )
    found = {}
    for name, key in (("plain", f"{other}.row_width"), ("wide", f"{stage}.row_width")):
        run = SmallRun(finished.config_file, tmp_path / name, (*common, f"{key}={ROW_WIDTH}"))
        widths.clear()
        assert run.stage(stage) == 0
        found[name] = run.lines(stage), list(widths)
    (plain, plain_widths), (wide, wide_widths) = found["plain"], found["wide"]
    assert max(plain_widths) <= SEQUENCE_LENGTH < max(wide_widths) <= ROW_WIDTH
    # more than one row still, so that it is the limit that bounds them
    assert 2 * 2 < len(wide_widths) < len(plain_widths)
    assert [line["split"] for line in wide] == ["train", "train", "valid"]
    for ours, reference in zip(wide, plain, strict=True):
        assert ours.keys() == reference.keys()
        for key in reference.keys() - {*PACKING, "stage", "split"}:
            assert ours[key] == pytest.approx(reference[key], rel=TOLERANCE), (key, reference["split"])


def test_domains_that_repeat_are_told_of_at_a_stages_start(
    finished: SmallRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Six samples in each domain: by these weights, three steps of 15 draw 36 of the first, and too few of the others.

    A step without a sample of some domain has no loss of it.
    """
    weights = "data.weights={text: 32, code: 7, math: 1}"
    overrides = (weights, "warmup.steps=3", "warmup.samples_per_domain=5", "data.sequence_length=256")
    run = SmallRun(finished.config_file, tmp_path / "run", overrides)
    capsys.readouterr()
    assert run.stage("warmup") == 0
    told = [line for line in capsys.readouterr().err.splitlines() if "draws" in line]
    assert told == [
        "megafuser: warning: domain text: 6 samples for 36 draws: each is seen 6 times",
        "megafuser: warning: domain code: 6 samples for 8 draws: each is seen 1.33 times",
    ]
    lines = run.lines("warmup", "train")
    assert [line["samples"] for line in lines] == [15, 15, 15]
    assert sum("loss/math" in line for line in lines) == 1


def test_layers_are_prepared_to_be_computed_again_only_where_a_backward_follows(
    finished: SmallRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither by a validation nor by the pass that load balancing needs; and the model trains on after both.

    Transformer Engine keeps scales for each layer that is, and would give a step those of another pass.
    """
    prepared: list[bool] = []
    checkpointed = TransformerBlock._checkpointed_forward

    def watched(self: TransformerBlock, *arguments: Any, **keywords: Any) -> torch.Tensor:
        prepared.append(torch.is_grad_enabled())
        return checkpointed(self, *arguments, **keywords)

    monkeypatch.setattr(TransformerBlock, "_checkpointed_forward", watched)
    again = ("memory.recompute=full", "joint.load_balance=0.01", "joint.steps=2", "evaluation.interval=1")
    run = SmallRun(finished.config_file, tmp_path / "run", (f"joint.init_from={finished.directory / 'warmup'}", *again))
    assert run.stage("joint") == 0
    specialists = 3
    assert prepared == [True] * specialists * sum(map(len, _rows_of_steps(run)))
    assert [line["split"] for line in run.lines("joint")] == ["train", "valid"] * 2


def _rows_of_steps(run: SmallRun) -> list[list[PackedRow]]:
    with run.session(*run.overrides) as session:
        return [step_rows(session, "joint", step) for step in (1, 2)]


def test_the_ranks_signs_are_there_before_the_metrics_are_opened(
    finished: SmallRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that the others notice where rank 0 cannot open them."""
    order = []
    entered, opened = Heartbeat.__enter__, Watch.__init__

    def enter(self: Heartbeat) -> Heartbeat:
        order.append("heartbeat")
        return entered(self)

    def open_files(self: Watch, *arguments: Any, **keywords: Any) -> None:
        order.append("metrics")
        opened(self, *arguments, **keywords)

    monkeypatch.setattr(Heartbeat, "__enter__", enter)
    monkeypatch.setattr(Watch, "__init__", open_files)
    run = finished.copy(tmp_path / "run")
    assert run.stage("warmup", "warmup.steps=5") == 0
    assert order == ["heartbeat", "metrics"]
