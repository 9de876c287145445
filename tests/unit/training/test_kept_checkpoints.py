"""Which checkpoints stay, and what happens to damaged ones."""

import errno
import io
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from megafuser.checkpoint.manifest import FORMAT_VERSION
from megafuser.checkpoint.read_lock import reading
from megafuser.config.run_directory import RunDirectory, resolve_checkpoint
from megafuser.errors import UserError
from megafuser.runtime.distributed import single_process_cpu
from megafuser.runtime.logs import configure_logs
from megafuser.training.kept_checkpoints import newest_intact, newest_readable, remove_old_checkpoints, write_best
from tests.unit.training.small_run import SmallRun


@pytest.fixture(autouse=True)
def shown() -> None:
    """The log is on standard error, as in a command."""
    configure_logs(0)


def flip_a_bit(checkpoint: Path) -> None:
    path = max(checkpoint.glob("weights/*.distcp"), key=lambda file: file.stat().st_size)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def remove_a_file(checkpoint: Path) -> None:
    (checkpoint / "weights/common.pt").unlink()


def cut_a_file(checkpoint: Path) -> None:
    path = max(checkpoint.glob("weights/*.distcp"), key=lambda file: file.stat().st_size)
    path.write_bytes(path.read_bytes()[:-1])


def flip_a_bit_of_the_index(checkpoint: Path) -> None:
    path = checkpoint / "weights/.metadata"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut_the_manifest(checkpoint: Path) -> None:
    path = checkpoint / "manifest.json"
    path.write_text(path.read_text()[:100])


def remove_the_manifest(checkpoint: Path) -> None:
    (checkpoint / "manifest.json").unlink()


def flip_a_bit_of_the_step(checkpoint: Path) -> None:
    path = checkpoint / "manifest.json"
    path.write_text(path.read_text().replace('"step": 4,', '"step": 5,', 1))


