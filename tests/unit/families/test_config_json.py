"""Cards of Hugging Face configurations as different versions of transformers wrote them; refusals by name."""

import copy
import json
from typing import Any

import pytest
from transformers import CONFIG_MAPPING

from megafuser.errors import UserError
from megafuser.families.config_json import card_from_hf_config
from megafuser.specialist.card import ArchitectureCard, RopeScaling

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
# what counts in config.json of Mistral-7B-Instruct-v0.2, Qwen2.5-7B-Instruct and Qwen3-0.6B
MISTRAL: dict[str, Any] = {
    "architectures": ["MistralForCausalLM"],
    "hidden_act": "silu",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "max_position_embeddings": 32768,
    "model_type": "mistral",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05,
    "rope_theta": 1000000.0,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "vocab_size": 32000,
}
QWEN2: dict[str, Any] = {
    "architectures": ["Qwen2ForCausalLM"],
    "hidden_act": "silu",
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "max_position_embeddings": 32768,
    "max_window_layers": 28,
    "model_type": "qwen2",
    "num_attention_heads": 28,
    "num_hidden_layers": 28,
    "num_key_value_heads": 4,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "sliding_window": 131072,
    "tie_word_embeddings": False,
    "use_sliding_window": False,
    "vocab_size": 152064,
}
QWEN3: dict[str, Any] = {
    "architectures": ["Qwen3ForCausalLM"],
    "attention_bias": False,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "max_position_embeddings": 40960,
    "max_window_layers": 28,
    "model_type": "qwen3",
    "num_attention_heads": 16,
    "num_hidden_layers": 28,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "sliding_window": None,
    "tie_word_embeddings": True,
    "use_sliding_window": False,
    "vocab_size": 151936,
}
# of phi-4
PHI4: dict[str, Any] = {
    "architectures": ["Phi3ForCausalLM"],
    "attention_bias": False,
    "bos_token_id": 100257,
    "embd_pdrop": 0.0,
    "eos_token_id": 100265,
    "hidden_act": "silu",
    "hidden_size": 5120,
    "intermediate_size": 17920,
    "max_position_embeddings": 16384,
    "model_type": "phi3",
    "num_attention_heads": 40,
    "num_hidden_layers": 40,
    "num_key_value_heads": 10,
    "original_max_position_embeddings": 16384,
    "pad_token_id": 100349,
    "resid_pdrop": 0.0,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "rope_theta": 250000,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "vocab_size": 100352,
}
PUBLISHED = {"llama": CODE_LLAMA, "mistral": MISTRAL, "qwen2": QWEN2, "qwen3": QWEN3, "phi3": PHI4}
# of Llama-3.1-8B
LLAMA3 = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
    "rope_type": "llama3",
}
ABSENT = "absent"


def changed(family: str = "llama", **changes: Any) -> dict[str, Any]:
    return {key: value for key, value in (PUBLISHED[family] | changes).items() if value != ABSENT}


@pytest.mark.parametrize("changes", [{}, {"rope_scaling": ABSENT}, {"rope_scaling": ABSENT, "rope_theta": ABSENT}])
def test_phi3_turns_by_its_theta_alone(changes: dict[str, Any]) -> None:
    # transformers' Phi-3 knows no scaling but LongRoPE
    card = card_from_hf_config(changed("phi3", **changes))
    assert (card.rotary_base, card.rope_scaling) == (1e4 if "rope_theta" in changes else 250000.0, None)


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
        qkv_bias=False,
        attention_output_bias=False,
        mlp_bias=False,
        qk_norm=False,
        rope_scaling=None,
    )


@pytest.mark.parametrize(
    ("family", "changes", "biases", "qk_norm"),
    [
        ("llama", {"attention_bias": True}, (True, True, False), False),
        ("llama", {"mlp_bias": True}, (False, False, True), False),
        ("llama", {"attention_bias": True, "mlp_bias": True}, (True, True, True), False),
        ("mistral", {}, (False, False, False), False),
        ("mistral", {"attention_bias": True}, (False, False, False), False),  # the model does not read it
        ("qwen2", {}, (True, False, False), False),
        ("qwen3", {}, (False, False, False), True),
        ("qwen3", {"attention_bias": True}, (True, True, False), True),
        ("phi3", {}, (False, False, False), False),
    ],
)
def test_biases_and_norms_of_each_family(
    family: str, changes: dict[str, Any], biases: tuple[bool, bool, bool], qk_norm: bool
) -> None:
    card = card_from_hf_config(changed(family, **changes))
    assert card.family == family
    assert (card.qkv_bias, card.attention_output_bias, card.mlp_bias) == biases
    assert card.qk_norm is qk_norm


