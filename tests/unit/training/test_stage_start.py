"""What the two stages start from, go on from, and refuse."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from megafuser.checkpoint.manifest import read_manifest, write_manifest
from megafuser.config.run_directory import RunDirectory
from megafuser.training import stages
from megafuser.training.run_lock import RunLock
from tests.fused_case import SPECIALISTS
from tests.unit.training.small_run import STEPS, SmallRun


@pytest.mark.parametrize(
    ("stage", "override", "says"),
    [
        ("warmup", "warmup.lr=0.5", "warmup.lr"),
        ("warmup", "seed=7", "seed"),
        ("joint", "joint.samples_per_domain=1", "joint.samples_per_domain"),
        ("joint", "specialists.0.template=plain", "specialists"),
        ("joint", "optimizer.betas=[0.5,0.9]", "optimizer.betas"),
        ("joint", "precision.dtype=bf16", "precision.dtype"),
    ],
)
def test_a_checkpoint_of_another_configuration_is_refused(
    finished: SmallRun, capsys: pytest.CaptureFixture[str], stage: str, override: str, says: str
) -> None:
    before = sorted((path, path.stat().st_mtime_ns) for path in finished.directory.rglob("*"))
    assert finished.stage(stage, f"{stage}.steps=5", override) == 2
    error = capsys.readouterr().err
    assert error.startswith("megafuser: error: ") and error.count("\n") == 1
    assert "is of another configuration" in error and says in error
    assert sorted((path, path.stat().st_mtime_ns) for path in finished.directory.rglob("*")) == before


@pytest.mark.parametrize(
    ("overrides", "key", "says"),
    [
        (["warmup.lr=0.5"], None, "is of another configuration (warmup.lr: "),
        ([], "other", "data.domains.math: its train samples are not those that the run began with (key other"),
    ],
)
def test_a_checkpoint_that_another_job_saves_meanwhile_is_compared_too(
    finished: SmallRun,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    overrides: list[str],
    key: str | None,
    says: str,
) -> None:
    """Where this one waited for it to leave the run's directory."""
    run = SmallRun(finished.config_file, tmp_path / "run")
    held = RunLock.held

    @contextmanager
    def held_after_another(lock: RunLock) -> Iterator[None]:
        shutil.copytree(finished.directory / "warmup", run.directory / "warmup")
        checkpoint = run.step("warmup", STEPS)
        manifest = read_manifest(checkpoint)
        if key is not None:
            manifest.run["data"]["math"]["train"] = key
            write_manifest(checkpoint, manifest)
        with held(lock):
            yield

    monkeypatch.setattr(RunLock, "held", held_after_another)
    assert run.stage("warmup", "warmup.steps=5", *overrides) == 2
    assert says in capsys.readouterr().err
    assert run.latest("warmup") == f"step_{STEPS:06d}" and not run.step("warmup", 5).exists()


@pytest.mark.parametrize("stage", ["warmup", "joint"])
def test_a_checkpoint_of_another_vocabulary_is_refused(
    case: Path, finished: SmallRun, tmp_path: Path, capsys: pytest.CaptureFixture[str], stage: str
) -> None:
    """Specialists that are converted again with other tokenizers keep their content hash."""
    for directory in ("mcore", "data"):
        shutil.copytree(case / directory, tmp_path / directory)
    others = [f"specialists.{index}.checkpoint={tmp_path}/mcore/{name}" for index, name in enumerate(SPECIALISTS)]
    run = SmallRun(finished.config_file, shutil.copytree(finished.directory, tmp_path / "run"), tuple(others))
    if stage == "joint":  # which then starts from the warm-up
        shutil.rmtree(run.directory / "joint")
    tokenizer = tmp_path / "mcore/text/huggingface/tokenizer.json"
    values = json.loads(tokenizer.read_text("utf-8"))
    values["model"]["vocab"] = {key: value for key, value in values["model"]["vocab"].items() if value < 319}
    values["model"]["merges"] = values["model"]["merges"][:-1]
    tokenizer.write_text(json.dumps(values), "utf-8")
    assert run.stage(stage, f"{stage}.steps=5") == 2
    assert capsys.readouterr().err.splitlines() == [
        f"megafuser: error: {run.step('warmup', STEPS)} was trained with shared vocabulary 320, but this configuration "
        "gives 319; use the run's own tokenizers"
    ]


def test_settings_of_the_other_stage_may_change(finished: SmallRun, tmp_path: Path) -> None:
    run = finished.copy(tmp_path / "run")
    run.go_back("joint", 2)
    others = ("checkpoint.keep=1", "evaluation.interval=4", "data.workers=1", f"data.cache_dir={tmp_path}")
    assert run.stage("joint", "warmup.lr=0.5", *others) == 0
    assert run.latest("joint") == "step_000004"


def test_joint_training_needs_a_warmup(run: SmallRun, capsys: pytest.CaptureFixture[str]) -> None:
    assert run.stage("joint") == 2
    error = capsys.readouterr().err
    assert "no warm-up checkpoint" in error and "joint.init_from" in error and error.count("\n") == 1
    assert not run.directory.exists()


def test_joint_training_from_another_run(finished: SmallRun, run: SmallRun) -> None:
    assert run.stage("joint", f"joint.init_from={finished.directory / 'warmup'}", "joint.steps=1") == 0
    assert run.lines("joint", "train") == finished.lines("joint", "train")[:1]
    assert not (run.directory / "warmup").exists()


def test_a_moved_run_goes_on_without_the_converted_specialists(finished: SmallRun, case: Path, tmp_path: Path) -> None:
    """A joint checkpoint is self-contained."""
    expected = finished.copy(tmp_path / "expected")
    assert expected.stage("joint", "joint.steps=6") == 0
    moved = finished.copy(tmp_path / "moved")
    (case / "mcore").rename(case / "away")
    try:
        assert moved.stage("joint", "joint.steps=6") == 0
    finally:
        (case / "away").rename(case / "mcore")
    assert moved.lines("joint") == expected.lines("joint")


def test_the_heartbeat_is_as_configured_and_a_lost_rank_is_noted(
    finished: SmallRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []
    monkeypatch.setattr(stages, "Heartbeat", lambda *seconds, lost: made.append((seconds, lost)))
    config = finished.config("faults.silent_seconds=30", "faults.stuck_minutes=5")
    stages.stage_heartbeat(config, RunDirectory(tmp_path), "joint")
    ((seconds, lost),) = made
    assert seconds == (30, 300)
    lost("rank 1 on node0 gave no sign for 30 s")
    (event,) = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert (event["event"], event["stage"]) == ("failed", "joint") and "rank 1 on node0" in event["message"]
