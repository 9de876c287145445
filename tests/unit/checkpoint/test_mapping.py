"""The mapping classes: exact layouts against loops over heads, and bitwise round trips."""

import dataclasses

import pytest
import torch

from megafuser.checkpoint.families import LLAMA
from megafuser.checkpoint.mapping import GatedMlp, QueryKeyValue, WeightMapping
from megafuser.specialist.card import ArchitectureCard

CARD = ArchitectureCard(
    family="llama",
    num_layers=2,
    hidden_size=6,
    ffn_hidden_size=10,
    num_attention_heads=4,
    num_query_groups=2,
    kv_channels=3,
    vocab_size=11,
    max_position_embeddings=32,
    rotary_base=1e4,
    norm_epsilon=1e-5,
    tie_word_embeddings=False,
    qkv_bias=False,
    attention_output_bias=False,
    mlp_bias=False,
    qk_norm=False,
    rope_scaling=None,
)


def _sources(mapping: WeightMapping, card: ArchitectureCard, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(shape, generator=generator).to(dtype) for shape in mapping.source_shapes(card)]


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_query_key_value_is_interleaved_by_group(groups: int) -> None:
    card = dataclasses.replace(CARD, num_query_groups=groups)
    mapping = QueryKeyValue("m", ("q", "k", "v"))
    query, key, value = _sources(mapping, card)
    made = mapping.to_mcore(card, query, key, value)
    expected, d = [], card.kv_channels
    for group in range(groups):
        for head in range(4):
            if head // (4 // groups) == group:
                expected.append(query[head * d : (head + 1) * d])
        expected += [key[group * d : (group + 1) * d], value[group * d : (group + 1) * d]]
    assert torch.equal(made, torch.cat(expected))


def test_gate_comes_before_up() -> None:
    mapping = GatedMlp("m", ("gate", "up"))
    gate, up = _sources(mapping, CARD)
    made = mapping.to_mcore(CARD, gate, up)
    assert torch.equal(made[:10], gate) and torch.equal(made[10:], up)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("mapping", LLAMA.mappings, ids=lambda mapping: mapping.mcore)
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_round_trip_is_bitwise(mapping: WeightMapping, dtype: torch.dtype, groups: int) -> None:
    card = dataclasses.replace(CARD, num_query_groups=groups)
    sources = _sources(mapping, card, dtype)
    back = mapping.to_hf(card, mapping.to_mcore(card, *sources))
    assert len(back) == len(sources)
    assert all(torch.equal(there, here) for there, here in zip(back, sources, strict=True))


def test_padded_vocabulary_rows_are_dropped_on_the_way_back() -> None:
    mapping = LLAMA.mappings[0]
    (rows,) = _sources(mapping, CARD)
    (back,) = mapping.to_hf(CARD, torch.cat([rows, torch.zeros(5, 6)]))
    assert torch.equal(back, rows)