@pytest.mark.parametrize(
    ("changes", "theta", "scaling"),
    [
        ({}, 1e6, None),
        ({"rope_theta": ABSENT}, 1e4, None),  # before θ was written at all, as in Llama 1
        ({"rope_theta": ABSENT, "rope_scaling": ABSENT}, 1e4, None),
        ({"rope_theta": ABSENT, "rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}}, 5e5, None),
        ({"rope_parameters": {"rope_theta": 5e5}, "rope_theta": 1e4}, 5e5, None),
        ({"rope_scaling": {"rope_type": "default"}}, 1e6, None),
        ({"partial_rotary_factor": 1.0}, 1e6, None),
        ({"rope_scaling": {"type": "linear", "factor": 4}}, 1e6, RopeScaling("linear", 4.0)),
        ({"rope_scaling": {"rope_type": "linear", "factor": 2.5}}, 1e6, RopeScaling("linear", 2.5)),
        (
            {"rope_theta": ABSENT, "rope_parameters": {"rope_type": "linear", "factor": 2.5, "rope_theta": 5e5}},
            5e5,
            RopeScaling("linear", 2.5),
        ),
        ({"rope_scaling": LLAMA3}, 1e6, RopeScaling("llama3", 8.0, 1.0, 4.0, 8192)),
        (
            {"rope_parameters": LLAMA3 | {"rope_theta": 5e5, "low_freq_factor": 2}, "rope_scaling": ABSENT},
            5e5,
            RopeScaling("llama3", 8.0, 2.0, 4.0, 8192),
        ),
    ],
)
@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
def test_rope_from_old_and_new_forms(
    family: str, changes: dict[str, Any], theta: float, scaling: RopeScaling | None
) -> None:
    config = changed(family, **changes)
    before = copy.deepcopy(config)
    card = card_from_hf_config(config)
    assert (card.rotary_base, card.rope_scaling) == (theta, scaling)
    assert config == before
    own = CONFIG_MAPPING[family].from_dict(copy.deepcopy(config)).to_dict()
    # what transformers 5 writes of the old form, rope_parameters, gives the same card
    assert card_from_hf_config(own) == card
    assert own["rope_parameters"]["rope_theta"] == theta


@pytest.mark.parametrize(
    ("family", "changes", "field", "value"),
    [
        ("llama", {"num_key_value_heads": 8}, "num_query_groups", 8),
        ("llama", {"num_key_value_heads": ABSENT}, "num_query_groups", 40),
        ("llama", {"num_key_value_heads": None}, "num_query_groups", 40),
        ("mistral", {"num_key_value_heads": ABSENT}, "num_query_groups", 8),
        ("qwen2", {"num_key_value_heads": ABSENT, "num_attention_heads": 32}, "num_query_groups", 32),
        ("llama", {"head_dim": 64}, "kv_channels", 64),
        ("llama", {"head_dim": None}, "kv_channels", 128),
        ("mistral", {"head_dim": 160}, "kv_channels", 160),
        ("qwen2", {"head_dim": 64}, "kv_channels", 64),
        ("qwen3", {"head_dim": ABSENT}, "kv_channels", 128),
        ("llama", {"rms_norm_eps": ABSENT}, "norm_epsilon", 1e-6),
        ("llama", {"max_position_embeddings": ABSENT}, "max_position_embeddings", 2048),
        ("mistral", {"max_position_embeddings": ABSENT}, "max_position_embeddings", 131072),
        ("qwen3", {"max_position_embeddings": ABSENT}, "max_position_embeddings", 32768),
        ("llama", {"tie_word_embeddings": True}, "tie_word_embeddings", True),
        ("llama", {"tie_word_embeddings": ABSENT}, "tie_word_embeddings", False),
        ("llama", {"architectures": ABSENT}, "family", "llama"),
        ("llama", {"per_layer_config": {}}, "num_layers", 40),
    ],
)
def test_defaults_are_transformers_own(family: str, changes: dict[str, Any], field: str, value: Any) -> None:
    assert getattr(card_from_hf_config(changed(family, **changes)), field) == value


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("mistral", {"sliding_window": 32768}),
        ("mistral", {"sliding_window": 40000}),
        ("qwen2", {"sliding_window": 100}),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 32768, "max_window_layers": 2}),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 100}),  # all 28 layers are below max_window_layers
        ("qwen3", {"layer_types": ["full_attention"] * 28}),
    ],
)
def test_windows_that_hide_nothing_are_accepted(family: str, changes: dict[str, Any]) -> None:
    assert card_from_hf_config(changed(family, **changes)) == card_from_hf_config(changed(family))


