"""Qwen 3, dense: an RMSNorm for each head's queries and keys, and a head width of its own."""

from megafuser.families.family import (
    ATTENTION_OUTPUT_BIAS,
    QK_NORMS,
    QUERY_KEY_VALUE_BIAS,
    Family,
    Flags,
    decoder_weights,
    slides_by_layer,
)

FAMILY = Family(
    name="qwen3",
    architecture="Qwen3ForCausalLM",
    mappings=decoder_weights(QUERY_KEY_VALUE_BIAS, ATTENTION_OUTPUT_BIAS, *QK_NORMS),
    flags=lambda full: Flags(qkv_bias=full.attention_bias, attention_output_bias=full.attention_bias, qk_norm=True),
    slides=slides_by_layer,
    own_head_width=True,
)
