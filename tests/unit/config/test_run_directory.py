"""The names of a run's files, which checkpoint an argument means, and whether a stage is finished."""

from dataclasses import replace
from pathlib import Path

import pytest

from megafuser.config.compute import PrecisionConfig
from megafuser.config.data import DataConfig, DomainConfig
from megafuser.config.load import to_yaml
from megafuser.config.run_directory import (
    RunDirectory,
    checkpoint_config,
    finished_checkpoint,
    resolve_checkpoint,
    step_number,
)
from megafuser.config.schema import RunConfig
from megafuser.config.specialists import SpecialistConfig
from megafuser.config.stages import WarmupConfig
from megafuser.errors import UserError


def make_step(run: RunDirectory, stage: str, step: int, latest: bool = True) -> Path:
    directory = run.step_directory(stage, step)
    directory.mkdir(parents=True)
    (directory / "manifest.json").write_text("{}")
    if latest:
        run.latest_file(stage).write_text(f"{directory.name}\n")
    return directory


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return RunDirectory(tmp_path / "run")


def test_names(run: RunDirectory) -> None:
    assert run.step_directory("warmup", 400) == run.path / "warmup/step_000400"
    assert run.step_directory("joint", 1234567) == run.path / "joint/step_1234567"
    assert run.config_file == run.path / "config.yaml"
    assert run.metrics_file == run.path / "metrics.jsonl"
    assert run.tensorboard == run.path / "tensorboard"
    assert [step_number(name) for name in ("step_000400", "step_000400.damaged", "latest", "step_4")] == [
        400,
        None,
        None,
        None,
    ]


def test_latest(run: RunDirectory) -> None:
    assert run.latest("warmup") is None
    older = make_step(run, "warmup", 10)
    make_step(run, "warmup", 20, latest=False)
    assert run.latest("warmup") == older
    for name in ("step_000099", "../../etc", "", "step_000010.damaged"):
        run.latest_file("warmup").write_text(name)
        assert run.latest("warmup") is None


def test_a_checkpoint_is_found_by_step_stage_and_run(run: RunDirectory) -> None:
    first, last = make_step(run, "warmup", 10), make_step(run, "warmup", 20)
    assert resolve_checkpoint(first) == first
    assert resolve_checkpoint(run.stage("warmup")) == last
    assert resolve_checkpoint(run.path) == last
    joint = make_step(run, "joint", 5)
    assert resolve_checkpoint(str(run.path)) == joint
    assert resolve_checkpoint(run.stage("warmup")) == last


def test_a_stage_without_checkpoints_does_not_hide_the_one_before(run: RunDirectory) -> None:
    step = make_step(run, "warmup", 10)
    run.stage("joint").mkdir()
    assert resolve_checkpoint(run.path) == step


def test_no_checkpoint(run: RunDirectory) -> None:
    with pytest.raises(UserError, match="no such directory"):
        resolve_checkpoint(run.path)
    run.path.mkdir()
    with pytest.raises(UserError, match="no checkpoint at"):
        resolve_checkpoint(run.path)
    unfinished = run.step_directory("joint", 5)
    unfinished.mkdir(parents=True)
    with pytest.raises(UserError, match="it has no manifest"):
        resolve_checkpoint(unfinished)
    run.latest_file("joint").write_text("step_000005")
    for path in (run.path, run.stage("joint")):
        with pytest.raises(UserError, match=r"latest names 'step_000005', which is not a checkpoint"):
            resolve_checkpoint(path)
    file = run.path / "file"
    file.touch()
    with pytest.raises(UserError, match="no checkpoint at"):
        resolve_checkpoint(file)


@pytest.fixture
def config(run: RunDirectory) -> RunConfig:
    return RunConfig(
        run_dir=str(run.path),
        specialists=tuple(SpecialistConfig(name, "c", "plain") for name in ("a", "b")),
        data=DataConfig(domains={"text": DomainConfig(("t",), ("v",))}),
        warmup=WarmupConfig(steps=20),
    )


def test_a_finished_stage(run: RunDirectory, config: RunConfig) -> None:
    assert finished_checkpoint(config, "warmup") is None
    make_step(run, "warmup", 10)
    run.config_file.write_text(to_yaml(config))
    assert finished_checkpoint(config, "warmup") is None
    last = make_step(run, "warmup", 20)
    assert finished_checkpoint(config, "warmup") == last
    assert finished_checkpoint(config, "joint") is None
    assert finished_checkpoint(replace(config, seed=1), "warmup") is None
    assert finished_checkpoint(replace(config, warmup=WarmupConfig(steps=30)), "warmup") is None


def test_a_moved_run_is_still_finished(run: RunDirectory, config: RunConfig) -> None:
    make_step(run, "warmup", 20)
    run.config_file.write_text(to_yaml(config))
    moved = RunDirectory(run.path.rename(run.path.with_name("moved")))
    assert finished_checkpoint(replace(config, run_dir=str(moved.path)), "warmup") == moved.latest("warmup")


def test_what_the_checkpoint_itself_was_made_with_counts(run: RunDirectory, config: RunConfig) -> None:
    last = make_step(run, "warmup", 20)
    run.config_file.write_text(to_yaml(config))
    (last / "config.yaml").write_text(to_yaml(replace(config, seed=1)))
    assert finished_checkpoint(config, "warmup") is None


@pytest.mark.parametrize("where", ["device=cpu", "backend = torch", "precision.dtype=fp32"])
def test_what_was_trained_with_fp8_is_read_without(run: RunDirectory, config: RunConfig, where: str) -> None:
    """Where there is none; asked for by name it is refused as ever."""
    step = make_step(run, "joint", 10)
    trained = replace(config, precision=PrecisionConfig(fp8="tensorwise", fp8_first_last_bf16=True))
    (step / "config.yaml").write_text(to_yaml(trained))
    assert checkpoint_config(step) == trained
    read = checkpoint_config(step, [where]).precision
    assert (read.fp8, read.fp8_first_last_bf16) == (None, False)
    assert read.dtype == ("fp32" if "fp32" in where else "bf16")
    with pytest.raises(UserError, match=r"precision\.fp8: 'tensorwise' needs "):
        checkpoint_config(step, [where, "precision.fp8=tensorwise"])
