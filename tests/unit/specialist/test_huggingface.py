"""Cards of Hugging Face configurations as different versions of transformers wrote them; refusals by name."""

from typing import Any

import pytest

from megafuser.errors import UserError
from megafuser.specialist.card import ArchitectureCard
from megafuser.specialist.huggingface import card_from_hf_config

# config.json of CodeLlama-13b-Instruct-hf
CODE_LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": 5120,
    "initializer_range": 0.02,
    "intermediate_size": 13824,
    "max_position_embeddings": 16384,
    "model_type": "llama",
    "num_attention_heads": 40,
    "num_hidden_layers": 40,
    "num_key_value_heads": 40,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.32.0.dev0",
    "use_cache": True,
    "vocab_size": 32016,
}


def changed(**changes: Any) -> dict[str, Any]:
    return {key: value for key, value in (CODE_LLAMA | changes).items() if value != "absent"}


def test_a_published_configuration() -> None:
    assert card_from_hf_config(CODE_LLAMA) == ArchitectureCard(
        family="llama",
        num_layers=40,
        hidden_size=5120,
        ffn_hidden_size=13824,
        num_attention_heads=40,
        num_query_groups=40,
        kv_channels=128,
        vocab_size=32016,
        max_position_embeddings=16384,
        rotary_base=1e6,
        norm_epsilon=1e-5,
        tie_word_embeddings=False,
    )


@pytest.mark.parametrize(
    ("changes", "theta"),
    [
        ({}, 1e6),
        ({"rope_theta": "absent"}, 1e4),  # before θ was written at all, as in Llama 1
        ({"rope_theta": "absent", "rope_scaling": "absent"}, 1e4),
        ({"rope_theta": "absent", "rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}}, 5e5),
        ({"rope_parameters": {"rope_theta": 5e5}, "rope_theta": 1e4}, 5e5),
        ({"rope_scaling": {"rope_type": "default"}}, 1e6),
        ({"partial_rotary_factor": 1.0}, 1e6),
    ],
)
def test_theta_from_old_and_new_forms(changes: dict[str, Any], theta: float) -> None:
    assert card_from_hf_config(changed(**changes)).rotary_base == theta


@pytest.mark.parametrize(
    ("changes", "field", "value"),
    [
        ({"num_key_value_heads": 8}, "num_query_groups", 8),
        ({"num_key_value_heads": "absent"}, "num_query_groups", 40),
        ({"head_dim": 64}, "kv_channels", 64),
        ({"head_dim": None}, "kv_channels", 128),
        ({"rms_norm_eps": "absent"}, "norm_epsilon", 1e-6),
        ({"max_position_embeddings": "absent"}, "max_position_embeddings", 2048),
        ({"tie_word_embeddings": True}, "tie_word_embeddings", True),
        ({"tie_word_embeddings": "absent"}, "tie_word_embeddings", False),
        ({"architectures": "absent"}, "family", "llama"),
    ],
)
def test_defaults_are_transformers_own(changes: dict[str, Any], field: str, value: Any) -> None:
    assert getattr(card_from_hf_config(changed(**changes)), field) == value


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"architectures": ["MixtralForCausalLM"], "model_type": "mixtral"}, "MixtralForCausalLM is not supported"),
        ({"architectures": "absent", "model_type": "gpt2"}, "model_type 'gpt2' is not supported"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "LlamaForSequenceClassification"),
        ({"rope_scaling": {"type": "linear", "factor": 4.0}}, "RoPE scaling 'linear'"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "RoPE scaling 'llama3'"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}, "RoPE scaling 'yarn'"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5"),
        ({"attention_bias": True}, "attention_bias true"),
        ({"mlp_bias": True}, "mlp_bias true"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu'"),
        ({"hidden_size": 5121}, "5121 is no multiple of its 40 heads"),
        ({"num_key_value_heads": 7}, "40 is no multiple of num_key_value_heads 7"),
        ({"num_hidden_layers": "absent"}, "num_hidden_layers must be a positive integer, not None"),
        ({"vocab_size": 0}, "vocab_size must be a positive integer, not 0"),
        ({"hidden_size": "5120"}, "hidden_size must be a positive integer, not '5120'"),
    ],
)
def test_refused_by_name(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError) as refused:
        card_from_hf_config(changed(**changes))
    assert says in str(refused.value)
    assert str(refused.value).startswith("config.json: ")
