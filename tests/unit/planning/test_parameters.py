"""The planned parameters against the models that megatron-core builds, for every rank, on the meta device."""

from collections.abc import Iterable

import pytest
import torch

from megafuser.config.compute import ParallelConfig
from megafuser.planning.parameters import chunk_parameters, rank_chunks
from tests.unit.planning.architectures import EQUAL, QWEN_7B, ULTRAFUSER_13B, UNEQUAL, Cards
from tests.unit.planning.pretended import GATE, build_chunks, pretended_rank


def assert_ranks_are_as_planned(cards: Cards, world: int, parallel: ParallelConfig, ranks: Iterable[int]) -> None:
    """Builds each rank's chunks: names, order, shapes, bytes, and which embeddings are shared, are the plan's."""
    for rank in ranks:
        with pretended_rank(rank, world, parallel), torch.device("meta"):
            built = build_chunks(cards, parallel, "bf16")
        pipeline_rank = rank // (world // parallel.pipeline)
        planned = [chunk_parameters(cards, parallel, GATE, chunk) for chunk in rank_chunks(parallel, pipeline_rank)]
        for model, wanted in zip(built, planned, strict=True):
            found = dict(model.named_parameters())
            assert all(parameter.is_meta for parameter in found.values())
            assert [(name, tuple(parameter.shape)) for name, parameter in found.items()] == [
                (parameter.name, parameter.shape) for parameter in wanted
            ]
            assert sum(parameter.nbytes for parameter in found.values()) == 2 * sum(p.size for p in wanted)
            for parameter in wanted:
                assert getattr(found[parameter.name], "shared_embedding", False) == parameter.is_shared_embedding
                assert parameter.name.startswith("gate.") == parameter.is_gate


@pytest.mark.parametrize(
    ("cards", "parallel"),
    [
        (ULTRAFUSER_13B, ParallelConfig(tensor=8, pipeline=2, sequence=True)),
        (QWEN_7B, ParallelConfig(tensor=4, pipeline=4, sequence=True)),
        (QWEN_7B, ParallelConfig(tensor=4, pipeline=2, sequence=True)),
    ],
    ids=["ultrafuser-13b", "qwen2.5-7b", "qwen2.5-7b with data parallelism"],
)
@pytest.mark.parametrize("every_rank", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["ends", "every"])
def test_sixteen_ranks_of_the_real_thing(cards: Cards, parallel: ParallelConfig, every_rank: bool) -> None:
    """The first and the last rank of each pipeline stage; of small sets, below, every rank is looked at."""
    stage = 16 // parallel.pipeline
    ranks = [rank for rank in range(16) if every_rank or rank % stage in (0, stage - 1)]
    assert_ranks_are_as_planned(cards, 16, parallel, ranks)


@pytest.mark.parametrize("cards", [EQUAL, UNEQUAL], ids=["equal", "unequal"])
@pytest.mark.parametrize(
    "parallel",
    [
        ParallelConfig(),
        ParallelConfig(tensor=2),
        ParallelConfig(tensor=4, sequence=True),
        ParallelConfig(pipeline=4),
        ParallelConfig(tensor=2, pipeline=2),
        ParallelConfig(pipeline=2, virtual_pipeline=2),
    ],
    ids=str,
)
def test_small_sets_at_many_layouts(cards: Cards, parallel: ParallelConfig) -> None:
    assert_ranks_are_as_planned(cards, 4, parallel, range(4))


def test_the_sum_over_ranks_is_what_the_cards_say() -> None:
    """Without padding: tensor parallelism repeats norms only, and pipelines nothing but tied embeddings."""
    parallel = ParallelConfig(pipeline=4)
    total = sum(p.size for chunk in range(4) for p in chunk_parameters(QWEN_7B, parallel, 512, chunk) if not p.is_gate)
    assert total == sum(card.parameter_count() for card in QWEN_7B.values())
