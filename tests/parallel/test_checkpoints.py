"""Checkpoints of several ranks: written beside training or not, by parameter or by rank, and gone on from."""

import re
from pathlib import Path
from typing import Any

import pytest

from megafuser.checkpoint.manifest import read_manifest, verify_files
from megafuser.cli.main import main
from megafuser.training import reshard
from tests.parallel.launch import run_commands, run_ranks, torchrun
from tests.parallel.layout_cases import BUCKET
from tests.ports import free_ports
from tests.unit.training.small_run import STEPS, SmallRun, make_small_case, stored_hashes

TOLERANCE = 1e-4
ON_EXIT = "checkpoint.reshardable=on_exit"
TENSOR = "parallel.tensor=2"
EVERY_STEP = "checkpoint.interval=1"
EVERY_OTHER = "checkpoint.interval=2"
# constant, so that the numbers do not depend on where a run ends
CONSTANT = "joint.min_lr=1e-3"


def command(run: SmallRun, stage: str, *overrides: str) -> list[str]:
    return [stage, "--config", str(run.config_file), f"run_dir={run.directory}", EVERY_STEP, CONSTANT, *overrides]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_small_case(tmp_path_factory.mktemp("checkpoints"))


@pytest.fixture(scope="module")
def runs(root: Path) -> dict[str, SmallRun]:
    """Runs of two ranks that start from the same warm-up, stopped at step 2 and gone on from there, or not."""
    config = root / "config.yaml"
    stopped, by_rank = ("checkpoint.async=false", EVERY_OTHER), (ON_EXIT, "checkpoint.keep=9")
    joint: dict[str, tuple[str, ...]] = {
        "dp_whole": (),
        "dp_sync": stopped,
        "dp_on_exit": by_rank,
        # each rank has all states of its part of the model: nothing is left to save by rank
        "tp_whole": (TENSOR, *by_rank),
        "tp_sync": (TENSOR, *stopped),
    }
    first = SmallRun(config, root / "first")
    assert main(command(first, "warmup")) == 0
    runs: dict[str, SmallRun] = {}
    commands = []
    for name, overrides in joint.items():
        runs[name] = run = first.copy(root / name)
        commands.append(command(run, "joint", *overrides))
    run_commands(2, commands)
    commands = []
    for name, overrides in (("dp_whole", ()), ("dp_on_exit", (ON_EXIT,)), ("tp_whole", (TENSOR,))):
        runs[f"{name}_resumed"] = run = runs[name].copy(root / f"{name}_resumed")
        run.go_back("joint", 2)
        commands.append(command(run, "joint", *overrides, EVERY_OTHER))
    runs["tp_sync_pp"] = run = runs["tp_sync"].copy(root / "tp_sync_pp")
    run.go_back("joint", 2)
    commands.append(command(run, "joint", "parallel.pipeline=2", EVERY_OTHER))
    runs["converted"] = run = runs["dp_on_exit"].copy(root / "converted")
    run.go_back("joint", 2)
    assert main(converting(run.step("joint", 2))) == 0
    commands.append(command(run, "joint", TENSOR, ON_EXIT, EVERY_OTHER))
    checkpoint = str(runs["dp_on_exit"].step("joint", 2))
    commands.append(["reshard", "--checkpoint", checkpoint, "--out", str(root / "resharded")])
    run_commands(2, commands)
    return runs


def converting(checkpoint: Path) -> list[str]:
    """The command that makes a checkpoint load at any layout, in its place."""
    return ["reshard", "--checkpoint", str(checkpoint), "--out", str(checkpoint), "--overwrite"]


@pytest.mark.parallel
@pytest.mark.parametrize("layout", ["dp", "tp"])
@pytest.mark.parametrize("step", [2, STEPS])
def test_files_written_beside_training_are_those_of_a_stop(runs: dict[str, SmallRun], layout: str, step: int) -> None:
    beside, stopped = (stored_hashes(runs[f"{layout}_{name}"].step("joint", step)) for name in ("whole", "sync"))
    assert len(beside) == 2
    assert beside == stopped


@pytest.mark.parallel
@pytest.mark.parametrize("name", ["dp_whole", "dp_on_exit", "tp_whole"])
def test_a_resumed_run_equals_the_uninterrupted_one(runs: dict[str, SmallRun], name: str) -> None:
    whole, resumed = runs[name], runs[f"{name}_resumed"]
    assert resumed.lines("joint") == whole.lines("joint")
    assert stored_hashes(resumed.step("joint", STEPS)) == stored_hashes(whole.step("joint", STEPS))


