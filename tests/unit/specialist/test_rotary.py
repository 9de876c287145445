"""RoPE's frequencies against transformers' functions, and in whole models beyond the original context."""

import dataclasses
import random
from typing import Any

import pytest
import torch
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from megafuser.families.config_json import card_from_hf_config
from megafuser.specialist.card import RopeScaling
from megafuser.specialist.rotary import inverse_frequencies
from tests.unit.specialist.small_card import CARD
from tests.unit.specialist.twin import assert_same_before_and_after_a_step, twin

LLAMA3_1 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


def config_of(rope: dict[str, Any], head_dim: int = 128) -> LlamaConfig:
    return LlamaConfig(hidden_size=4 * 128, num_attention_heads=4, head_dim=head_dim, rope_parameters=dict(rope))


@pytest.mark.parametrize("head_dim", [8, 64, 128, 130])
@pytest.mark.parametrize("theta", [10000, 1e6, 500000.0, 3.7])
def test_plain_frequencies_are_bitwise_transformers(theta: float, head_dim: int) -> None:
    config = config_of({"rope_type": "default", "rope_theta": theta}, head_dim)
    expected, _ = LlamaRotaryEmbedding.compute_default_rope_parameters(config)
    assert torch.equal(inverse_frequencies(card_from_hf_config(config.to_dict())), expected)


@pytest.mark.parametrize("factor", [1.0, 2, 2.5, 8.0, 0.3, 1e3])
def test_linear_scaling_is_bitwise_transformers(factor: float) -> None:
    config = config_of({"rope_type": "linear", "rope_theta": 1e5, "factor": factor})
    expected, attention_factor = ROPE_INIT_FUNCTIONS["linear"](config)
    assert attention_factor == 1.0
    assert torch.equal(inverse_frequencies(card_from_hf_config(config.to_dict())), expected)


def test_llama3_scaling_is_bitwise_transformers_for_any_factors() -> None:
    """Two hundred settings: those of Llama 3.1 and 3.2, where nothing or all is stretched, and random ones."""
    chosen = random.Random(0)
    settings = [LLAMA3_1, LLAMA3_1 | {"factor": 32.0}, LLAMA3_1 | {"original_max_position_embeddings": 1}]
    settings += [LLAMA3_1 | {"original_max_position_embeddings": 10**9}]
    for _ in range(200):
        low = chosen.uniform(0.1, 20)
        settings.append(
            {
                "factor": chosen.choice([chosen.uniform(1, 64), chosen.randint(1, 64)]),
                "low_freq_factor": low,
                "high_freq_factor": low + chosen.uniform(0.01, 50),
                "original_max_position_embeddings": chosen.randint(16, 100_000),
            }
        )
    stretched = 0
    for setting in settings:
        theta = chosen.uniform(1e3, 1e7)
        config = config_of({"rope_type": "llama3", "rope_theta": theta} | setting)
        expected, attention_factor = ROPE_INIT_FUNCTIONS["llama3"](config)
        assert attention_factor == 1.0
        found = inverse_frequencies(card_from_hf_config(config.to_dict()))
        assert torch.equal(found, expected), setting
        plain = inverse_frequencies(dataclasses.replace(CARD, kv_channels=128, rotary_base=theta))
        ratio = plain / expected
        stretched += bool(((ratio > 1.001) & (ratio < 0.999 * setting["factor"])).any())
    assert stretched > 100  # the ramp between the two was met


def test_an_unknown_scaling_is_a_bug() -> None:
    with pytest.raises(ValueError, match="yarn"):
        inverse_frequencies(dataclasses.replace(CARD, rope_scaling=RopeScaling("yarn", 2.0)))


@pytest.mark.parametrize("family", ["llama", "qwen3"])
@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "linear", "factor": 3.0},
        {
            "rope_type": "llama3",
            "factor": 5.5,
            "low_freq_factor": 0.7,
            "high_freq_factor": 3.1,
            "original_max_position_embeddings": 23,
        },
    ],
)
def test_scaled_models_beyond_the_original_context(family: str, rope: dict[str, Any]) -> None:
    rope = rope | {"rope_theta": 300.0}
    with twin(family, rope_parameters=rope, head_dim=16) as models:
        plain = inverse_frequencies(dataclasses.replace(models.card, rope_scaling=None))
        assert not torch.equal(models.specialist.rotary_pos_emb.inv_freq, plain)
        assert models.specialist.rotary_pos_emb.seq_len_interpolation_factor is None
        assert_same_before_and_after_a_step(models, lengths=(20, 150))
        models.specialist.bfloat16()
        assert torch.equal(models.specialist.rotary_pos_emb.inv_freq, inverse_frequencies(models.card))
