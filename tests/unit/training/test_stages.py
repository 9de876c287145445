"""The two commands: what they leave; resumed runs equal uninterrupted ones bit for bit."""

import time
from pathlib import Path
from typing import Any

import pytest
import torch

from megafuser.checkpoint.manifest import read_manifest
from megafuser.training import stages
from megafuser.training.stop import Stop
from tests.unit.training.small_run import STEPS, SmallRun, stored_hashes


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        pytest.param(("optimizer.distributed=false", "precision.dtype=fp32"), marks=pytest.mark.slow),
        pytest.param(("optimizer.distributed=true", "precision.dtype=bf16"), marks=pytest.mark.slow),
        ("optimizer.distributed=false", "precision.dtype=bf16"),
    ],
    ids=["distributed-fp32", "plain-fp32", "distributed-bf16", "plain-bf16"],
)
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(
    case: Path, finished: SmallRun, tmp_path: Path, overrides: tuple[str, ...]
) -> None:
    if overrides:
        whole = SmallRun(case / "config.yaml", tmp_path / "whole", overrides)
        assert whole.stage("warmup") == whole.stage("joint") == 0
    else:  # which `finished` has without any
        whole, settings = finished, finished.config()
        assert settings.optimizer.distributed and settings.precision.dtype == "fp32" and settings.checkpoint.async_
    resumed = whole.copy(tmp_path / "resumed")
    for stage in ("warmup", "joint"):
        resumed.go_back(stage, 2)
        assert resumed.stage(stage) == 0
        assert resumed.lines(stage) == whole.lines(stage)
        assert [line["step"] for line in resumed.lines(stage, "train")] == [1, 2, 3, 4]
        assert stored_hashes(resumed.step(stage, STEPS)) == stored_hashes(whole.step(stage, STEPS))
        for key in ("counts", "warmup"):
            contents = (read_manifest(run.step(stage, STEPS)).content.get(key) for run in (resumed, whole))
            assert next(contents) == next(contents)


def test_what_a_run_leaves(finished: SmallRun) -> None:
    names = {path.name for path in finished.directory.iterdir()}
    assert names == {
        "config.yaml",
        "data",
        "events.jsonl",
        "metrics.jsonl",
        "run.lock",
        "tensorboard",
        "warmup",
        "joint",
    }
    assert (finished.directory / "config.yaml").read_text().startswith(f"run_dir: {finished.directory}\n")
    for stage in ("warmup", "joint"):
        assert {path.name for path in (finished.directory / stage).iterdir()} == {
            "latest",
            "step_000002",
            "step_000004",
        }
        assert finished.latest(stage) == "step_000004"
        train = finished.lines(stage, "train")
        assert [line["step"] for line in train] == [1, 2, 3, 4]
        assert [line["step"] for line in finished.lines(stage, "valid")] == [2, 4]
        assert {line["samples"] for line in train} == {6}
        assert list((finished.directory / "tensorboard" / stage).glob("events.*"))


def test_warmup_checkpoints_name_the_specialists_and_do_not_hold_them(finished: SmallRun) -> None:
    warmup, joint = finished.step("warmup", STEPS), finished.step("joint", STEPS)
    size = {path: sum(file.stat().st_size for file in path.rglob("*.distcp")) for path in (warmup, joint)}
    assert size[warmup] < size[joint] / 20
    references = read_manifest(warmup).content["references"]
    assert set(references) == {"text", "code", "math"}
    assert all(Path(reference["path"]).is_dir() for reference in references.values())


def test_a_finished_stage_says_so(finished: SmallRun, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted((path, path.stat().st_mtime_ns) for path in finished.directory.rglob("*"))
    for stage in ("warmup", "joint"):
        assert finished.stage(stage) == 0
        assert capsys.readouterr().out == f"{stage} is finished: {finished.step(stage, STEPS)}\n"
    assert sorted((path, path.stat().st_mtime_ns) for path in finished.directory.rglob("*")) == before


def test_more_steps_go_on_and_stretch_the_schedule(finished: SmallRun, tmp_path: Path) -> None:
    run = finished.copy(tmp_path / "run")
    assert run.stage("warmup", "warmup.steps=6", "evaluation.interval=6") == 0
    assert [line["step"] for line in run.lines("warmup", "train")] == [1, 2, 3, 4, 5, 6]
    assert run.lines("warmup")[:4] == finished.lines("warmup")[:4]
    # 1e-2 · (1 + cos(π · 4/6)) / 2
    assert run.lines("warmup", "train")[4]["lr"] == pytest.approx(0.25e-2)
    assert run.latest("warmup") == "step_000006"


def test_fewer_steps_than_done_is_finished(finished: SmallRun, tmp_path: Path) -> None:
    run = finished.copy(tmp_path / "run")
    assert run.stage("warmup", "warmup.steps=3") == 0
    assert run.lines("warmup") == finished.lines("warmup")


def test_the_time_limit_counts_from_the_command(run: SmallRun, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is imported and looked at before the stage takes of it too."""
    told: list[tuple[float, float]] = []
    checked: list[float] = []
    check = stages.check_start

    def stop(_: object, limit: float, started: float) -> Stop:
        told.append((limit, started))
        return Stop(torch.device("cpu"), limit, started)

    def check_later(*arguments: Any) -> Any:
        checked.append(time.monotonic())
        return check(*arguments)

    monkeypatch.setattr(stages, "Stop", stop)
    monkeypatch.setattr(stages, "check_start", check_later)
    began = time.monotonic()
    assert run.stage("warmup", "--time-limit", "00:10") == 0
    ((limit, started),) = told
    assert limit < 600 and began < started <= checked[0]
