"""The plan: every source used once, every target filled once, or a line that names the weight."""

import dataclasses

import pytest

from megafuser.conversion.huggingface import HuggingFaceCheckpoint
from megafuser.conversion.tensor_accounting import plan_conversion
from megafuser.errors import UserError
from megafuser.families.config_json import card_from_hf_config
from megafuser.specialist.card import ArchitectureCard
from tests.tiny_models import make_llama


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> HuggingFaceCheckpoint:
    return HuggingFaceCheckpoint(make_llama(tmp_path_factory.mktemp("models") / "llama"))


@pytest.fixture
def card(source: HuggingFaceCheckpoint) -> ArchitectureCard:
    return card_from_hf_config(source.config)


def test_every_source_is_used_once_and_every_target_filled_once(
    source: HuggingFaceCheckpoint, card: ArchitectureCard
) -> None:
    plan = plan_conversion(card, source.shapes, "x")
    used = [key for assignment in plan.assignments for key in assignment.sources]
    assert sorted(used) == sorted(source.shapes)
    targets = [(assignment.mapping.mcore, assignment.layer) for assignment in plan.assignments]
    assert len(set(targets)) == len(targets) == 3 + 6 * card.num_layers
    assert plan.tied_head is None


@pytest.mark.parametrize("head", [True, False])
def test_tied_head_is_not_stored(source: HuggingFaceCheckpoint, card: ArchitectureCard, head: bool) -> None:
    tied = dataclasses.replace(card, tie_word_embeddings=True)
    shapes = {key: shape for key, shape in source.shapes.items() if head or key != "lm_head.weight"}
    plan = plan_conversion(tied, shapes, "x")
    assert "output_layer.weight" not in {assignment.mapping.mcore for assignment in plan.assignments}
    assert plan.tied_head == ("lm_head.weight" if head else None) and plan.embedding == "model.embed_tokens.weight"


def test_old_buffers_are_passed_over(source: HuggingFaceCheckpoint, card: ArchitectureCard) -> None:
    buffers = {"model.rotary_emb.inv_freq": (4,), "model.layers.3.self_attn.rotary_emb.inv_freq": (4,)}
    assert plan_conversion(card, source.shapes | buffers, "x") == plan_conversion(card, source.shapes, "x")
    with pytest.raises(UserError, match=r"has model.layers.4.self_attn.rotary_emb.inv_freq"):
        plan_conversion(card, source.shapes | {"model.layers.4.self_attn.rotary_emb.inv_freq": (4,)}, "x")


def test_missing_unexpected_and_misshapen_weights_are_named(
    source: HuggingFaceCheckpoint, card: ArchitectureCard
) -> None:
    without = {key: shape for key, shape in source.shapes.items() if key != "model.layers.2.mlp.up_proj.weight"}
    with pytest.raises(UserError, match=r"DIR lacks model.layers.2.mlp.up_proj.weight, so"):
        plan_conversion(card, without, "DIR")
    with pytest.raises(UserError, match=r"DIR has model.layers.0.self_attn.q_proj.bias, which"):
        plan_conversion(card, source.shapes | {"model.layers.0.self_attn.q_proj.bias": (32,)}, "DIR")
    with pytest.raises(UserError, match=r"DIR lacks lm_head.weight"):
        plan_conversion(card, {k: s for k, s in source.shapes.items() if k != "lm_head.weight"}, "DIR")
    with pytest.raises(UserError, match=r"has model.layers.3.input_layernorm.weight and 8 more weights"):
        plan_conversion(dataclasses.replace(card, num_layers=3), source.shapes, "DIR")


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"vocab_size": 321}, r"model.embed_tokens.weight has shape \[320, 32\], .* implies \[321, 32\]"),
        ({"num_query_groups": 4}, r"model.layers.0.self_attn.k_proj.weight has shape \[16, 32\], .*\[32, 32\]"),
        ({"kv_channels": 4}, r"model.layers.0.self_attn.q_proj.weight"),
        ({"ffn_hidden_size": 63}, r"model.layers.0.mlp.gate_proj.weight"),
    ],
)
def test_configuration_that_contradicts_a_shape(
    source: HuggingFaceCheckpoint, card: ArchitectureCard, change: dict, key: str
) -> None:
    with pytest.raises(UserError, match=key):
        plan_conversion(dataclasses.replace(card, **change), source.shapes, "DIR")