@pytest.mark.parallel
def test_one_ranks_full_disk_fails_the_save_of_all(root: Path, tmp_path: Path) -> None:
    """All ranks are told the same, and save the next step together. By torchrun, as users train, and no other test."""
    run = SmallRun(root / "config.yaml", tmp_path / "run")
    done = torchrun(2, "tests.parallel.failing_rank", command(run, "warmup", "checkpoint.keep=9"), timeout=300)
    assert done.returncode == 0, done.stderr[-8000:]
    warnings = [line for line in done.stderr.splitlines() if "could not be saved" in line]
    assert len(warnings) == 1 and f"{run.step('warmup', 1)} could not be saved (rank 1: [Errno 28]" in warnings[0]
    names = sorted(path.name for path in (run.directory / "warmup").iterdir())
    assert names == ["latest", *(f"step_{step:06d}" for step in range(2, STEPS + 1))]


@pytest.mark.parallel
def test_from_tensor_to_pipeline_parallel(runs: dict[str, SmallRun]) -> None:
    """From a checkpoint of a stop, which is that of beside training to the bit; the layout makes one of rounding."""
    agree(runs["tp_sync_pp"], runs["tp_whole"])


@pytest.mark.parallel
def test_checkpoints_by_rank_are_those_between_steps(runs: dict[str, SmallRun]) -> None:
    """Where ranks share states; the last one, which is saved on leaving, loads anywhere."""
    layout = {"tensor": 1, "pipeline": 1, "virtual_pipeline": 1, "bucket_size": None}
    found = {
        (name, step): read_manifest(runs[name].step("joint", step)).content.get("optimizer_layout")
        for name in ("dp_on_exit", "tp_whole")
        for step in range(1, STEPS + 1)
    }
    assert found == {(name, step): layout if name == "dp_on_exit" and step < STEPS else None for name, step in found}
    by_rank, by_parameter = (runs[name].step("joint", 2) for name in ("dp_on_exit", "dp_whole"))
    assert all(verify_files(path, read_manifest(path)) == [] for path in (by_rank, by_parameter))
    assert runs["dp_on_exit"].lines("joint") == runs["dp_whole"].lines("joint")
    assert stored_hashes(runs["dp_on_exit"].step("joint", STEPS)) == stored_hashes(
        runs["dp_whole"].step("joint", STEPS)
    )


@pytest.mark.parallel
def test_a_checkpoint_by_rank_loads_at_another_data_parallel_size(runs: dict[str, SmallRun], tmp_path: Path) -> None:
    run = runs["dp_on_exit"].copy(tmp_path / "run")
    run.go_back("joint", 2)
    assert main(command(run, "joint", ON_EXIT)) == 0
    agree(run, runs["dp_whole"])


@pytest.mark.parallel
def test_another_layout_is_refused_with_the_command_that_converts(runs: dict[str, SmallRun], tmp_path: Path) -> None:
    run = runs["dp_on_exit"].copy(tmp_path / "run")
    run.go_back("joint", 2)
    checkpoint = run.step("joint", 2)
    before = {path: path.stat().st_mtime_ns for path in run.directory.rglob("*")}
    ranks = run_commands(2, [command(run, "joint", TENSOR, ON_EXIT)], fails=True)
    lines = [line for rank in ranks for line in rank.err.splitlines()]
    # a busy machine may not have ended rank 1 before it speaks for itself
    (error,) = [line for line in lines if re.match("megafuser: error: (?!rank 1: )", line)]
    assert "at its own layout only (tensor 1 → 2)" in error
    said = error.rsplit("convert it: ", 1)[1].split()
    assert {path: path.stat().st_mtime_ns for path in run.directory.rglob("*")} == before
    assert said == ["torchrun", "--nproc-per-node", "1", "-m", "megafuser", *converting(checkpoint)]


@pytest.mark.parallel
def test_a_converted_checkpoint_goes_on_at_another_layout(runs: dict[str, SmallRun]) -> None:
    checkpoint = runs["converted"].step("joint", 2)
    manifest = read_manifest(checkpoint)
    assert verify_files(checkpoint, manifest) == [] and "optimizer_layout" not in manifest.content
    agree(runs["converted"], runs["dp_whole"])


