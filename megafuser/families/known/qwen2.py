"""Qwen 2 and 2.5: biases at queries, keys and values, which no flag tells.

Models whose attention slides, and mixtures of experts, are refused by `families.config_json`.
"""

from megafuser.families.family import QUERY_KEY_VALUE_BIAS, Family, Flags, decoder_weights, slides_by_layer

FAMILY = Family(
    name="qwen2",
    architecture="Qwen2ForCausalLM",
    mappings=decoder_weights(QUERY_KEY_VALUE_BIAS),
    flags=lambda _: Flags(qkv_bias=True),
    slides=slides_by_layer,
)
