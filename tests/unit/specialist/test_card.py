"""The architecture card: its round trip and its count, against Hugging Face's own models."""

import json
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from megafuser.errors import UserError
from megafuser.specialist.card import ArchitectureCard
from megafuser.specialist.huggingface import card_from_hf_config

SHAPE = {
    "vocab_size": 331,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
}


@pytest.mark.parametrize(
    "change", [{}, {"tie_word_embeddings": True}, {"head_dim": 16}, {"num_key_value_heads": 6, "num_hidden_layers": 1}]
)
def test_parameter_count_equals_hugging_face(change: dict[str, Any]) -> None:
    config = LlamaConfig(**SHAPE | change)
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    card = card_from_hf_config(config.to_dict())
    assert card.parameter_count() == sum(parameter.numel() for parameter in model.parameters())


def test_round_trip_through_json() -> None:
    card = card_from_hf_config(LlamaConfig(**SHAPE).to_dict())
    assert ArchitectureCard.from_dict(json.loads(json.dumps(card.to_dict()))) == card


@pytest.mark.parametrize("change", ["missing", "unknown"])
def test_a_card_of_another_version(change: str) -> None:
    values = card_from_hf_config(LlamaConfig(**SHAPE).to_dict()).to_dict()
    if change == "missing":
        del values["rotary_base"]
    else:
        values["rope_scaling"] = None
    named = "rotary_base" if change == "missing" else "rope_scaling"
    with pytest.raises(UserError, match=f"{named}; convert the specialist again"):
        ArchitectureCard.from_dict(values)