# what is done → what is said of it
DAMAGES: dict[Callable[[Path], None], str] = {
    flip_a_bit: "damaged: weights/__0_0.distcp",
    cut_a_file: "damaged: weights/__0_0.distcp",
    flip_a_bit_of_the_index: "damaged: weights/.metadata",
    remove_a_file: "missing: weights/common.pt",
    cut_the_manifest: "manifest.json is damaged",
    flip_a_bit_of_the_step: "manifest.json is damaged (it is not what was written)",
    remove_the_manifest: "it has no manifest.json",
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_it_used(
    finished: SmallRun, tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: Callable[[Path], None]
) -> None:
    copy = finished.copy(tmp_path / "run")
    run = RunDirectory(copy.directory)
    damaged, intact = copy.step("joint", 4), copy.step("joint", 2)
    damage(damaged)
    assert newest_intact(run, "joint") == intact
    assert capsys.readouterr().err == f"megafuser: warning: damaged checkpoint {damaged}; using {intact}\n"
    assert copy.latest("joint") == "step_000002"
    assert sorted(path.name for path in run.stage("joint").iterdir()) == [
        "latest",
        "step_000002",
        "step_000004.damaged",
    ]
    (said,) = (run.stage("joint") / "step_000004.damaged/damage.txt").read_text().splitlines()
    assert DAMAGES[damage] in said
    # asked again, nothing is left to say
    assert newest_intact(run, "joint") == intact
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("stage", ["warmup", "joint"])
def test_a_checkpoint_of_another_version_is_no_damage(
    finished: SmallRun, tmp_path: Path, capsys: pytest.CaptureFixture[str], stage: str
) -> None:
    """An older megafuser must not begin anew, and cut off the metrics, where a newer one has trained."""
    copy = finished.copy(tmp_path / "run")
    for step in (2, 4):
        path = copy.step(stage, step) / "manifest.json"
        path.write_text(path.read_text().replace(f'"format_version": {FORMAT_VERSION},', '"format_version": 99,', 1))
    before = sorted((path, path.stat().st_mtime_ns) for path in copy.directory.rglob("*"))
    assert copy.stage(stage, f"{stage}.steps=5") == 2
    error = capsys.readouterr().err
    assert f"format version 99, but this megafuser reads {FORMAT_VERSION}; update megafuser\n" in error
    with pytest.raises(UserError, match="format version 99"):
        newest_intact(RunDirectory(copy.directory), stage)
    assert sorted((path, path.stat().st_mtime_ns) for path in copy.directory.rglob("*")) == before


def test_files_too_many_are_no_damage(finished: SmallRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """NFS leaves `.nfs…` where a file was removed while somebody read it, and people leave notes."""
    copy = finished.copy(tmp_path / "run")
    run, newest = RunDirectory(copy.directory), copy.step("joint", 4)
    for name in ("weights/.nfs0000000000a1b2c300000001", "notes.txt"):
        (newest / name).write_text("x")
    readable = newest_readable(run, "joint")
    assert readable is not None and readable[0] == newest
    assert newest_intact(run, "joint") == newest
    assert capsys.readouterr().err == ""
    flip_a_bit(newest)
    assert newest_intact(run, "joint") == copy.step("joint", 2)
    said = (run.stage("joint") / "step_000004.damaged/damage.txt").read_text().splitlines()
    assert said == [
        "damaged: weights/__0_0.distcp",
        "extra: notes.txt",
        "extra: weights/.nfs0000000000a1b2c300000001",
    ]


def test_two_damaged_checkpoints(finished: SmallRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = finished.copy(tmp_path / "run")
    for step in (2, 4):
        flip_a_bit(copy.step("warmup", step))
    assert newest_intact(RunDirectory(copy.directory), "warmup") is None
    warnings = capsys.readouterr().err.splitlines()
    assert len(warnings) == 2
    assert warnings[-1].endswith(f"damaged checkpoint {copy.step('warmup', 2)}; using none, the stage starts over")


def test_what_was_set_aside_earlier_stays(finished: SmallRun, tmp_path: Path) -> None:
    copy = finished.copy(tmp_path / "run")
    stage = copy.directory / "joint"
    for earlier in ("step_000004.damaged", "step_000004.damaged.2"):
        (stage / earlier).mkdir()
        (stage / earlier / "weights").write_text("much of it may be of use")
    flip_a_bit(copy.step("joint", 4))
    assert newest_intact(RunDirectory(copy.directory), "joint") == copy.step("joint", 2)
    assert (stage / "step_000004.damaged/weights").is_file() and (stage / "step_000004.damaged.2/weights").is_file()
    assert (stage / "step_000004.damaged.3/damage.txt").is_file()


@pytest.mark.parametrize("name", ["manifest.json", "config.yaml", "weights/__0_0.distcp"])
def test_a_disk_that_does_not_answer_is_not_damage(
    finished: SmallRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Nothing is set aside, and no stage starts over: the checkpoints may well be intact."""
    copy = finished.copy(tmp_path / "run")
    run, before = RunDirectory(copy.directory), sorted((copy.directory / "joint").iterdir())
    opened = io.open

    def stale(file: Any, *arguments: Any, **keywords: Any) -> Any:
        if str(file) == str(copy.step("joint", 4) / name):
            raise OSError(errno.ESTALE, "Stale file handle", str(file))
        return opened(file, *arguments, **keywords)

    monkeypatch.setattr(io, "open", stale)
    monkeypatch.setattr("builtins.open", stale)
    with pytest.raises(UserError, match=r"cannot be read on .*Stale file handle.*look after the disk"):
        newest_intact(run, "joint")
    if not name.startswith("weights/"):
        with pytest.raises(UserError, match=r"cannot be read on .*Stale file handle"):
            newest_readable(run, "joint")
    assert sorted((copy.directory / "joint").iterdir()) == before


def test_training_goes_on_before_a_damaged_checkpoint(
    finished: SmallRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Steps after the intact checkpoint are done again, and stand in the metrics once."""
    copy = finished.copy(tmp_path / "run")
    flip_a_bit(copy.step("joint", 4))
    assert copy.stage("joint", "joint.steps=5") == 0
    warning = f"megafuser: warning: damaged checkpoint {copy.step('joint', 4)}; using {copy.step('joint', 2)}"
    assert capsys.readouterr().err.splitlines().count(warning) == 1
    assert warning in [f"megafuser: warning: {event['message']}" for event in copy.events("warning")]
    assert [line["step"] for line in copy.lines("joint", "train")] == [1, 2, 3, 4, 5]
    assert copy.latest("joint") == "step_000005"


def test_stage_two_starts_before_a_damaged_warmup_checkpoint(
    finished: SmallRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = finished.copy(tmp_path / "run")
    shutil.rmtree(copy.directory / "joint")
    flip_a_bit(copy.step("warmup", 4))
    assert copy.stage("joint", "joint.steps=1") == 0
    error = capsys.readouterr().err
    assert f"damaged checkpoint {copy.step('warmup', 4)}; using {copy.step('warmup', 2)}\n" in error
    assert copy.lines("joint", "train")[0]["loss"] != finished.lines("joint", "train")[0]["loss"]


def test_stage_two_without_an_intact_warmup_checkpoint(
    finished: SmallRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`latest` does not name what was set aside."""
    copy = finished.copy(tmp_path / "run")
    shutil.rmtree(copy.directory / "joint")
    copy.go_back("warmup", 2)
    flip_a_bit(copy.step("warmup", 2))
    assert copy.stage("joint") == 2
    error = capsys.readouterr().err
    assert f"damaged checkpoint {copy.step('warmup', 2)}; using none, and joint training needs one\n" in error
    assert f"no warm-up checkpoint in {copy.directory / 'warmup'}; run `megafuser warmup` first" in error
    assert [path.name for path in (copy.directory / "warmup").iterdir()] == ["step_000002.damaged"]


def test_the_warmup_checkpoint_is_found_where_none_of_stage_two_is_intact(finished: SmallRun, tmp_path: Path) -> None:
    copy = finished.copy(tmp_path / "run")
    run = RunDirectory(copy.directory)
    copy.go_back("joint", 2)
    write_best(run, "joint", copy.step("joint", 2))
    flip_a_bit(copy.step("joint", 2))
    with single_process_cpu():
        assert newest_intact(run, "joint") is None
    assert not run.latest_file("joint").exists() and not run.best_file("joint").exists()
    assert resolve_checkpoint(str(copy.directory)) == copy.step("warmup", 4)


def test_stage_two_starts_over_where_its_only_checkpoint_is_damaged(
    finished: SmallRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = finished.copy(tmp_path / "run")
    copy.go_back("joint", 2)
    flip_a_bit(copy.step("joint", 2))
    assert copy.stage("joint") == 0
    assert "using none, the stage starts over" in capsys.readouterr().err
    assert copy.lines("joint") == finished.lines("joint")


def test_the_newest_are_kept(run: SmallRun) -> None:
    assert run.stage("warmup", "warmup.steps=7", "checkpoint.interval=1", "checkpoint.keep=2") == 0
    stage = run.directory / "warmup"
    assert sorted(path.name for path in stage.iterdir()) == ["latest", "step_000006", "step_000007"]
    assert run.latest("warmup") == "step_000007"


def test_steps_are_ordered_as_numbers(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    for step in (999_999, 1_000_000, 2):
        run.step_directory("joint", step).mkdir(parents=True)
    (run.stage("joint") / "step_000003.damaged").mkdir()
    remove_old_checkpoints(run, "joint", keep=1)
    names = {path.name for path in run.stage("joint").iterdir()}
    assert names == {"step_1000000", "step_000003.damaged"}


def test_what_may_still_be_wanted_stays(finished: SmallRun, tmp_path: Path) -> None:
    """The one that `latest` names, the newest that is complete, and one that somebody reads."""
    copy = finished.copy(tmp_path / "run")
    run = RunDirectory(copy.directory)
    for step in (1, 3, 5, 6):
        shutil.copytree(copy.step("warmup", 2), copy.step("warmup", step))
    for step in (5, 6):
        remove_a_file(copy.step("warmup", step))
    run.latest_file("warmup").write_text("step_000002\n")

    def kept() -> list[int]:
        remove_old_checkpoints(run, "warmup", keep=1)
        return [step for step in range(9) if copy.step("warmup", step).exists()]

    with reading(copy.step("warmup", 1)):
        assert kept() == [1, 2, 4, 6]
    assert kept() == [2, 4, 6]
    assert {path.name[0] for path in run.stage("warmup").iterdir()} == {"s", "l"}, "nothing half is left"


def test_no_stage_no_checkpoint(tmp_path: Path) -> None:
    assert newest_readable(RunDirectory(tmp_path), "warmup") is None
    assert newest_intact(RunDirectory(tmp_path), "warmup") is None


def test_what_a_kill_left_is_no_checkpoint(finished: SmallRun, tmp_path: Path) -> None:
    """A save that was killed leaves a temporary directory; the next save of the step removes it."""
    copy = finished.copy(tmp_path / "run")
    copy.go_back("joint", 2)
    leftovers = [copy.directory / "joint" / f".step_{step}.tmp-1-abcdef01" for step in ("000004", "000003")]
    for leftover in leftovers:
        (leftover / "weights").mkdir(parents=True)
    assert newest_intact(RunDirectory(copy.directory), "joint") == copy.step("joint", 2)
    assert copy.stage("joint") == 0
    assert not any(leftover.exists() for leftover in leftovers)
    assert copy.lines("joint") == finished.lines("joint")
