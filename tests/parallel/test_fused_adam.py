"""Checkpoints of Transformer Engine's fused Adam, whose contract is not PyTorch's: resumed runs equal whole ones."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from megafuser.checkpoint.index import read_index
from megafuser.checkpoint.manifest import read_manifest
from tests.parallel.launch import free_ports, run_commands, torchrun
from tests.transformer_engine_stand_in import PACKAGES, VERSION
from tests.unit.training.small_run import STEPS, SmallRun, make_small_case, stored_hashes

pytestmark = [
    pytest.mark.parallel,
    pytest.mark.skipif(
        not (PACKAGES / f"transformer_engine-{VERSION}.dist-info").exists(),
        reason=f"Transformer Engine {VERSION} is not in {PACKAGES}; tools/venv.sh test puts it there",
    ),
]
PLAIN = ("optimizer.distributed=false", "parallel.pipeline=2")
REMAINDERS = ("optimizer.precision_aware=true", "precision.dtype=bf16")
ON_EXIT = "checkpoint.reshardable=on_exit"
JOINT = {
    "plain": PLAIN,
    "distributed": (),
    "remainders": REMAINDERS,
    "remainders_by_rank": (*REMAINDERS, ON_EXIT, "optimizer.moments_dtype=bf16"),
    "skipped": (*REMAINDERS, "joint.steps=2"),
    "skipped_plain": (*PLAIN, "joint.steps=2"),
}


def command(run: SmallRun, stage: str, *overrides: str) -> list[str]:
    common = ("checkpoint.interval=1", "checkpoint.keep=9", "joint.min_lr=1e-3")
    return [stage, "--config", str(run.config_file), f"run_dir={run.directory}", *common, *overrides]


def run_fused(commands: Sequence[Sequence[str]]) -> None:
    words = [word for each in commands for word in ("--", *each)][1:]
    done = torchrun(2, "tests.parallel.fused_adam", [",".join(free_ports(len(commands))), *words], timeout=300)
    assert done.returncode == 0, done.stderr[-8000:]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_small_case(tmp_path_factory.mktemp("fused_adam"))


@pytest.fixture(scope="module")
def runs(root: Path) -> dict[str, SmallRun]:
    """Whole runs of two ranks, and under `NAME_resumed` what goes on from their checkpoint of step 2, or of step 1."""
    runs = {"warmup": SmallRun(root / "config.yaml", root / "warmup")}
    run_fused([command(runs["warmup"], "warmup", "parallel.pipeline=2")])
    commands = []
    for name, overrides in JOINT.items():
        runs[name] = run = runs["warmup"].copy(root / name)
        commands.append(["skipping"] * name.startswith("skipped") + command(run, "joint", *overrides))
    run_fused(commands)
    commands = []
    for name, overrides in {"warmup": ("parallel.pipeline=2",), **JOINT}.items():
        stage = "warmup" if name == "warmup" else "joint"
        runs[f"{name}_resumed"] = run = runs[name].copy(root / f"{name}_resumed")
        run.go_back(stage, 1 if name.startswith("skipped") else 2)
        commands.append(command(run, stage, *overrides))
    # on a machine without GPUs, for one with them
    runs["resharded"] = run = runs["remainders_by_rank"].copy(root / "resharded")
    run.go_back("joint", 2)
    checkpoint = str(run.step("joint", 2))
    without = ("optimizer.precision_aware=false", "optimizer.moments_dtype=fp32")
    run_commands(1, [["reshard", "--checkpoint", checkpoint, "--out", checkpoint, "--overwrite", *without]])
    commands.append(command(run, "joint", *JOINT["remainders_by_rank"]))
    run_fused(commands)
    return runs


@pytest.mark.parametrize("name", ["warmup", *JOINT])
def test_a_resumed_run_equals_the_uninterrupted_one(runs: dict[str, SmallRun], name: str) -> None:
    """`skipped` ones go on from a checkpoint before the first update."""
    stage = "warmup" if name == "warmup" else "joint"
    whole, resumed = runs[name], runs[f"{name}_resumed"]
    last = 2 if name.startswith("skipped") else STEPS
    assert resumed.lines(stage) == whole.lines(stage)
    assert stored_hashes(resumed.step(stage, last)) == stored_hashes(whole.step(stage, last))
    if name.startswith("skipped"):
        assert read_manifest(whole.step(stage, 1)).run["skipped_steps"] == 1


def test_it_computes_what_pytorchs_adam_does(runs: dict[str, SmallRun], root: Path) -> None:
    run = runs["warmup"].copy(root / "pytorch")
    run_commands(2, [command(run, "joint", *PLAIN)])
    ours, theirs = ([line["loss"] for line in each.lines("joint", "train")] for each in (runs["plain"], run))
    assert len(ours) == STEPS and ours == pytest.approx(theirs, rel=1e-6)


def test_checkpoints_hold_masters_whatever_the_optimizer_keeps(runs: dict[str, SmallRun]) -> None:
    """And no remainder, which nothing but that optimizer could read."""
    for step in (2, STEPS):
        stored = read_index(runs["remainders_by_rank"].step("joint", step) / "weights").state_dict_metadata
        dtypes = {entry.properties.dtype for key, entry in stored.items() if key.startswith("optimizer")}
        assert dtypes == {torch.float32}


def test_a_resharded_checkpoint_goes_on_under_it(runs: dict[str, SmallRun]) -> None:
    ours, whole = (
        [line["loss"] for line in runs[name].lines("joint", "train")] for name in ("resharded", "remainders_by_rank")
    )
    assert ours == whole