@pytest.mark.parametrize(
    ("family", "changes", "says"),
    [
        ("mistral", {"sliding_window": 4096}, "sliding_window 4096"),
        ("phi3", {"sliding_window": 2047}, "sliding_window 2047"),  # as Phi-3-mini-4k's
        ("mistral", {"sliding_window": ABSENT}, "sliding_window 4096"),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 100, "max_window_layers": 2}, "sliding_window 100"),
        ("qwen3", {"layer_types": ["full_attention"] * 27 + ["sliding_attention"]}, "sliding_window None"),
        ("qwen3", {"layer_types": ["chunked_attention"] * 28}, "layer_types 'chunked_attention'"),
        ("qwen3", {"layer_types": ["full_attention"]}, "transformers cannot read it"),
    ],
)
def test_windows_that_hide_something_are_refused(family: str, changes: dict[str, Any], says: str) -> None:
    assert says in refusal(changed(family, **changes))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (
            {"architectures": ["GemmaForCausalLM"], "model_type": "gemma"},
            "GemmaForCausalLM is not supported; supported: LlamaForCausalLM, MistralForCausalLM, ",
        ),
        ({"architectures": ABSENT, "model_type": "gpt2"}, "model_type 'gpt2' is not supported"),
        ({"architectures": ABSENT, "model_type": ["llama"]}, "model_type ['llama'] is not supported"),
        ({"architectures": "LlamaForCausalLM"}, "architectures must be a list of names"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "LlamaForSequenceClassification"),
        ({"architectures": ["MistralForCausalLM"]}, "MistralForCausalLM is not supported"),
        ({"model_type": ABSENT}, "model_type None does not go with LlamaForCausalLM"),
        ({"architectures": ["MixtralForCausalLM"], "model_type": "mixtral"}, "MixtralForCausalLM is a mixture-of-expe"),
        ({"architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe"}, "Qwen3MoeForCausalLM is a mixture-of-"),
        ({"num_local_experts": 8}, "mixture-of-experts"),
        ({"num_experts": 60}, "mixture-of-experts"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu'"),
        ({"is_causal": False}, "is_causal False is not supported; supported: true"),
        ({"is_causal": None}, "is_causal None is not supported"),
        (
            {"per_layer_config": {"0": {"num_attention_heads": 20}}},
            "per_layer_config: layers that differ from one another are not supported; supported: all alike",
        ),
        ({"hidden_act": None}, "transformers cannot read it"),
        ({"torch_dtype": "float9"}, "transformers cannot read it"),
        ({"eos_token_id": "</s>"}, "transformers cannot read it"),
        ({"hidden_size": 5121}, "5121 is not a multiple of its 40 heads"),
        ({"num_key_value_heads": 7}, "40 is not a multiple of num_key_value_heads 7"),
        ({"head_dim": 3}, "head_dim 3 is odd"),
    ],
)
def test_refused_by_name(changes: dict[str, Any], says: str) -> None:
    assert says in refusal(changed(**changes))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"num_hidden_layers": ABSENT}, "num_hidden_layers must be a positive integer, but is missing"),
        ({"num_hidden_layers": 10**12}, "num_hidden_layers 1000000000000 is more than any model has"),
        ({"num_hidden_layers": True}, "num_hidden_layers must be a positive integer, not True"),
        ({"vocab_size": 0}, "vocab_size must be a positive integer, not 0"),
        ({"hidden_size": "5120"}, "hidden_size must be a positive integer, not '5120'"),
        ({"hidden_size": 5120.0}, "hidden_size must be a positive integer, not 5120.0"),
        ({"num_key_value_heads": []}, "num_key_value_heads must be a positive integer, not []"),
        ({"max_position_embeddings": None}, "max_position_embeddings must be a positive integer, not None"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps must be a positive number, not nan"),
        ({"rms_norm_eps": "1e-5"}, "rms_norm_eps must be a positive number, not '1e-5'"),
        ({"rope_theta": float("inf")}, "rope_theta must be a positive number, not inf"),
        ({"rope_theta": 10**400}, "rope_theta must be a positive number, not 1000"),
        ({"rope_theta": None}, "rope_theta must be a positive number, not None"),
        ({"attention_bias": "false"}, "attention_bias must be true or false, not 'false'"),
        ({"mlp_bias": None}, "mlp_bias must be true or false, not None"),
    ],
)
def test_values_that_make_no_sense(changes: dict[str, Any], says: str) -> None:
    assert says in refusal(changed(**changes))


