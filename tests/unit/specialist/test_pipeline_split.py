"""Layers dealt to the chunks of a pipeline."""

import pytest

from megafuser.config.compute import ParallelConfig
from megafuser.specialist.pipeline_split import layers_per_chunk


@pytest.mark.parametrize(
    ("layers", "pipeline", "virtual", "expected"),
    [
        (4, 1, 1, [4]),
        (4, 2, 1, [2, 2]),
        (5, 2, 1, [3, 2]),
        (4, 3, 1, [2, 1, 1]),
        (6, 3, 1, [2, 2, 2]),
        (6, 2, 2, [2, 2, 1, 1]),
        (3, 3, 1, [1, 1, 1]),
        (40, 4, 5, [2] * 20),
    ],
)
def test_an_even_split_with_the_remainder_first(layers: int, pipeline: int, virtual: int, expected: list[int]) -> None:
    assert layers_per_chunk(layers, ParallelConfig(pipeline=pipeline, virtual_pipeline=virtual)) == expected


@pytest.mark.parametrize(("layers", "virtual"), [(1, 1), (3, 2)])
def test_every_chunk_needs_a_layer(layers: int, virtual: int) -> None:
    with pytest.raises(ValueError, match=f"{layers} layers are fewer than {2 * virtual} chunks"):
        layers_per_chunk(layers, ParallelConfig(pipeline=2, virtual_pipeline=virtual))
