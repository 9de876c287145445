"""Specialists that joint training leaves as they are: no gradient, no state, no activation; the others as ever."""

import re
from pathlib import Path

import pytest
import torch

from megafuser.training import stages
from megafuser.training.engine import Engine
from megafuser.training.session import Session
from tests.state_bytes import state_bytes_of
from tests.unit.training.small_run import STEPS, SmallRun, different, model_of, parameters_of, step_rows

ALL = "joint.frozen=[text,code,math]"


def gradients(engine: Engine) -> dict[str, torch.Tensor]:
    return {
        name: parameter.main_grad.clone()
        for name, parameter in engine.model.named_parameters()
        if hasattr(parameter, "main_grad")
    }


def randomize_gate(engine: Engine) -> None:
    """At its start the last layer is zero, and so are gradients behind it."""
    torch.nn.init.normal_(engine.model.gate.fc2.weight, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("frozen", "dtype", "recompute"),
    [
        ("[text]", "fp32", "none"),
        ("[text]", "bf16", "none"),
        ("[code,math]", "fp32", "full"),
        ("[text,code,math]", "fp32", "none"),
    ],
)
def test_gradients_are_those_of_training_everything_with_the_frozen_ones_discarded(
    run: SmallRun, frozen: str, dtype: str, recompute: str
) -> None:
    settings = (f"precision.dtype={dtype}", f"memory.recompute={recompute}")
    found, kept, norms = {}, {}, {}
    for key, override in (("all", "joint.frozen=[]"), ("part", f"joint.frozen={frozen}")):
        with run.engine("joint", override, *settings) as (session, engine):
            randomize_gate(engine)
            engine.compute_gradients(step_rows(session, "joint", 1))
            found[key] = gradients(engine)
            kept[key] = engine.model.trained
            norms[key] = engine.step(step_rows(session, "joint", 1)).grad_norm
    indices = [index for index, trained in enumerate(kept["part"]) if not trained]
    assert len(indices) == frozen.count(",") + 1
    trained = {name for name in found["all"] if not re.match(f"specialists.({'|'.join(map(str, indices))})[.]", name)}
    assert found["part"].keys() == trained and len(trained) >= 4
    for name, value in found["part"].items():
        assert torch.equal(value, found["all"][name]), name
        assert value.any() or name.endswith("fc2.bias"), name
    total = torch.stack([value.double().square().sum() for value in found["part"].values()]).sum().sqrt()
    assert norms["part"] == pytest.approx(float(total), rel=1e-4)
    assert norms["part"] < norms["all"]


@pytest.mark.parametrize(
    ("stage", "frozen", "wanted"),
    [("warmup", "[]", ()), ("joint", "[code]", ("text", "math")), ("joint", "[]", ("text", "code", "math"))],
)
def test_the_model_is_built_for_what_the_stage_trains(
    finished: SmallRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str, frozen: str, wanted: tuple[str]
) -> None:
    """FP8 recipes depend on it, and so does what the log says of them."""
    built, told = [], []
    build = Session.build_model
    monkeypatch.setattr(
        Session, "build_model", lambda self, *, trained: built.append(trained) or build(self, trained=trained)
    )
    monkeypatch.setattr(stages, "recipes_in_use", lambda _, trains: told.append(trains))
    run = SmallRun(finished.config_file, tmp_path / "run", (f"joint.init_from={finished.step('warmup', STEPS)}",))
    assert run.stage(stage, f"joint.frozen={frozen}", f"{stage}.steps=1") == 0
    assert built == [wanted]
    assert told == [{name: name in wanted for name in ("text", "code", "math")}]


def test_a_frozen_specialist_keeps_its_bits_and_has_no_state(run: SmallRun) -> None:
    sizes = {}
    for frozen in ("[]", "[code]"):
        with run.engine("joint", f"joint.frozen={frozen}", "precision.dtype=bf16") as (session, engine):
            before = parameters_of(engine.model)
            for step in (1, 2):
                engine.step(step_rows(session, "joint", step))
            changed = different(before, parameters_of(engine.model))
            sizes[frozen] = state_bytes_of(engine)
            trained = {name for name in before if frozen == "[]" or not name.startswith("specialists.1.")}
            # a norm's ones are too coarse for such steps in bf16
            matrices = {name for name in trained if before[name].dim() > 1}
            assert matrices <= set(changed) <= trained
            for parameter in engine.model.specialists[1].parameters():
                assert parameter.requires_grad is (frozen == "[]") and parameter.grad is None
                assert hasattr(parameter, "main_grad") is (frozen == "[]")
            code = sum(parameter.numel() for parameter in engine.model.specialists[1].parameters())
    for part, element in (("gradients", 4), ("masters", 4), ("moments", 8)):
        # the padding of buckets may differ by a little
        assert sizes["[]"][part] - sizes["[code]"][part] == pytest.approx(element * code, abs=element * 1024), part


def test_no_activation_of_a_frozen_specialist_is_kept(run: SmallRun) -> None:
    with run.engine("joint", "joint.frozen=[text,math]") as (session, engine):
        (row, *_) = step_rows(session, "joint", 1)
        saved: dict[int, int] = {}
        for index in range(3):
            count = 0

            def keep(tensor: torch.Tensor) -> torch.Tensor:
                nonlocal count
                count += 1
                return tensor

            with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
                stream = engine.model._stream(
                    engine.model.specialists[index], row.specialists[index], engine.model.trained[index]
                )
            saved[index] = count
            assert stream.requires_grad is (index == 1)
        assert saved[0] == saved[2] == 0 < saved[1]


@pytest.mark.parametrize("frozen", ["joint.frozen=[text]", ALL], ids=["one", "all"])
def test_a_checkpoint_is_self_contained_and_goes_on(
    finished: SmallRun, case: Path, tmp_path: Path, frozen: str
) -> None:
    start = f"joint.init_from={finished.directory / 'warmup'}"
    whole = SmallRun(finished.config_file, tmp_path / "whole", (frozen, start))
    assert whole.stage("joint") == 0
    resumed = whole.copy(tmp_path / "resumed")
    resumed.go_back("joint", 2)
    (case / "mcore").rename(case / "away")
    try:
        assert resumed.stage("joint") == 0
    finally:
        (case / "away").rename(case / "mcore")
    assert resumed.lines("joint") == whole.lines("joint")
    with finished.session() as session:
        paths = finished.step("warmup", STEPS), resumed.step("joint", STEPS)
        first, last = (parameters_of(model_of(session, path)) for path in paths)
    changed = set(different(first, last))
    expected = {name for name in first if not name.startswith("specialists.0." if frozen != ALL else "specialists.")}
    assert changed == expected


def test_all_frozen_trains_the_gate_as_the_warm_up_does(run: SmallRun) -> None:
    """The same steps from the same start, but for the sampler's stage: one engine's rows for both."""
    found = []
    for stage, overrides in (("warmup", ("warmup.lr=1e-3",)), ("joint", (ALL,))):
        with run.engine(stage, *overrides) as (session, engine):
            assert not engine.has_backward
            results = [engine.step(step_rows(session, "warmup", step)) for step in (1, 2)]
            found.append(([result.grad_norm for result in results], parameters_of(engine.model)))
    assert found[0][0] == found[1][0]
    assert not different(found[0][1], found[1][1])
