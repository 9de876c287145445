"""Which modules a specialist's layers are made of. Both backends give the same checkpoint keys."""

from megatron.core.models.gpt.gpt_layer_specs import (
    get_gpt_layer_local_spec,
    get_gpt_layer_with_transformer_engine_spec,
)
from megatron.core.transformer import TransformerConfig
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules, get_num_layers_to_build

from megafuser.specialist.attention import SegmentAttention
from megafuser.specialist.norm import RMSNorm


def block_spec(config: TransformerConfig, backend: str) -> TransformerBlockSubmodules:
    """The transformer block's spec for this pipeline stage.

    Args:
        config: the specialist's configuration.
        backend: `transformer_engine` (fused kernels, FP8, packed THD attention) or `torch`.
    """
    if backend == "transformer_engine":
        from megatron.core.extensions.transformer_engine import TENorm

        layer, norm = get_gpt_layer_with_transformer_engine_spec(), TENorm
    else:
        layer, norm = get_gpt_layer_local_spec(normalization="RMSNorm"), RMSNorm
        layer.submodules.input_layernorm = layer.submodules.pre_mlp_layernorm = RMSNorm
        layer.submodules.self_attention.submodules.core_attention = SegmentAttention
    return TransformerBlockSubmodules(layer_specs=[layer] * get_num_layers_to_build(config), layer_norm=norm)
