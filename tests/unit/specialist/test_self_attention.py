"""Biases and QK norms against Hugging Face's own models, before and after a step of training."""

import itertools
from typing import Any

import pytest

from megafuser.config.compute import ParallelConfig, PrecisionConfig
from megafuser.specialist.self_attention import SelfAttentionWithOwnBiases
from megafuser.specialist.transformer_config import transformer_config
from tests.unit.specialist.small_card import CARD
from tests.unit.specialist.twin import assert_same_before_and_after_a_step, twin


@pytest.mark.parametrize(("attention_bias", "mlp_bias"), list(itertools.product([False, True], repeat=2)))
def test_every_combination_of_llamas_biases(attention_bias: bool, mlp_bias: bool) -> None:
    """By name, too: a bias that Hugging Face's model does not have would be trained, and lost on export."""
    with twin("llama", attention_bias=attention_bias, mlp_bias=mlp_bias) as models:
        biases = {name for name, _ in models.specialist.named_parameters() if name.endswith("bias")}
        assert len(biases) == 2 * (2 * attention_bias + 2 * mlp_bias)
        assert_same_before_and_after_a_step(models)


@pytest.mark.parametrize("changes", [{}, {"tie_word_embeddings": True}, {"head_dim": 12}])
def test_qwen2_has_biases_at_queries_keys_and_values_alone(changes: dict[str, Any]) -> None:
    with twin("qwen2", **changes) as models:
        assert_same_before_and_after_a_step(models)


@pytest.mark.parametrize("changes", [{}, {"attention_bias": True}, {"tie_word_embeddings": True, "head_dim": 8}])
def test_qwen3_has_norms_at_queries_and_keys(changes: dict[str, Any]) -> None:
    with twin("qwen3", **{"head_dim": 20} | changes) as models:
        assert_same_before_and_after_a_step(models)


@pytest.mark.parametrize("changes", [{}, {"head_dim": 12}])
def test_mistral(changes: dict[str, Any]) -> None:
    with twin("mistral", sliding_window=None, **changes) as models:
        assert_same_before_and_after_a_step(models)


def test_the_models_configuration_stays_as_it_was() -> None:
    with twin("llama", attention_bias=True) as models:
        layer = models.specialist.decoder.layers[0]
        assert not models.specialist.config.add_bias_linear and layer.self_attention.config.add_bias_linear


def test_an_output_bias_alone_is_refused() -> None:
    config = transformer_config(
        CARD, parallel=ParallelConfig(), precision=PrecisionConfig(dtype="fp32"), backend="torch"
    )
    with pytest.raises(ValueError, match="output projection alone"):
        SelfAttentionWithOwnBiases(config, None, 1, qkv_bias=False, output_bias=True)
