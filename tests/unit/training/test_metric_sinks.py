"""What both stages show of themselves, read back from the files of a real run."""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from megafuser.data.loader import validation_rows
from megafuser.errors import UserError
from megafuser.figures.palette import blend, specialist_colours
from megafuser.training.loop import Loop
from megafuser.training.metric_sinks import check_watching
from megafuser.training.metrics import training_columns, training_values
from megafuser.training.validation import evaluate_rows
from megafuser.watching.gate_pictures import gate_matrix
from megafuser.watching.json_lines import read_lines
from megafuser.watching.status import read_status
from megafuser.watching.token_samples import TokenCollector
from tests.unit.training.small_run import STEPS, SmallRun
from tests.unit.watching.made_up import image, read_events, text

NAMES = ["text", "code", "math"]


@pytest.mark.parametrize(("stage", "trained"), [("warmup", ["gate"]), ("joint", ["gate", *NAMES])])
def test_the_event_files_hold_the_metrics(finished: SmallRun, stage: str, trained: list[str]) -> None:
    found = read_events(finished.directory / "tensorboard" / stage)
    for split in ("train", "valid"):
        lines = finished.lines(stage, split)
        for key in lines[0].keys() - {"stage", "split", "step"}:
            points = [(event.step, event.value) for event in found.Scalars(f"{split}/{key}")]
            assert points == [(line["step"], pytest.approx(line[key], rel=1e-6)) for line in lines], key
    wanted = {f"train/{kind}/{name}" for kind in ("grad_norm", "lr") for name in trained}
    wanted |= {f"train/{key}" for key in ("tokens_per_second", "tflops_per_device", "peak_memory_gib", "loss_spike")}
    tags = set(found.Tags()["scalars"])
    assert tags > wanted
    assert not any(tag.startswith("train/mfu") for tag in tags), "no peak of a CPU is known"


@pytest.mark.parametrize("stage", ["warmup", "joint"])
def test_a_validation_shows_gate_histograms_and_samples(finished: SmallRun, stage: str) -> None:
    found = read_events(finished.directory / "tensorboard" / stage)
    last = finished.lines(stage, "valid")[-1]
    weights = np.array([[last[f"gate/{domain}/{name}"] for name in NAMES] for domain in NAMES])
    assert np.array_equal(image(found, "valid/gate_matrix"), gate_matrix(weights, NAMES, NAMES))
    for k, name in enumerate(NAMES):
        for d, domain in enumerate(NAMES):
            own = found.Histograms(f"valid/gate_weight/{domain}/{name}")
            assert [event.step for event in own] == [2, 4]
            mean = own[-1].histogram_value.sum / own[-1].histogram_value.num
            assert mean == pytest.approx(weights[d, k], rel=1e-5), "the histogram is of the tokens that the mean is of"
    for tag in ("valid/sample/text/0", "valid/sample/math/1"):
        assert len(found.Tensors(f"{tag}/text_summary")) == 2, "the same samples at each validation"
        assert any(square in text(found, tag) for square in "🟦🟧🟪")
        picture = image(found, tag)
        (first,) = blend(np.array([[1.0, 0.0, 0.0]]), list(specialist_colours(NAMES).values()))
        assert (picture == [int(first[i : i + 2], 16) for i in (1, 3, 5)]).all(axis=2).any()
    assert "> User: text " in text(found, "valid/sample/text/0")


def test_samples_can_be_left_out_and_change_no_number(finished: SmallRun, tmp_path: Path) -> None:
    run = SmallRun(finished.config_file, tmp_path / "run", ("logging.samples=false",))
    assert run.stage("warmup") == 0
    assert run.lines("warmup") == finished.lines("warmup")
    tags = read_events(run.directory / "tensorboard" / "warmup").Tags()
    assert tags["histograms"] == [] and tags["images"] == ["valid/gate_matrix"]


def test_the_collector_keeps_the_weights_of_the_pass(run: SmallRun) -> None:
    with run.engine("joint") as (session, engine):
        (valid,) = session.load_data("valid")
        rows = validation_rows(valid, 2, 256, ranks=1, rank=0)
        collector = TokenCollector(valid, 2, 3)
        seen: list[tuple[torch.Tensor, torch.Tensor]] = []

        def values(output, row):  # type: ignore[no-untyped-def]
            collector.take(output, row)
            seen.append((output.weights.clone(), row.domains.clone()))
            return training_values(output)

        evaluate_rows(engine.chunks, rows, values, domains=3, columns=training_columns(3))
        shown = collector.gather(session.tokenizers["text"])
    weights, domains = torch.cat([w for w, _ in seen]), torch.cat([d for _, d in seen])
    for domain in range(3):
        assert np.array_equal(shown.weights[domain], weights[domains == domain].numpy())
    assert [excerpt.domain for excerpt in shown.excerpts] == ["text", "text", "code", "code", "math", "math"]
    for excerpt in shown.excerpts:
        (turn,) = excerpt.turns
        assert "".join(turn.pieces).startswith("The ") and len(turn.pieces) == len(turn.values.weights)


def spiked_losses(monkeypatch: pytest.MonkeyPatch, spikes: set[int]) -> None:
    """Makes the loop's losses 2 + step / 1000, and 5 at the spikes."""
    train = Loop._train

    def changed(self: Loop, step: int) -> dict[str, object]:
        return train(self, step) | {"loss": 5.0 if step in spikes else 2 + step / 1000}

    monkeypatch.setattr(Loop, "_train", changed)


