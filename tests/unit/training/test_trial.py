"""A trial of a stage: real steps, numbers at the end, and nothing of the run is touched."""

import dataclasses
import errno
import hashlib
import re
import signal
import sys
from pathlib import Path

import pytest

from megafuser.cli.main import main
from megafuser.config.compute import ParallelConfig
from megafuser.config.run_directory import RunDirectory
from megafuser.planning.communication import Communication
from megafuser.planning.plan import StagePlan, Task, plan_stage
from megafuser.runtime.file_lock import lock
from megafuser.training import trial_summary
from megafuser.training.stop import ExitTime, Stop
from megafuser.training.trial_summary import fitting_mfu
from megafuser.watching.json_lines import read_lines
from tests.unit.planning.architectures import QWEN_7B
from tests.unit.planning.made_up_tasks import make_task
from tests.unit.training.small_run import SmallRun

TRIAL = ("--trial", "3")


def contents(directory: Path) -> dict[str, tuple[str, int]]:
    """Every file below a directory, with its hash and the time of its last change."""
    return {
        str(path.relative_to(directory)): (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns)
        for path in directory.rglob("*")
        if path.is_file()
    }


def trial(run: SmallRun, stage: str, *overrides: str) -> int:
    arguments = [f"run_dir={run.directory}", *run.overrides, *overrides]
    return main([stage, "--config", str(run.config_file), *TRIAL, *arguments])


