"""Steps that are not finite: skipped, told of, and no difference to a run that is resumed after them."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from megafuser.checkpoint.manifest import read_manifest
from megafuser.cli.main import main
from megafuser.training import loop
from megafuser.training.engine import Engine
from megafuser.training.nonfinite_steps import where_not_finite
from tests.unit.training.small_run import (
    STEPS,
    SmallRun,
    different,
    parameters_of,
    step_rows,
    stored_hashes,
)


@pytest.fixture
def run(case: Path, tmp_path: Path) -> SmallRun:
    return SmallRun(case / "config.yaml", tmp_path / "run")


@pytest.fixture
def second_is_spoilt(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second step's gradients and losses are not numbers, however often it is done."""
    gradients = Engine.compute_gradients

    def spoilt(self: Engine, rows: list) -> torch.Tensor:
        sums = gradients(self, rows)
        if self.scheduler.num_steps != 1:
            return sums
        for ddp in self.ddp:
            for buffer in ddp.buffers:
                buffer.grad_data.fill_(math.nan)
        return sums * math.nan

    monkeypatch.setattr(Engine, "compute_gradients", spoilt)


@pytest.mark.usefixtures("second_is_spoilt")
@pytest.mark.parametrize("stage", ["warmup", "joint"])
def test_a_skipped_step_is_resumed_after_as_if_nothing_had_been(run: SmallRun, stage: str, tmp_path: Path) -> None:
    """The optimizer has made one update less than the stage has steps; a wrong count would change the correction."""
    if stage == "joint":
        assert run.stage("warmup") == 0
    assert run.stage(stage) == 0
    lines = run.lines(stage, "train")
    assert [line.get("skipped", 0) for line in lines] == [0, 1, 0, 0]
    assert "loss" not in lines[1] and "grad_norm" not in lines[1] and lines[1]["samples"] == lines[0]["samples"]
    assert all(math.isfinite(line["loss"]) for line in (lines[0], *lines[2:]))
    assert read_manifest(run.step(stage, STEPS)).content["skipped_steps"] == 1

    again = run.copy(tmp_path / "again")
    again.go_back(stage, 2)
    assert again.stage(stage) == 0
    assert again.lines(stage) == run.lines(stage)
    assert stored_hashes(again.step(stage, STEPS)) == stored_hashes(run.step(stage, STEPS))
    # in what is common to all ranks: the warm-up's count of updates, which the hashes do not cover
    assert updates(again.step(stage, STEPS)) == updates(run.step(stage, STEPS)) == {STEPS - 1}


def updates(checkpoint: Path) -> set[int]:
    """AdamW's count of updates in a checkpoint's common state."""
    common = torch.load(checkpoint / "weights" / "common.pt", weights_only=True)
    adam = common["optimizer"].get("optimizer", common["optimizer"])
    counts = [adam["state"]["common_step"]] if "common_step" in adam.get("state", {}) else []
    counts += [group["step"] for group in adam["param_groups"] if "step" in group]
    return {int(count) for count in counts}


def test_a_validation_that_is_not_finite_is_valid_json(
    run: SmallRun, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its numbers are left out, and it is not an improvement."""

    def strict(text: str) -> Any:
        return json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))

    evaluate = loop.evaluate_rows
    monkeypatch.setattr(loop, "evaluate_rows", lambda *args, **kwargs: evaluate(*args, **kwargs) * math.nan)
    assert run.stage("warmup") == 0
    lines = [strict(line) for line in (run.directory / "metrics.jsonl").read_text("utf-8").splitlines()]
    valid = [line for line in lines if line["split"] == "valid"]
    assert valid == [{"stage": "warmup", "split": "valid", "step": step, "samples": 6} for step in (2, 4)]
    recorded = strict((run.step("warmup", STEPS) / "manifest.json").read_text("utf-8"))["content"]["validation"]
    assert (recorded["step"], recorded["loss"], recorded["best_step"], recorded["since"]) == (4, None, None, 2)
    capsys.readouterr()
    assert main(["status", str(run.directory)]) == 0
    assert "step 4: the loss was not finite" in capsys.readouterr().out


def test_a_skipped_step_leaves_the_weights_and_moves_the_schedule(
    run: SmallRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    with run.engine("joint") as (session, engine):
        rows = step_rows(session, "joint", 1)
        engine.step(rows)
        before, rate = parameters_of(engine.model), engine.scheduler.get_lr({})
        gradients = Engine.compute_gradients
        with monkeypatch.context() as patch:
            patch.setattr(Engine, "compute_gradients", lambda self, own: gradients(self, own) * math.nan)
            result = engine.step(rows)
        assert result.skipped and engine.skipped_steps == 1
        assert different(parameters_of(engine.model), before) == []
        assert engine.scheduler.get_lr({}) < rate and engine.scheduler.num_steps == 2
        assert not engine.step(rows).skipped
        assert different(parameters_of(engine.model), before) != []


def test_the_samples_whose_loss_is_not_finite_are_named(run: SmallRun) -> None:
    """A token's embedding is not a number: the samples that have the token are those, and no others."""
    with run.engine("joint") as (session, engine):
        rows = step_rows(session, "joint", 1)
        (train,) = session.load_data("train")
        references = [(int(domain), int(sample)) for row in rows for domain, sample in row.references]
        tokens = {one: set(train[one[0]].view(one[1], 0)[0].tolist()) for one in references}
        rare = min(
            {token for own in tokens.values() for token in own},
            key=lambda token: sum(token in own for own in tokens.values()),
        )
        expected = {one for one, own in tokens.items() if rare in own}
        assert 0 < len(expected) < len(set(references))
        with torch.no_grad():
            engine.model.specialists[0].embedding.word_embeddings.weight[rare] = math.nan
        result = engine.step(rows)
        assert result.skipped
        told = where_not_finite(engine, rows, result, train)
        assert told.startswith("the loss of rank 0, domain ")
        for domain, sample in set(references):
            assert (train[domain].sample_id(sample) in told) == ((domain, sample) in expected)


def test_parts_whose_gradient_alone_is_not_finite_are_named(run: SmallRun, monkeypatch: pytest.MonkeyPatch) -> None:
    gradients = Engine.compute_gradients

    def spoilt(self: Engine, rows: list) -> torch.Tensor:
        sums = gradients(self, rows)
        parameter = next(
            one for name, one in self.ddp[0].module.named_parameters() if name.startswith("specialists.1.")
        )
        parameter.main_grad.view(-1)[0] = math.inf
        return sums

    monkeypatch.setattr(Engine, "compute_gradients", spoilt)
    with run.engine("joint") as (session, engine):
        rows = step_rows(session, "joint", 1)
        (train,) = session.load_data("train")
        result = engine.step(rows)
        assert result.skipped
        assert where_not_finite(engine, rows, result, train) == f"the gradient of {session.specialist_names[1]}"