def test_a_spike_is_flagged_warned_of_once_and_flagged_again_after_a_restart(
    run: SmallRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    spiked_losses(monkeypatch, {14, 15, 17})
    steps = ("warmup.steps=18", "warmup.samples_per_domain=1", "evaluation.interval=100", "checkpoint.interval=14")
    long = SmallRun(run.config_file, run.directory, steps)
    assert long.stage("warmup") == 0
    flagged = [line["step"] for line in long.lines("warmup", "train") if line["loss_spike"]]
    assert flagged == [14, 15, 17]
    said = [line for line in capsys.readouterr().err.splitlines() if "loss spike at" in line]
    assert [text.split(": loss 5")[0] for text in said] == [
        f"megafuser: warning: loss spike at warmup step {step}" for step in (14, 17)
    ]
    warned = [line["message"] for line in read_lines(long.directory / "events.jsonl") if line["event"] == "warning"]
    assert [text for text in warned if "spike" in text] == [text.removeprefix("megafuser: warning: ") for text in said]
    resumed = long.copy(tmp_path / "resumed")
    resumed.go_back("warmup", 14)
    assert resumed.stage("warmup") == 0
    assert resumed.lines("warmup") == long.lines("warmup")
    again = [line for line in capsys.readouterr().err.splitlines() if "loss spike at" in line]
    assert again == said[1:], "step 15 goes on with what step 14 began"
    assert read_status(resumed.directory).loss_spikes == 3


def test_a_resumed_run_tells_of_both_starts(finished: SmallRun, tmp_path: Path) -> None:
    resumed = finished.copy(tmp_path / "resumed")
    resumed.go_back("joint", 2)
    assert resumed.stage("joint") == 0
    kinds = [(line["event"], line.get("step")) for line in read_lines(resumed.directory / "events.jsonl")]
    assert [kind for kind in kinds if kind[0] != "warning"] == [
        ("started", 0), ("finished", None), ("started", 0), ("finished", None), ("started", 2), ("finished", None)
    ]  # fmt: skip
    status = read_status(resumed.directory)
    assert (status.state, status.stage, status.step, status.starts) == ("finished", "joint", STEPS, 2)
    train = read_events(resumed.directory / "tensorboard" / "joint")
    assert [event.step for event in train.Scalars("train/loss")] == [1, 2, 3, 4]
    assert [event.step for event in train.Histograms("valid/gate_weight/text")] == [2, 4]
    assert [event.step for event in train.Images("valid/gate_matrix")] == [2, 4]


def test_a_half_done_warm_up_and_other_templates_are_told_in_the_events(finished: SmallRun, tmp_path: Path) -> None:
    run = finished.copy(tmp_path / "run")
    shutil.rmtree(run.directory / "joint")
    assert run.stage("joint", "warmup.steps=8", "specialists.2.template=plain") == 0
    told = [event["message"] for event in run.events("warning")]
    assert any("the warm-up stopped at step 4 of 8" in message for message in told)
    others = [message for message in told if "another template" in message]
    path = run.step("warmup", STEPS) / "config.yaml"
    assert others == [f"specialist math was trained with another template (see {path})"]


def test_what_ended_a_stage_is_told(run: SmallRun, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(self: Loop, step: int) -> dict[str, object]:
        raise ArithmeticError(f"step {step} is too much")

    monkeypatch.setattr(Loop, "_train", fails)
    with pytest.raises(ArithmeticError):
        run.stage("warmup")
    status = read_status(run.directory)
    assert (status.state, status.said) == ("failed", "ArithmeticError: step 1 is too much")


def test_a_profile_is_of_the_wanted_steps(run: SmallRun) -> None:
    overrides = ("profile.stage=warmup", "profile.start=2", "profile.steps=2", "profile.ranks=[0]")
    assert run.stage("warmup", *overrides) == 0
    (trace,) = (run.directory / "profile").iterdir()
    assert trace.name == "warmup.rank0.steps2-3.pt.trace.json"
    named = [entry.get("name") for entry in json.loads(trace.read_text())["traceEvents"]]
    assert named.count("aten::embedding") > 0


def test_a_device_of_known_peak_has_an_mfu(run: SmallRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("megafuser.training.metric_sinks.peak_flops", lambda name, fp8: 2e12 if name == "cpu" else None)
    assert run.stage("warmup") == 0
    lines = read_lines(run.directory / "metrics.jsonl")
    assert [line["mfu"] for line in lines if line["split"] == "train"] == pytest.approx(
        [line["tflops_per_device"] / 2 for line in lines if line["split"] == "train"]
    )
    points = read_events(run.directory / "tensorboard" / "warmup").Scalars("train/mfu")
    assert [point.step for point in points] == [1, 2, 3, 4]


def test_what_cannot_be_shown_is_refused_first(run: SmallRun, capsys: pytest.CaptureFixture[str]) -> None:
    assert run.stage("warmup", "profile.ranks=[0,3]") == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said == "megafuser: error: profile.ranks: no rank 3 among 1; give 0 or less"
    assert not run.directory.exists()
    check_watching(run.config("profile.ranks=[0,3]"), 4)
    with pytest.raises(UserError, match="wandb is not installed"):
        check_watching(run.config("logging.wandb={project: x}"), 1)


def test_norms_of_the_groups_make_the_global_norm(finished: SmallRun) -> None:
    for stage in ("warmup", "joint"):
        for line in finished.lines(stage, "train"):
            squares = [value**2 for key, value in line.items() if key.startswith("grad_norm/")]
            assert math.sqrt(sum(squares)) == pytest.approx(line["grad_norm"], rel=1e-5)