def test_a_run_that_is_finished_is_left_as_it_is(
    finished: SmallRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = finished.copy(tmp_path / "run")
    before = contents(run.directory)
    assert trial(run, "joint") == 0
    after = contents(run.directory)
    added = {name.split("/")[0] for name in after.keys() - before.keys()}
    assert added == {"trial"}
    assert {name: after[name] for name in before} == before
    out = capsys.readouterr().out.splitlines()
    assert out[0] == f"trial: 3 steps of joint, starting from {run.step('warmup', 4)}; saved nothing"
    assert re.fullmatch(r"step: [\d.e-]+ s \(median of 1, the first 2 left out\), [\d,]+ tokens/s", out[1])
    memory = re.fullmatch(
        r"peak memory of the process: ([\d.]+) GiB on the fullest rank; planned [\d.]+ GiB of tensors", out[2]
    )
    assert memory is not None and float(memory[1]) > 0.1
    assert re.fullmatch(r"speed: [\d.e-]+ TFLOP/s on each process", out[3])
    found = re.fullmatch(r"stage: 4 steps, \d+ seconds with 2 validations of ([\d.e-]+) s, without saving", out[4])
    assert found is not None and float(found[1]) > 0
    lines = read_lines(run.directory / "trial" / "metrics.jsonl", ("stage", "split"))
    assert [line["split"] for line in lines] == ["train", "train", "valid", "train", "valid"]
    # the very steps that the stage would make, learning rates and all
    for ours, reference in zip(lines[:4], run.lines("joint")[:4], strict=True):
        assert ours["loss"] == reference["loss"] and ours.get("lr") == reference.get("lr")
    assert read_lines(run.directory / "trial" / "events.jsonl", ("event",))[-1]["event"] == "finished"


@pytest.mark.parametrize("stage", ["warmup", "joint"])
def test_a_run_that_has_not_begun_gets_its_caches_only(
    run: SmallRun, stage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert trial(run, stage) == 0
    assert "starting from the converted specialists with a new gate" in capsys.readouterr().out
    assert sorted(path.name for path in run.directory.iterdir()) == ["data", "trial"]
    names = {path.name for path in (run.directory / "trial").iterdir()}
    assert names == {"config.yaml", "events.jsonl", "metrics.jsonl", "run.lock", "tensorboard"}
    caches = contents(run.directory / "data")
    (run.directory / "trial" / "left over").touch()
    assert trial(run, stage) == 0
    assert contents(run.directory / "data") == caches
    assert {path.name for path in (run.directory / "trial").iterdir()} == names
    lines = read_lines(run.directory / "trial" / "metrics.jsonl", ("stage", "split"))
    assert [line["step"] for line in lines if line["split"] == "train"] == [1, 2, 3]
    assert run.stage("warmup") == 0
    assert run.latest("warmup") == "step_000004"


def test_what_is_a_run_is_not_replaced(finished: SmallRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = SmallRun(finished.config_file, tmp_path)
    finished.copy(tmp_path / "trial")
    before = contents(tmp_path / "trial")
    assert trial(run, "warmup") == 2
    assert "has checkpoints, so it is a run and no trial; move it" in capsys.readouterr().err
    assert contents(tmp_path / "trial") == before


@pytest.mark.parametrize("config", [None, "run_dir: runs/mine\n", "- a\n", "a: [\n"])
def test_nor_what_no_trial_has_left(run: SmallRun, capsys: pytest.CaptureFixture[str], config: str | None) -> None:
    notes = run.directory / "trial/notes.txt"
    notes.parent.mkdir(parents=True)
    notes.touch()
    if config is not None:
        (notes.parent / "config.yaml").write_text(config)
    assert trial(run, "warmup") == 2
    assert (
        "trial holds what no trial has left (a trial's has a config.yaml of its own); move it"
        in capsys.readouterr().err
    )
    assert notes.exists() and [path.name for path in run.directory.iterdir()] == ["trial"]


def test_nor_what_is_a_run_that_has_only_tokenized(run: SmallRun, capsys: pytest.CaptureFixture[str]) -> None:
    tokenized = run.directory / "trial/data/text/samples.arrow"
    tokenized.parent.mkdir(parents=True)
    tokenized.touch()
    assert trial(run, "warmup") == 2
    assert "trial has tokenized samples, so it is a run and no trial; move it" in capsys.readouterr().err
    assert tokenized.exists() and [path.name for path in run.directory.iterdir()] == ["trial"]


def test_scratch_may_be_a_link(run: SmallRun, tmp_path: Path) -> None:
    scratch = tmp_path / "scratch"
    (scratch / "tensorboard").mkdir(parents=True)
    (scratch / "tensorboard" / "of the trial before").touch()
    (scratch / "config.yaml").write_text("run_dir: elsewhere/trial\n")
    run.directory.mkdir()
    (run.directory / "trial").symlink_to(scratch)
    assert trial(run, "warmup") == 0
    assert sorted(path.name for path in scratch.iterdir()) == [
        "config.yaml",
        "events.jsonl",
        "metrics.jsonl",
        "run.lock",
        "tensorboard",
    ]
    assert not (scratch / "tensorboard" / "of the trial before").exists()


def test_a_second_trial_is_refused_while_the_first_measures(run: SmallRun, capsys: pytest.CaptureFixture[str]) -> None:
    """It would empty the directory in which the first finds its numbers at its end."""
    assert trial(run, "warmup") == 0
    directory = RunDirectory(run.directory / "trial")
    before = contents(directory.path)
    with directory.lock_file.open("r+") as file:
        lock(file)
        assert trial(run, "warmup") == 2
    assert f"is training in {directory.path}; wait for it, stop it, or choose" in capsys.readouterr().err
    assert contents(directory.path) == before
    assert trial(run, "warmup") == 0


def test_a_lock_alone_is_no_reason_to_refuse_the_directory(run: SmallRun) -> None:
    """As a kill may leave it before the configuration is there."""
    directory = RunDirectory(run.directory / "trial")
    directory.path.mkdir(parents=True)
    directory.lock_file.touch()
    assert trial(run, "warmup") == 0


def test_scratch_that_cannot_be_emptied(
    run: SmallRun, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (run.directory / "trial/tensorboard").mkdir(parents=True)
    (run.directory / "trial/config.yaml").write_text("run_dir: elsewhere/trial\n")

    def refuses(path: Path) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted", str(path))

    monkeypatch.setattr("megafuser.training.trial.remove_directory", refuses)
    assert trial(run, "warmup") == 2
    assert "trial cannot be emptied and written ([Errno 1] Operation not permitted: " in capsys.readouterr().err


def test_it_is_planned_for_the_samples_of_its_steps(run: SmallRun, monkeypatch: pytest.MonkeyPatch) -> None:
    """Attention goes by the squares of their lengths, which a mean length does not tell."""
    planned = []

    def plan(task: Task, stage: str) -> StagePlan:
        planned.append(task.samples)
        return plan_stage(task, stage)

    monkeypatch.setattr(trial_summary, "plan_stage", plan)
    assert trial(run, "warmup") == 0
    lines = read_lines(run.directory / "trial" / "metrics.jsonl", ("stage", "split"))
    steps = [line for line in lines if line["split"] == "train"]
    (samples,) = planned
    assert len(samples.lengths) == len(samples.responses) == sum(line["samples"] for line in steps)
    assert samples.lengths.sum() == sum(line["tokens"] for line in steps)
    assert samples.responses.sum() == sum(line["response_tokens"] for line in steps)
    assert len(set(samples.lengths.tolist())) > 1


def test_a_gate_that_does_not_fit_is_refused(finished: SmallRun, capsys: pytest.CaptureFixture[str]) -> None:
    before = contents(finished.directory)
    assert trial(finished, "joint", "gate.hidden_size=8") == 2
    assert "gate.hidden_size: 8, but the gate of" in capsys.readouterr().err
    assert contents(finished.directory) == before


def test_stopped_early_saves_nothing(
    run: SmallRun, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    after_step = Stop.after_step

    def interrupted(self: Stop, save: ExitTime | None) -> str | None:
        signal.raise_signal(signal.SIGTERM)
        return after_step(self, save)

    monkeypatch.setattr(Stop, "after_step", interrupted)
    assert trial(run, "warmup") == 75
    assert "the trial stopped, since SIGTERM was received; run the same command again" in capsys.readouterr().err
    assert sorted(path.name for path in run.directory.iterdir()) == ["data", "trial"]


@pytest.mark.parametrize("stage", ["warmup", "joint"])
def test_the_preflight_looks_at_what_a_trial_needs(
    finished: SmallRun, run: SmallRun, stage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Neither a warm-up that is done nor room for checkpoints; and a stage that is finished can be tried."""
    for one in (run, finished):
        words = ["preflight", stage, "--config", str(one.config_file), *TRIAL, f"run_dir={one.directory}"]
        assert main(words) == 0
        assert "preflight: this process is ready" in capsys.readouterr().err


def test_the_preflight_refuses_what_a_trial_refuses_and_no_more(
    finished: SmallRun, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would send nothing, so its package may be missing; a run in its directory must not be emptied."""
    monkeypatch.setitem(sys.modules, "wandb", None)
    words = ["preflight", "warmup", "--config", str(finished.config_file), "logging.wandb={project: fusion}"]
    assert main([*words, f"run_dir={finished.directory}", "warmup.steps=8"]) == 2
    assert "logging.wandb" in capsys.readouterr().err
    assert main([*words, *TRIAL, f"run_dir={finished.directory}"]) == 0
    finished.copy(tmp_path / "trial")
    capsys.readouterr()
    assert main([*words, *TRIAL, f"run_dir={tmp_path}"]) == 2
    assert "has checkpoints, so it is a run and no trial; move it" in capsys.readouterr().err


def test_the_share_with_which_a_plan_says_the_same() -> None:
    task = make_task(QWEN_7B, gpus=8, parallel=ParallelConfig(tensor=4, sequence=True))
    plan = plan_stage(task, "joint")
    assert plan.time.seconds is not None and plan.time.communication.total > 0
    assert fitting_mfu(plan, 0.4, plan.time.seconds) == pytest.approx(0.4)
    slower = 2 * plan.time.seconds - plan.time.communication.total  # computing takes twice as long
    share = fitting_mfu(plan, 0.4, slower)
    assert share == pytest.approx(0.2)
    assert plan_stage(dataclasses.replace(task, mfu=share), "joint").time.seconds == pytest.approx(slower)
    assert fitting_mfu(plan, 0.4, plan.time.communication.total / 2) is None
    no_rate = dataclasses.replace(plan.time, seconds=None, communication=Communication())
    assert fitting_mfu(dataclasses.replace(plan, time=no_rate), 0.4, 1.0) is None