@pytest.mark.parametrize(
    ("rope", "says"),
    [
        ([], "must be an object, not []"),
        (
            {"rope_type": "yarn", "factor": 4.0},
            "RoPE scaling 'yarn' is not supported; supported: default, linear, llam",
        ),
        ({"type": "dynamic", "factor": 4.0}, "RoPE scaling 'dynamic' is not supported"),
        ({"type": "longrope", "long_factor": [1.0], "short_factor": [1.0]}, "RoPE scaling 'longrope' is not supported"),
        ({"rope_type": None}, "RoPE scaling None is not supported"),
        ({"rope_type": ["linear"]}, "RoPE scaling ['linear'] is not supported"),
        ({"full_attention": {"rope_type": "default"}}, "full_attention: RoPE that differs from layer to layer"),
        ({"rope_type": "linear"}, "factor must be a positive number, but is missing"),
        ({"rope_type": "linear", "factor": "4"}, "factor must be a positive number, not '4'"),
        ({"rope_type": "linear", "factor": -4.0}, "factor must be a positive number, not -4.0"),
        ({"rope_type": "linear", "factor": float("nan")}, "factor must be a positive number, not nan"),
        ({"rope_type": "linear", "factor": 2.0, "attention_factor": 1.5}, "attention_factor 1.5"),
        ({"rope_type": "default", "rope_theta": 0}, "rope_theta must be a positive number, not 0"),
        ({"rope_type": "default", "partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5"),
        ({**LLAMA3, "factor": float("inf")}, "factor must be a positive number, not inf"),
        ({**LLAMA3, "low_freq_factor": 0}, "low_freq_factor must be a positive number, not 0"),
        ({**LLAMA3, "high_freq_factor": ABSENT}, "high_freq_factor must be a positive number, but is missing"),
        ({**LLAMA3, "high_freq_factor": 1.0}, "high_freq_factor must be greater than low_freq_factor"),
        ({**LLAMA3, "original_max_position_embeddings": ABSENT}, "original_max_position_embeddings must be a positive"),
        ({**LLAMA3, "original_max_position_embeddings": 8192.5}, "original_max_position_embeddings must be a positive"),
        ({**LLAMA3, "attention_factor": 0.5}, "attention_factor 0.5"),
    ],
)
@pytest.mark.parametrize("key", ["rope_scaling", "rope_parameters"])
def test_rope_that_is_not_reproduced_is_refused(key: str, rope: Any, says: str) -> None:
    if isinstance(rope, dict):
        rope = {name: value for name, value in rope.items() if value != ABSENT}
    assert says in refusal(changed(**{key: rope}))


def test_partial_rotation_is_refused() -> None:
    assert "partial_rotary_factor 0.5" in refusal(changed(partial_rotary_factor=0.5))


def refusal(config: dict[str, Any]) -> str:
    """The one line that says why, of a configuration that has gone through JSON."""
    with pytest.raises(UserError) as refused:
        card_from_hf_config(json.loads(json.dumps(config)))
    line = str(refused.value)
    assert line.startswith("config.json: ") and "\n" not in line
    return line
