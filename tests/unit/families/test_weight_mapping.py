"""The mapping classes: exact layouts against loops over heads, and every source row used once."""

import dataclasses

import pytest
import torch

from megafuser.families.family import EMBEDDING, OUTPUT_HEAD
from megafuser.families.known import FAMILIES
from megafuser.families.weight_mapping import GatedMlp, QueryKeyValue, VocabularyRows, WeightMapping
from megafuser.specialist.card import ArchitectureCard
from tests.unit.specialist import small_card

CARD = dataclasses.replace(
    small_card.CARD,
    hidden_size=6,
    ffn_hidden_size=10,
    num_attention_heads=4,
    num_query_groups=2,
    kv_channels=3,
    vocab_size=11,
)


def _sources(mapping: WeightMapping, card: ArchitectureCard) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(shape, generator=generator) for shape in mapping.source_shapes(card)]


def _made(mapping: WeightMapping, card: ArchitectureCard, sources: list[torch.Tensor]) -> torch.Tensor:
    return torch.cat([sources[part.source][part.start : part.stop] for part in mapping.row_ranges(card)])


@pytest.mark.parametrize("columns", [(), (("hidden_size",),)], ids=["bias", "weight"])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_query_key_value_is_interleaved_by_group(groups: int, columns: tuple) -> None:
    card = dataclasses.replace(CARD, num_query_groups=groups)
    mapping = QueryKeyValue("m", ("q", "k", "v"), columns=columns)
    query, key, value = _sources(mapping, card)
    expected, d = [], card.kv_channels
    for group in range(groups):
        for head in range(4):
            if head // (4 // groups) == group:
                expected.append(query[head * d : (head + 1) * d])
        expected += [key[group * d : (group + 1) * d], value[group * d : (group + 1) * d]]
    assert torch.equal(_made(mapping, card, [query, key, value]), torch.cat(expected))


@pytest.mark.parametrize("columns", [(), (("hidden_size",),)], ids=["bias", "weight"])
def test_gate_comes_before_up(columns: tuple) -> None:
    mapping = GatedMlp("m", ("gate", "up"), columns=columns)
    gate, up = _sources(mapping, CARD)
    made = _made(mapping, CARD, [gate, up])
    assert torch.equal(made[:10], gate) and torch.equal(made[10:], up)


def test_vocabulary_rows_are_the_true_ones() -> None:
    mapping = VocabularyRows("m", ("table",))
    assert mapping.shape(CARD) == (11, 6)
    assert [(part.start, part.stop) for part in mapping.row_ranges(CARD)] == [(0, 11)]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_every_row_is_used_once(family: str, groups: int) -> None:
    card = dataclasses.replace(CARD, num_query_groups=groups)
    for mapping in FAMILIES[family].mappings:
        shapes = mapping.source_shapes(card)
        used = [(part.source, row) for part in mapping.row_ranges(card) for row in range(part.start, part.stop)]
        assert sorted(used) == [(source, row) for source, shape in enumerate(shapes) for row in range(shape[0])]
        assert mapping.shape(card) == (len(used), *shapes[0][1:])


@pytest.mark.parametrize("family", FAMILIES)
def test_embedding_and_output_head_are_there(family: str) -> None:
    assert {EMBEDDING, OUTPUT_HEAD} <= set(FAMILIES[family].mappings)


def test_flags_of_the_card_say_which_weights_there_are() -> None:
    def keys(family: str, **flags: bool) -> set[str]:
        card = dataclasses.replace(CARD, family=family, **flags)
        return {mapping.mcore for mapping in FAMILIES[family].mappings if mapping.exists(card)}

    plain, attention, mlp = keys("llama"), "decoder.layers.self_attention.", "decoder.layers.mlp."
    assert keys("mistral") == keys("qwen2") == keys("qwen3") == plain
    assert keys("qwen2", qkv_bias=True) - plain == {attention + "linear_qkv.bias"}
    assert keys("llama", attention_output_bias=True) - plain == {attention + "linear_proj.bias"}
    assert keys("llama", mlp_bias=True) - plain == {mlp + "linear_fc1.bias", mlp + "linear_fc2.bias"}
    norms = {attention + "q_layernorm.weight", attention + "k_layernorm.weight"}
    assert keys("qwen3", qk_norm=True) - plain == norms


def test_stacked_weights_are_the_separate_ones_below_one_another() -> None:
    stacked = {mapping.mcore: mapping for mapping in FAMILIES["phi3"].mappings}
    separate = {mapping.mcore: mapping for mapping in FAMILIES["llama"].mappings}
    for key in ("decoder.layers.self_attention.linear_qkv.weight", "decoder.layers.mlp.linear_fc1.weight"):
        parts = _sources(separate[key], CARD)
        assert torch.equal(_made(stacked[key], CARD, [torch.cat(parts)]), _made(separate[key], CARD, parts))