@pytest.mark.parallel
def test_converting_gives_what_saving_by_parameter_gives(
    root: Path, runs: dict[str, SmallRun], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint, out = runs["dp_on_exit"].step("joint", 2), root / "resharded"
    assert stored_hashes(out) == stored_hashes(runs["dp_whole"].step("joint", 2))
    assert (out / "config.yaml").read_bytes() == (checkpoint / "config.yaml").read_bytes()
    assert main(["reshard", "--checkpoint", str(out), "--out", str(tmp_path / "more")]) == 2
    assert "loads at any layout already" in capsys.readouterr().err
    assert main(["reshard", "--checkpoint", str(checkpoint), "--out", str(out)]) == 2
    assert "--overwrite" in capsys.readouterr().err


@pytest.mark.slow  # but for the buckets, "resharded" of `runs` is the same
@pytest.mark.parallel
def test_converting_does_not_depend_on_the_number_of_ranks_here(
    root: Path, runs: dict[str, SmallRun], tmp_path: Path
) -> None:
    """Of the sizes of buckets, megatron-core's own choice for as many ranks is another one than the checkpoint's."""
    checkpoints = []
    # The buckets decide which rank has what, and so the order of sums: runs of other sizes differ in the last digit.
    for name, overrides in (("by_rank", (ON_EXIT,)), ("by_parameter", ())):
        run = SmallRun(root / "config.yaml", root / "first").copy(tmp_path / name)
        arguments = command(run, "joint", "checkpoint.keep=9", "parallel.overlap_grad_reduce=true", *overrides)
        run_ranks(2, "tests.parallel.small_buckets", [*free_ports(1), *arguments])
        checkpoints.append(run.step("joint", 2))
    by_rank, by_parameter = checkpoints
    assert read_manifest(by_rank).run["optimizer_layout"]["bucket_size"] == BUCKET
    run_commands(2, [converting(by_rank)])
    assert stored_hashes(by_rank) == stored_hashes(by_parameter)


@pytest.mark.parallel
def test_only_a_checkpoint_is_replaced(
    runs: dict[str, SmallRun], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The run that holds it would be lost, and so would whatever else is there."""
    run = runs["dp_on_exit"].copy(tmp_path / "run")
    before = sorted(run.directory.rglob("*"))
    options = ("reshard", "--checkpoint", str(run.step("joint", 2)), "--overwrite", "--out")
    (tmp_path / "file").write_text("x")
    for out, says in (
        (run.directory, "is not an earlier output (it has no manifest.json with a kind joint)"),
        (run.directory / "joint", "is not an earlier output"),
        (run.directory / "warmup/step_000002", "is not an earlier output"),
        (tmp_path / "file", "is not a directory"),
        (tmp_path / "file/below", "cannot be written"),
    ):
        assert main([*options, str(out)]) == 2
        assert says in capsys.readouterr().err
    assert sorted(run.directory.rglob("*")) == before


@pytest.mark.parallel
def test_what_has_come_to_a_conversions_output_meanwhile_stays(
    runs: dict[str, SmallRun], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As where the same command was submitted twice; loading takes a while."""
    out, load = tmp_path / "out", reshard.load_training_state

    def beside_another(*arguments: Any) -> None:
        load(*arguments)
        out.mkdir()
        (out / "theirs").touch()

    monkeypatch.setattr(reshard, "load_training_state", beside_another)
    assert main(["reshard", "--checkpoint", str(runs["dp_on_exit"].step("joint", 2)), "--out", str(out)]) == 2
    assert f"error: {out} exists; choose another output or pass --overwrite" in capsys.readouterr().err
    assert [path.name for path in out.iterdir()] == ["theirs"]


@pytest.mark.parallel
def test_rank_0_waits_for_who_still_asks_how_a_save_has_ended(root: Path, tmp_path: Path) -> None:
    """What they ask is in its process."""
    run = SmallRun(root / "config.yaml", tmp_path / "run")
    run_ranks(2, "tests.parallel.late_rank", [*free_ports(1), *command(run, "warmup", "checkpoint.interval=99")])
    assert run.latest("warmup") == f"step_{STEPS:06d}"


@pytest.mark.slow  # of a save, above, it is the same
@pytest.mark.parallel
def test_rank_0_waits_for_who_still_asks_how_a_conversion_has_ended(runs: dict[str, SmallRun], tmp_path: Path) -> None:
    checkpoint = runs["dp_on_exit"].step("joint", 2)
    options = ["--checkpoint", str(checkpoint), "--out", str(tmp_path / "out")]
    run_ranks(2, "tests.parallel.late_rank", [*free_ports(1), "reshard", *options])
    assert stored_hashes(tmp_path / "out") == stored_hashes(runs["dp_whole"].step("joint", 2))


def agree(run: SmallRun, reference: SmallRun) -> None:
    """The numbers of two layouts."""
    ours, theirs = (numbers(each) for each in (run, reference))
    assert [line["step"] for line in ours] == [line["step"] for line in theirs] == list(range(1, STEPS + 1))
    for line, expected in zip(ours, theirs, strict=True):
        for key in ("loss", "grad_norm", "gate/text/code"):
            assert line[key] == pytest.approx(expected[key], rel=TOLERANCE), (key, line["step"])


def numbers(run: SmallRun) -> list[dict[str, Any]]:
    return run.lines("joint", "train")
