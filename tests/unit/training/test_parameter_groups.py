"""Which part of the model a parameter belongs to, and each part's learning rate."""

import pytest

from megafuser.training.parameter_groups import group_of
from tests.unit.training.small_run import OPTIMIZERS, SmallRun, step_rows

NAMES = ["text", "code", "math"]


def test_a_parameter_belongs_to_the_gate_or_to_a_specialist() -> None:
    assert group_of("module.gate.fc1.weight", NAMES) == "gate"
    assert group_of("specialists.1.decoder.layers.0.mlp.linear_fc1.weight", NAMES) == "code"
    assert group_of("module.specialists.2.embedding.word_embeddings.weight", NAMES) == "math"


@pytest.mark.parametrize("overrides", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())
def test_learning_rates_are_those_of_the_step(run: SmallRun, overrides: tuple[str, ...]) -> None:
    """The gate's is four times the others'; both follow the schedule, here a rise over two steps."""
    schedule = ("joint.lr_warmup_steps=2", "optimizer.gate_lr_multiplier=4", *overrides)
    with run.engine("joint", *schedule) as (session, engine):
        for step, lr in ((1, 0.0), (2, 5e-4), (3, 1e-3)):
            result = engine.step(step_rows(session, "joint", step))
            assert list(result.group_rates) == ["gate", *NAMES]
            expected = {"gate": 4 * lr} | dict.fromkeys(NAMES, lr)
            assert result.group_rates == pytest.approx(expected), step
