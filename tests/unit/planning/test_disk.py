"""What checkpoints take of the disk, by hand."""

import pytest

from megafuser.config.checkpoint import CheckpointConfig
from megafuser.config.compute import PrecisionConfig
from megafuser.config.stages import JointConfig
from megafuser.planning.disk import disk_space
from tests.unit.planning.architectures import ULTRAFUSER_13B
from tests.unit.planning.made_up_tasks import make_task

CARDS = ULTRAFUSER_13B
PARAMETERS = sum(card.parameter_count() for card in CARDS.values()) + 5120 * 512 + 512 + 512 + 1
BESIDES = 64 << 20


@pytest.mark.parametrize(("dtype", "each"), [("bf16", 14), ("fp32", 16)])
def test_a_joint_checkpoint_is_weights_masters_and_moments(dtype: str, each: int) -> None:
    config = make_task(precision=PrecisionConfig(dtype=dtype)).config  # type: ignore[arg-type]
    assert disk_space(config, "joint", CARDS).checkpoint == each * PARAMETERS + BESIDES


@pytest.mark.parametrize(("keep", "best", "count"), [(1, False, 2), (3, False, 4), (3, True, 5), (9, False, 10)])
def test_what_is_kept_and_one_that_is_written(keep: int, best: bool, count: int) -> None:
    config = make_task(checkpoint=CheckpointConfig(keep=keep, keep_best=best, interval=500)).config
    space = disk_space(config, "joint", CARDS)
    assert space.count == count and space.at_once == count * space.checkpoint
    assert disk_space(config, "joint", CARDS, present=range(500, 1500, 500), other_bests=1).count == min(count + 1, 10)


def test_no_more_than_there_are_saves() -> None:
    config = make_task(checkpoint=CheckpointConfig(interval=500), joint=JointConfig(steps=501)).config
    assert disk_space(config, "joint", CARDS).count == 2


def test_frozen_specialists_have_no_masters_and_moments() -> None:
    every, one = (
        disk_space(make_task(joint=JointConfig(frozen=frozen)).config, "joint", CARDS).checkpoint
        for frozen in ((), ("math",))
    )
    assert every - one == 12 * CARDS["math"].parameter_count()
