"""The schedule against its formula, and optimizer states on their way into a checkpoint."""

import math
from collections import defaultdict
from typing import Any

import pytest
import torch

from megafuser.config.compute import ParallelConfig
from megafuser.config.optimizer import OptimizerConfig
from megafuser.config.stages import JointConfig
from megafuser.errors import UserError
from megafuser.training.optimizer import build_optimizer, check_optimizer, wrap_for_gradients
from megafuser.training.optimizer_state import allocate_state, sharded_state
from tests.unit.training.small_run import SmallRun, model_of


def learning_rates(run: SmallRun, steps: int, stage: JointConfig) -> list[float]:
    with run.session() as session:
        wrapped = wrap_for_gradients(session.build_model(), distributed_optimizer=False, parallel=ParallelConfig())
        optimizer, scheduler = build_optimizer(wrapped, OptimizerConfig(), stage)
        rates = []
        for _ in range(steps):
            assert len({float(group["lr"]) for group in optimizer.param_groups}) == 1
            rates.append(float(optimizer.param_groups[0]["lr"]))
            scheduler.step(increment=1)
        return rates


def test_the_cosine_is_pytorchs(run: SmallRun) -> None:
    stage = JointConfig(steps=10, lr=2e-3, min_lr=1e-4)
    plain = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=stage.lr)
    reference = torch.optim.lr_scheduler.CosineAnnealingLR(plain, T_max=stage.steps, eta_min=stage.min_lr)
    expected = []
    for _ in range(stage.steps):
        expected.append(plain.param_groups[0]["lr"])
        plain.step()
        reference.step()
    assert learning_rates(run, stage.steps, stage) == pytest.approx(expected, rel=1e-9)


def test_linear_warmup_then_cosine_to_the_minimum(run: SmallRun) -> None:
    """Step n uses the schedule at n - 1, megatron-core's convention: the first step of a linear warm-up is at 0."""
    stage = JointConfig(steps=12, lr=1e-3, min_lr=1e-4, lr_warmup_steps=4)
    rising = [stage.lr * n / 4 for n in range(4)]
    falling = [stage.min_lr + (stage.lr - stage.min_lr) * (1 + math.cos(math.pi * n / 8)) / 2 for n in range(8)]
    after = [stage.min_lr] * 3
    assert learning_rates(run, 15, stage) == pytest.approx([*rising, *falling, *after], rel=1e-9)


@pytest.mark.parametrize("stage", [JointConfig(steps=1, lr=1e-3), JointConfig(steps=2, lr=1e-3, lr_warmup_steps=2)])
def test_the_shortest_schedules(run: SmallRun, stage: JointConfig) -> None:
    rates = learning_rates(run, stage.steps, stage)
    assert all(0 <= rate <= stage.lr for rate in rates)
    assert rates[0] == (0.0 if stage.lr_warmup_steps else stage.lr)


def test_gate_and_specialists_are_groups_of_their_own(run: SmallRun) -> None:
    """With their own learning rates, the schedule included, and the weight decay of the others."""
    stage = JointConfig(steps=4, lr=1e-3, min_lr=1e-4, lr_warmup_steps=1)
    with run.session() as session:
        (model,) = session.build_model()
        wrapped = wrap_for_gradients([model], distributed_optimizer=False, parallel=ParallelConfig())
        settings = OptimizerConfig(gate_lr_multiplier=3.0, weight_decay=0.1)
        optimizer, scheduler = build_optimizer(wrapped, settings, stage)
        gate = {id(parameter) for parameter in model.gate.parameters()}
        for _ in range(5):
            rate = optimizer.param_groups[0]["lr"]
            for group in optimizer.param_groups:
                members = {id(parameter) in gate for parameter in group["params"]}
                assert len(members) == 1
                assert group["lr"] == pytest.approx(rate * (3.0 if members == {True} else 1.0))
                decayed = {parameter.dim() > 1 for parameter in group["params"]}
                assert decayed == {group["weight_decay"] == 0.1}
            scheduler.step(increment=1)


def test_the_multiplier_is_of_the_joint_stage(run: SmallRun) -> None:
    with run.engine("warmup", "optimizer.gate_lr_multiplier=3") as (session, engine):
        assert {group["lr"] for group in engine.optimizer.param_groups} == {session.config.warmup.lr}


@pytest.mark.parametrize(
    ("settings", "device", "says"),
    [
        ({"precision_aware": True, "moments_dtype": "bf16"}, "cpu", "precision_aware: needs the fused Adam .* is cpu"),
        ({"precision_aware": True}, "cuda", "precision_aware: needs the fused Adam .* it is not installed"),
        ({"offload_fraction": 0.5}, "cpu", "offload_fraction: 0.5 needs device cuda, not cpu"),
    ],
)
def test_settings_that_cannot_work_here(settings: dict[str, Any], device: str, says: str) -> None:
    with pytest.MonkeyPatch.context() as patch, pytest.raises(UserError, match=says):
        patch.setattr("megafuser.training.optimizer.find_spec", lambda _: None)
        check_optimizer(OptimizerConfig(**settings), torch.device(device))


def test_states_are_saved_under_their_own_parameter_behind_padded_buckets(run: SmallRun) -> None:
    """Tied embeddings that stand on two stages have buckets of their own; so they do here, and norms, which pad."""
    with run.session() as session:
        model = model_of(session)
        for specialist in model.specialists:
            specialist.embedding.word_embeddings.weight.shared_embedding = True
            specialist.decoder.layers[0].input_layernorm.weight.shared_embedding = True
        wrapped = wrap_for_gradients([model], distributed_optimizer=True, parallel=ParallelConfig())
        assert any(b.numel_unpadded < b.grad_data.numel() for b in wrapped[0].buffers[0].buckets[:-1])
        optimizer, _ = build_optimizer(wrapped, OptimizerConfig(), JointConfig(steps=1))
        allocate_state(optimizer)
        state = sharded_state(optimizer, model.sharded_state_dict(), is_loading=False)
        # all layers share a key
        saved = defaultdict(list)
        for entry in state["param_state"].values():
            saved[entry["param"].key.removeprefix("optimizer.state.param.")].append(entry["param"].data)
        assert sum(map(len, saved.values())) == len(list(model.parameters()))
        for sharded in model.sharded_state_dict().values():
            assert any(torch.equal(sharded.data, tensor) for tensor in saved[sharded.key]), sharded.key
