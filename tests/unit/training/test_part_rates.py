"""Parts of the model with learning rates and weight decays of their own, by name, in joint training."""

import math
from pathlib import Path

import pytest
import torch

from megafuser.training.engine import Engine
from tests.unit.training.small_run import STEPS, SmallRun, step_rows, stored_hashes

GROUPS = (
    "joint.groups.gate={lr: 0.02, weight_decay: 0.3}",
    "joint.groups.math.lr=0.0005",
    "joint.groups.code.weight_decay=0",
    "joint.min_lr=0.0001",
    "joint.lr_warmup_steps=1",
)


def of_group(engine: Engine, group: dict) -> tuple[set[str], set[bool]]:
    """The parts that a group's parameters belong to, and whether they are matrices that decay."""
    names = {id(parameter): name for name, parameter in engine.model.named_parameters()}
    found = [names[id(parameter)] for parameter in group["params"]]
    parts = {"gate" if name.startswith("gate.") else engine.model.names[int(name.split(".")[1])] for name in found}
    return parts, {not name.endswith("bias") and engine.model.get_parameter(name).dim() > 1 for name in found}


def test_each_part_follows_a_schedule_of_its_own(run: SmallRun) -> None:
    """The cosine from its highest rate to its lowest; the lowest is in proportion to the stage's, 1e-3 to 1e-4."""
    highest = {"gate": 0.02, "math": 0.0005, "code": 1e-3, "text": 1e-3}
    decays = {"gate": 0.3, "math": 0.1, "code": 0.0, "text": 0.1}
    with run.engine("joint", "optimizer.distributed=false", *GROUPS) as (session, engine):
        rows = step_rows(session, "joint", 1)
        for step in range(STEPS):
            # steps are counted from the end of the linear rise, which takes one
            coefficient = 0.5 * (1 + math.cos(math.pi * (step - 1) / (STEPS - 1)))
            met = []
            for group in engine.optimizer.param_groups:
                ((part,), (matrices,)) = of_group(engine, group)
                high, low = highest[part], highest[part] / 10
                expected = low + coefficient * (high - low) if step else 0.0
                assert group["lr"] == pytest.approx(expected, rel=1e-6), part
                assert group["weight_decay"] == (decays[part] if matrices else 0.0), part
                met.append((part, matrices))
            assert sorted(met) == sorted((part, matrices) for part in highest for matrices in (False, True))
            assert engine.step(rows).lr == pytest.approx(1e-4 + coefficient * 9e-4 if step else 0.0)


def test_without_groups_all_is_as_it_was(run: SmallRun) -> None:
    with run.engine("joint") as (_, engine):
        marks = [(group["lr_mult"], group["is_decoupled_lr"]) for group in engine.optimizer.param_groups]
        assert sorted(marks) == [(1.0, False)] * 2 + [(1.0, True)] * 2


def test_the_warm_up_has_no_groups(run: SmallRun) -> None:
    with run.engine("warmup", *GROUPS) as (session, engine):
        assert {group["max_lr"] for group in engine.optimizer.param_groups} == {session.config.warmup.lr}
        assert {group["weight_decay"] for group in engine.optimizer.param_groups} == {0.0, 0.1}


def test_a_group_moves_by_its_own_rate(run: SmallRun) -> None:
    """Adam's first step is as long as the learning rate, whatever the gradient."""
    with run.engine("joint", "joint.groups.math.lr=1e-5", "joint.groups.gate.lr=0") as (session, engine):
        before = {name: value.detach().clone() for name, value in engine.model.named_parameters()}
        engine.step(step_rows(session, "joint", 1))
        moved = {name: float((value - before[name]).abs().max()) for name, value in engine.model.named_parameters()}
    longest = {part: max(v for n, v in moved.items() if n.startswith(part)) for part in ("gate.", *SPECIALISTS)}
    assert longest["gate."] == 0.0
    # weight decay adds a little to a step of the learning rate's length
    assert longest["specialists.2."] == pytest.approx(1e-5, rel=0.2)
    for part in SPECIALISTS[:2]:
        assert longest[part] == pytest.approx(1e-3, rel=0.2)


SPECIALISTS = ("specialists.0.", "specialists.1.", "specialists.2.")


@pytest.mark.parametrize("overrides", [("precision.dtype=bf16",), ("optimizer.distributed=false",)], ids=str)
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(
    finished: SmallRun, tmp_path: Path, overrides: tuple[str, ...]
) -> None:
    """Groups, a frozen specialist, load balance; bf16 distributed, and float32 not."""
    all_knobs = (*overrides, *GROUPS, "joint.frozen=[text]", "joint.load_balance=0.1")
    start = f"joint.init_from={finished.directory / 'warmup'}"
    whole = SmallRun(finished.config_file, tmp_path / "whole", (*all_knobs, start))
    if "bf16" in str(overrides):
        whole = SmallRun(finished.config_file, tmp_path / "whole", all_knobs)
        assert whole.stage("warmup") == 0
    assert whole.stage("joint") == 0
    resumed = whole.copy(tmp_path / "resumed")
    resumed.go_back("joint", 2)
    assert resumed.stage("joint") == 0
    assert resumed.lines("joint") == whole.lines("joint")
    assert stored_hashes(resumed.step("joint", STEPS)) == stored_hashes(whole.step("joint", STEPS))


def test_other_groups_are_refused_on_going_on(
    finished: SmallRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for override in ("joint.groups.math.lr=1e-5", "joint.frozen=[math]", "joint.load_balance=0.1"):
        assert finished.stage("joint", "joint.steps=5", override) == 2
        error = capsys.readouterr().err
        assert "is of another configuration" in error and override.split("=")[0].rsplit(".lr")[0] in error


def test_every_parameter_is_in_one_group(run: SmallRun) -> None:
    with run.engine("joint", *GROUPS, "optimizer.distributed=false") as (_, engine):
        grouped = [id(parameter) for group in engine.optimizer.param_groups for parameter in group["params"]]
        assert sorted(grouped) == sorted(id(parameter) for parameter in engine.model.parameters())
        assert all(isinstance(parameter, torch.Tensor) for parameter in engine.model.parameters())
