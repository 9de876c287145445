"""Checkpoints of Transformer Engine's fused Adam, whose contract is not PyTorch's: resumed runs equal whole ones."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from megafuser.checkpoint.index import read_index
from megafuser.checkpoint.manifest import read_manifest
from tests.parallel.launch import run_commands, run_ranks
from tests.ports import free_ports
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
AWARE = "optimizer.precision_aware=true"
REMAINDERS = (AWARE, "precision.dtype=bf16")
ON_EXIT = "checkpoint.reshardable=on_exit"
HALVES = "optimizer.moments_dtype=fp16"
JOINT = {
    "plain": PLAIN,
    "distributed": (),
    "remainders": REMAINDERS,
    "scaled": (*REMAINDERS, HALVES),
    "blockwise": (*REMAINDERS, HALVES),
    "remainders_by_rank": (*REMAINDERS, ON_EXIT, "optimizer.moments_dtype=bf16"),
    "float32_by_rank": (AWARE, ON_EXIT),
    "skipping": (*REMAINDERS, "joint.steps=2"),
    "skipping_plain": (*PLAIN, "joint.steps=2"),
    "skipping_distributed": ("joint.steps=2",),
}
# Where time matters: what PyTorch's own can be compared with, and what least resembles it.
FEW = ("plain", "remainders_by_rank")
MORE = tuple(name for name in JOINT if name not in FEW)
RESHARDED = ("remainders_by_rank", "float32_by_rank")
PYTORCH = ("plain", "distributed")
# A warm-up with a stage that has no part of the gate, and without.
WARMUP = {FEW: "parallel.pipeline=2", MORE: "parallel.pipeline=1"}


def command(run: SmallRun, stage: str, *overrides: str) -> list[str]:
    common = ("checkpoint.interval=1", "checkpoint.keep=9", "joint.min_lr=1e-3")
    return [stage, "--config", str(run.config_file), f"run_dir={run.directory}", *common, *overrides]


def run_fused(commands: Sequence[Sequence[str]]) -> None:
    words = [word for each in commands for word in ("--", *each)][1:]
    module = "tests.parallel.fused_adam"
    run_ranks(2, module, [",".join(free_ports(len(commands))), *words], install=module)


@dataclass(frozen=True)
class Runs:
    """Whole runs of two ranks, and what goes on from their checkpoints of step 2, or of step 1.

    Attributes:
        names: of the settings, see `JOINT`.
        runs: by name: NAME, `NAME_resumed`, `NAME_resharded`, `pytorch_NAME`, …; and `warmup`.
    """

    root: Path
    names: tuple[str, ...]
    runs: dict[str, SmallRun]

    def copy(self, name: str, of: str, step: int | None = None) -> SmallRun:
        self.runs[name] = self.runs[of].copy(self.root / name)
        if step is not None:
            self.runs[name].go_back("warmup" if of == "warmup" else "joint", step)
        return self.runs[name]

    def losses(self, name: str) -> list[float | None]:
        """Of the steps; None where one was skipped."""
        return [line.get("loss") for line in self.runs[name].lines("joint", "train")]


@pytest.fixture(scope="module", params=[FEW, pytest.param(MORE, marks=pytest.mark.slow)], ids=["few", "more"])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    root = make_small_case(tmp_path_factory.mktemp("fused_adam"))
    made = Runs(root, request.param, {"warmup": SmallRun(root / "config.yaml", root / "warmup")})
    warmup = WARMUP[request.param]
    run_fused([command(made.runs["warmup"], "warmup", warmup)])
    commands = []
    for name in made.names:
        as_if = [word for word in ("skipping", "blockwise") if name.startswith(word)]
        commands.append([*as_if, *command(made.copy(name, "warmup"), "joint", *JOINT[name])])
    run_fused(commands)
    pytorch = [name for name in made.names if name in PYTORCH]
    run_commands(2, [command(made.copy(f"pytorch_{name}", "warmup"), "joint", *JOINT[name]) for name in pytorch])
    commands = [command(made.copy("warmup_resumed", "warmup", 2), "warmup", warmup)]
    for name in made.names:
        run = made.copy(f"{name}_resumed", name, 1 if name.startswith("skipping") else 2)
        commands.append([*["blockwise"] * (name == "blockwise"), *command(run, "joint", *JOINT[name])])
    # what a machine without GPUs has begun, or resharded
    for name in pytorch:
        commands.append(command(made.copy(f"pytorch_{name}_resumed", f"pytorch_{name}", 2), "joint", *JOINT[name]))
    for name in (name for name in made.names if name in RESHARDED):
        run = made.copy(f"{name}_resharded", name, 2)
        checkpoint = str(run.step("joint", 2))
        without = ("optimizer.precision_aware=false", "optimizer.moments_dtype=fp32")
        run_commands(1, [["reshard", "--checkpoint", checkpoint, "--out", checkpoint, "--overwrite", *without]])
        commands.append(command(run, "joint", *JOINT[name]))
    run_fused(commands)
    return made


def test_resumed_runs_equal_uninterrupted_ones(made: Runs) -> None:
    """`skipping` ones go on from a checkpoint before the first update."""
    for name in ("warmup", *made.names):
        stage = "warmup" if name == "warmup" else "joint"
        whole, resumed = made.runs[name], made.runs[f"{name}_resumed"]
        last = 2 if name.startswith("skipping") else STEPS
        if HALVES in JOINT.get(name, ()):  # scaled anew when they are loaded, and so rounded anew
            assert made.losses(f"{name}_resumed") == pytest.approx(made.losses(name), rel=1e-5), name
            continue
        assert resumed.lines(stage) == whole.lines(stage), name
        assert stored_hashes(resumed.step(stage, last)) == stored_hashes(whole.step(stage, last)), name
        if name.startswith("skipping"):
            assert read_manifest(whole.step(stage, 1)).run["skipped_steps"] == 1


def test_it_computes_what_pytorchs_adam_does_and_goes_on_from_it(made: Runs) -> None:
    for name in (name for name in made.names if name in PYTORCH):
        theirs = made.losses(f"pytorch_{name}")
        assert len(theirs) == STEPS
        for ours in (name, f"pytorch_{name}_resumed"):
            assert made.losses(ours) == pytest.approx(theirs, rel=1e-6), ours
    if "skipping_distributed" in made.names:  # and the other way round, before the first update
        run = made.copy("skipping_pytorch", "skipping_distributed", 1)
        run_commands(2, [command(run, "joint", *JOINT["skipping_distributed"])])
        ours, theirs = made.losses("skipping_pytorch"), made.losses("skipping_distributed")
        assert len(ours) == 2 and ours[1] == pytest.approx(theirs[1], rel=1e-6)


def test_checkpoints_hold_numbers_and_resharded_ones_go_on(made: Runs) -> None:
    """And no remainder or scaled moment, which nothing but that optimizer could read."""
    for name in (name for name in made.names if name in RESHARDED):
        for step in (2, STEPS):
            stored = read_index(made.runs[name].step("joint", step) / "weights").state_dict_metadata
            dtypes = {entry.properties.dtype for key, entry in stored.items() if key.startswith("optimizer")}
            assert dtypes == {torch.float32}
        ours = made.runs[f"{name}_resharded"]
        assert made.losses(f"{name}_resharded") == made.losses(name)
        assert stored_hashes(ours.step("joint", STEPS)) == stored_hashes(made.runs[name].step("joint", STEPS))
