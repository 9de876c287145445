"""Llama 1 to 3.x, and everything that is published as one (Code Llama, Vicuna, SmolLM2, Yi …).

How Llama 3.1 scales RoPE is read by `families.config_json`, as for any family.
"""

from megafuser.families.family import (
    ATTENTION_OUTPUT_BIAS,
    MLP_BIASES,
    QUERY_KEY_VALUE_BIAS,
    Family,
    Flags,
    decoder_weights,
)

FAMILY = Family(
    name="llama",
    architecture="LlamaForCausalLM",
    mappings=decoder_weights(QUERY_KEY_VALUE_BIAS, ATTENTION_OUTPUT_BIAS, *MLP_BIASES),
    # one flag for all four projections of attention
    flags=lambda full: Flags(
        qkv_bias=full.attention_bias, attention_output_bias=full.attention_bias, mlp_bias=full.mlp_bias
    ),
)
