"""Which modules a specialist's layers are made of. Both backends give the same checkpoint keys.

Their sizes and number formats are `specialist.transformer_config`.
"""

from megatron.core.models.gpt.gpt_layer_specs import (
    get_gpt_layer_local_spec,
    get_gpt_layer_with_transformer_engine_spec,
)
from megatron.core.transformer import TransformerConfig
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules, get_num_layers_to_build

from megafuser.specialist.activation import GatedSiLU
from megafuser.specialist.card import ArchitectureCard
from megafuser.specialist.core_attention import SegmentAttention
from megafuser.specialist.inference_linear import predicting
from megafuser.specialist.norm import RMSNorm
from megafuser.specialist.self_attention import PackedSelfAttention, SelfAttentionWithOwnBiases


def block_spec(
    card: ArchitectureCard,
    config: TransformerConfig,
    backend: str,
    vp_stage: int | None = None,
    *,
    cached: bool = False,
) -> TransformerBlockSubmodules:
    """The transformer block's spec for a chunk of the pipeline.

    Args:
        card: the specialist's architecture.
        config: its configuration.
        backend: `transformer_engine` (fused kernels, FP8, packed THD attention) or `torch`.
        vp_stage: which of this rank's chunks, where it has several.
        cached: the model only predicts, and attention finds keys in a cache: PyTorch's then, with either backend's
            other layers.
    """
    if backend == "transformer_engine":
        from megatron.core.extensions.transformer_engine import TENorm

        layer, norm = get_gpt_layer_with_transformer_engine_spec(qk_layernorm=card.qk_norm), TENorm
        attention = layer.submodules.self_attention
        attention.module = PackedSelfAttention if cached else SelfAttentionWithOwnBiases
        if cached:
            attention.submodules.core_attention = SegmentAttention
    else:
        layer, norm = get_gpt_layer_local_spec(normalization="RMSNorm", qk_layernorm=card.qk_norm), RMSNorm
        layer.submodules.input_layernorm = layer.submodules.pre_mlp_layernorm = RMSNorm
        attention = layer.submodules.self_attention
        attention.module = PackedSelfAttention
        attention.submodules.core_attention = SegmentAttention
        layer.submodules.mlp.submodules.activation_func = GatedSiLU
        if card.qk_norm:
            attention.submodules.q_layernorm = attention.submodules.k_layernorm = RMSNorm
        if cached:
            for linears in (attention.submodules, layer.submodules.mlp.submodules):
                for name, module in vars(linears).items():
                    setattr(linears, name, predicting(module))
    attention.params |= {"qkv_bias": card.qkv_bias, "output_bias": card.attention_output_bias}
    return TransformerBlockSubmodules(layer_specs=[layer] * get_num_layers_to_build(config, vp_stage), layer_norm=norm)
