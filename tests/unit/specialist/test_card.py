"""The architecture card: its round trip and its count, against Hugging Face's own models."""

import dataclasses
import json
from typing import Any

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, LlamaConfig

from megafuser.errors import UserError
from megafuser.families.config_json import card_from_hf_config
from megafuser.specialist.card import ArchitectureCard, RopeScaling

SHAPE = {
    "vocab_size": 331,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
}


@pytest.mark.parametrize(
    ("family", "change"),
    [
        ("llama", {}),
        ("llama", {"tie_word_embeddings": True}),
        ("llama", {"head_dim": 16}),
        ("llama", {"num_key_value_heads": 6, "num_hidden_layers": 1}),
        ("llama", {"attention_bias": True, "num_hidden_layers": 1}),
        ("llama", {"mlp_bias": True}),
        ("mistral", {"sliding_window": None}),
        ("qwen2", {}),
        ("qwen3", {}),
        ("qwen3", {"attention_bias": True, "head_dim": 10}),
        ("phi3", {"pad_token_id": 0}),
    ],
)
def test_parameter_count_equals_hugging_face(family: str, change: dict[str, Any]) -> None:
    config = CONFIG_MAPPING[family](**SHAPE | change)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    card = card_from_hf_config(config.to_dict())
    assert card.parameter_count() == sum(parameter.numel() for parameter in model.parameters())
    matrices = [parameter for parameter in model.model.layers[0].parameters() if parameter.dim() == 2]
    assert card.layer_matrix_count() == sum(parameter.numel() for parameter in matrices)


@pytest.mark.parametrize("scaling", [None, RopeScaling("linear", 2.5), RopeScaling("llama3", 8.0, 1.5, 4.0, 8192)])
def test_round_trip_through_json(scaling: RopeScaling | None) -> None:
    card = dataclasses.replace(card_from_hf_config(LlamaConfig(**SHAPE).to_dict()), rope_scaling=scaling)
    assert ArchitectureCard.from_dict(json.loads(json.dumps(card.to_dict()))) == card


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"rotary_base": None}, "rotary_base"),
        ({"experts": 8}, "experts"),
        ({"rope_scaling": {"kind": "linear", "factor": 2.0}}, "high_freq_factor, low_freq_factor, original_max_pos.*"),
        ({"rope_scaling": RopeScaling("linear", 2.0).__dict__ | {"beta": 1.0}}, "beta"),
    ],
)
def test_a_card_of_another_version(change: dict[str, Any], named: str) -> None:
    values = card_from_hf_config(LlamaConfig(**SHAPE).to_dict()).to_dict() | change
    values = {key: value for key, value in values.items() if value is not None or key == "rope_scaling"}
    with pytest.raises(UserError, match=f"fields {named}; convert the specialist again"):
        ArchitectureCard.from_dict(values)


@pytest.mark.parametrize(
    "change", [{"num_layers": "3"}, {"num_layers": 3.0}, {"mlp_bias": 1}, {"rotary_base": True}, {"family": None}]
)
def test_a_card_with_a_value_of_a_wrong_type(change: dict[str, Any]) -> None:
    values = card_from_hf_config(LlamaConfig(**SHAPE).to_dict()).to_dict() | change
    with pytest.raises(UserError, match=f"{next(iter(change))} cannot be .*; convert the specialist again"):
        ArchitectureCard.from_dict(values)
