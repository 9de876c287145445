"""Gradient norms of gate and specialists, against PyTorch's own norms of all gradients."""

import math
from typing import Any

import pytest
import torch

from megafuser.training.engine import Engine
from megafuser.training.gradient_norms import gradient_norms
from tests.unit.training.small_run import OPTIMIZERS, SmallRun, model_of, step_rows

NAMES = ["text", "code", "math"]


def dense_norms(model: torch.nn.Module) -> dict[str, float]:
    """Norms over all gradients of a one-rank model whose names begin alike."""
    prefixes = {"gate": "gate."} | {name: f"specialists.{index}." for index, name in enumerate(NAMES)}
    gradients: dict[str, Any] = {
        name: [p.main_grad.flatten() for key, p in model.named_parameters() if key.startswith(prefix)]
        for name, prefix in prefixes.items()
    }
    return {name: float(torch.cat(own).double().norm()) for name, own in gradients.items()}


@pytest.mark.parametrize("overrides", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())
def test_joint_norms_are_those_of_each_groups_gradients(run: SmallRun, overrides: tuple[str, ...]) -> None:
    with run.engine("joint", "optimizer.clip_grad=1e-3", *overrides) as (session, engine):
        engine.compute_gradients(step_rows(session, "joint", 1))
        found, expected = gradient_norms(engine.ddp), dense_norms(engine.model)
        assert list(found) == ["gate", *NAMES]
        assert found == pytest.approx(expected, rel=1e-5)
        assert min(found.values()) > 0 and len(set(found.values())) == 4
        result = engine.step(step_rows(session, "joint", 2))
        together = math.sqrt(sum(norm**2 for norm in result.group_norms.values()))
        assert together == pytest.approx(result.grad_norm, rel=1e-5), "before clipping, as the global norm"


def test_only_what_trains_has_a_norm_and_a_learning_rate(run: SmallRun) -> None:
    with run.engine("warmup") as (session, engine):
        result = engine.step(step_rows(session, "warmup", 1))
        assert result.group_norms == {"gate": pytest.approx(result.grad_norm, rel=1e-5)}
        assert result.group_rates == {"gate": result.lr}


def test_a_frozen_specialist_has_neither(run: SmallRun) -> None:
    with run.session() as session:
        model = model_of(session)
        engine = Engine([model], session.config.optimizer, session.config.joint, domains=3, joint=True)
        assert list(gradient_norms(engine.ddp)) == ["gate", *NAMES]
        model.specialists[1].requires_grad_(False)  # as gradient_norms sees it
        assert list(gradient_norms(engine.ddp)) == ["gate", "text", "math"]
