"""Over how many processes a model that is used is spread, and how."""

import pytest

from megafuser.config.compute import ParallelConfig
from megafuser.errors import UserError
from megafuser.inference.spread import spread
from megafuser.runtime.world import World
from tests.unit.planning.architectures import QWEN_7B, ULTRAFUSER_13B, Cards
from tests.unit.planning.made_up_tasks import make_task


def sizes(cards: Cards, processes: int, local: int, trained: tuple[int, int], **asked: int) -> tuple[int, int]:
    """Tensor-parallel size and pipeline stages."""
    config = make_task(cards, parallel=ParallelConfig(tensor=trained[0], pipeline=trained[1])).config
    world = World(rank=0, size=processes, local_rank=0, launcher="torchrun", local_size=local)
    found = spread(config, cards, world, **asked)
    return found.tensor, found.pipeline


@pytest.mark.parametrize(
    ("cards", "processes", "local", "trained", "found"),
    [
        (ULTRAFUSER_13B, 1, 1, (8, 2), (1, 1)),
        # as in training
        (ULTRAFUSER_13B, 16, 8, (8, 2), (8, 2)),
        (QWEN_7B, 8, 8, (4, 2), (4, 2)),
        (QWEN_7B, 8, 8, (2, 4), (2, 4)),
        # over another number: the largest within a node that divides 40 heads, or 28
        (ULTRAFUSER_13B, 8, 8, (8, 2), (8, 1)),
        (QWEN_7B, 16, 8, (4, 2), (4, 4)),
        (QWEN_7B, 2, 2, (4, 2), (2, 1)),
        # 16 divides no 40 heads, and does not lie within a node
        (ULTRAFUSER_13B, 16, 4, (4, 1), (4, 4)),
    ],
)
def test_nobody_says_how(
    cards: Cards, processes: int, local: int, trained: tuple[int, int], found: tuple[int, int]
) -> None:
    assert sizes(cards, processes, local, trained) == found


def test_the_user_says_how() -> None:
    assert sizes(QWEN_7B, 8, 8, (4, 2), tensor=2, pipeline=4) == (2, 4)
    assert sizes(QWEN_7B, 4, 4, (4, 2), pipeline=4) == (1, 4)
    with pytest.raises(UserError, match=r"^8 processes were started for --tensor 2 --pipeline 1; start 2$"):
        sizes(QWEN_7B, 8, 8, (4, 2), tensor=2)


def test_nothing_suits() -> None:
    """29 stages of 28 layers."""
    with pytest.raises(UserError, match="29 stages need at least 29 layers"):
        sizes(QWEN_7B, 29, 1, (4, 2))
