"""Over how many processes a model that is used is spread, and how."""

import pytest

from megafuser.config.compute import ParallelConfig
from megafuser.errors import UserError
from megafuser.inference.spread import Layout, for_decoding, spread
from megafuser.runtime.world import World
from tests.unit.planning.architectures import QWEN_7B, ULTRAFUSER_13B, Cards
from tests.unit.planning.made_up_tasks import make_task


def layout(
    cards: Cards, processes: int, local: int, trained: tuple[int, ...], *, copies: bool = False, **asked: int
) -> ParallelConfig:
    """What comes of a model that was trained over tensor ranks, pipeline stages and chunks of each stage."""
    tensor, pipeline, virtual = (*trained, 1)[:3]
    parallel = ParallelConfig(tensor=tensor, pipeline=pipeline, virtual_pipeline=virtual)
    config = make_task(cards, parallel=parallel).config
    world = World(rank=0, size=processes, local_rank=0, launcher="torchrun", local_size=local)
    return spread(config, cards, world, Layout(**asked), copies=copies)


def sizes(
    cards: Cards, processes: int, local: int, trained: tuple[int, ...], *, copies: bool = False, **asked: int
) -> tuple[int, int]:
    """Tensor-parallel size and pipeline stages."""
    found = layout(cards, processes, local, trained, copies=copies, **asked)
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


@pytest.mark.parametrize("copies", [False, True])
@pytest.mark.parametrize(
    ("asked", "processes", "found"),
    [
        ({"tensor": 2, "pipeline": 4}, 8, (2, 4)),
        # one of them: the other is what is left, in every command
        ({"tensor": 2}, 8, (2, 4)),
        ({"tensor": 4}, 4, (4, 1)),
        ({"pipeline": 4}, 4, (1, 4)),
        ({"pipeline": 4}, 16, (4, 4)),
    ],
)
def test_the_user_says_how(copies: bool, asked: dict[str, int], processes: int, found: tuple[int, int]) -> None:
    assert sizes(QWEN_7B, processes, 8, (4, 2), copies=copies, **asked) == found


def test_sizes_that_do_not_make_the_processes() -> None:
    with pytest.raises(UserError, match=r"^8 processes were started for --tensor 2 --pipeline 1; start 2$"):
        sizes(QWEN_7B, 8, 8, (4, 2), tensor=2, pipeline=1)
    assert sizes(QWEN_7B, 8, 8, (4, 2), copies=True, tensor=2, pipeline=1) == (2, 1)
    with pytest.raises(UserError, match=r"--tensor 2 --pipeline 2; start 4 or a multiple of it$"):
        sizes(QWEN_7B, 6, 6, (4, 2), copies=True, tensor=2, pipeline=2)
    # both are there: what they make together, at once
    with pytest.raises(UserError, match=r"^1 processes were started for --tensor 2 --pipeline 2; start 4$"):
        sizes(QWEN_7B, 1, 1, (4, 2), tensor=2, pipeline=2)
    with pytest.raises(UserError, match=r"^6 processes were started for --pipeline 4; start a multiple of 4$"):
        sizes(QWEN_7B, 6, 6, (4, 2), copies=True, pipeline=4)


def test_copies_of_the_layout_of_training() -> None:
    assert sizes(QWEN_7B, 8, 8, (2, 2), copies=True) == (2, 2)
    assert sizes(QWEN_7B, 8, 8, (2, 2)) == (4, 2)
    # over another number as for one copy
    assert sizes(QWEN_7B, 2, 2, (2, 2), copies=True) == (2, 1)


def test_chunks_of_a_virtual_pipeline_are_of_the_trained_layout() -> None:
    assert layout(QWEN_7B, 4, 4, (2, 2, 2), copies=True).virtual_pipeline == 2
    assert layout(QWEN_7B, 2, 2, (2, 2, 2), copies=True) == ParallelConfig(tensor=2, pipeline=1)
    assert layout(QWEN_7B, 4, 4, (2, 2, 2), copies=True, pipeline=2) == ParallelConfig(tensor=2, pipeline=2)


def test_decoding_has_the_sizes_of_the_trained_layout_alone() -> None:
    """Its steps of a token each cannot be cut into shares, and their chunks would only be sent around more often."""
    trained = ParallelConfig(tensor=2, pipeline=2, virtual_pipeline=2, sequence=True, overlap_grad_reduce=True)
    assert for_decoding(trained) == ParallelConfig(tensor=2, pipeline=2)


def test_nothing_suits() -> None:
    """29 stages of 28 layers."""
    with pytest.raises(UserError, match="29 stages need at least 29 layers"):
        sizes(QWEN_7B, 29, 1, (4, 2))
