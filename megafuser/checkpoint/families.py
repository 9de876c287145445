"""Which Hugging Face weights make which megatron-core weight: one declared table per model family.

Keys on the megatron-core side are those of `GPTModel.sharded_state_dict()`: all layers share one key, and norms in
front of a linear layer stand under that layer (as Transformer Engine fuses them), whatever the backend.

A new family is a new table here; a weight of a new shape is a new class in `megafuser.checkpoint.mapping`.
"""

from dataclasses import dataclass

from megafuser.checkpoint.mapping import GatedMlp, Plain, QueryKeyValue, VocabularyRows, WeightMapping


@dataclass(frozen=True)
class Family:
    """A model family's weights.

    Attributes:
        mappings: every weight, the embedding first.
        head: the output head's key on the megatron-core side; not stored where the head is the embedding.
        ignored: source keys that hold no weights, `{layer}` as above: buffers that old exports carry.
    """

    mappings: tuple[WeightMapping, ...]
    head: str
    ignored: tuple[str, ...]


_HF = "model.layers.{layer}."
_MCORE = "decoder.layers."
_WIDTH = (("hidden_size",),)
_QKV = tuple(_HF + f"self_attn.{name}_proj" for name in "qkv")
_GATE_UP = tuple(_HF + f"mlp.{name}_proj" for name in ("gate", "up"))

_MATRICES_AND_NORMS: tuple[WeightMapping, ...] = (
    VocabularyRows("embedding.word_embeddings.weight", ("model.embed_tokens.weight",)),
    Plain(_MCORE + "self_attention.linear_qkv.layer_norm_weight", (_HF + "input_layernorm.weight",), axes=_WIDTH),
    QueryKeyValue(_MCORE + "self_attention.linear_qkv.weight", tuple(name + ".weight" for name in _QKV)),
    Plain(
        _MCORE + "self_attention.linear_proj.weight",
        (_HF + "self_attn.o_proj.weight",),
        axes=(("hidden_size",), ("num_attention_heads", "kv_channels")),
    ),
    Plain(_MCORE + "mlp.linear_fc1.layer_norm_weight", (_HF + "post_attention_layernorm.weight",), axes=_WIDTH),
    GatedMlp(_MCORE + "mlp.linear_fc1.weight", tuple(name + ".weight" for name in _GATE_UP)),
    Plain(
        _MCORE + "mlp.linear_fc2.weight",
        (_HF + "mlp.down_proj.weight",),
        axes=(("hidden_size",), ("ffn_hidden_size",)),
    ),
    Plain("decoder.final_layernorm.weight", ("model.norm.weight",), axes=_WIDTH),
    VocabularyRows("output_layer.weight", ("lm_head.weight",)),
)
_QKV_BIAS = QueryKeyValue(
    _MCORE + "self_attention.linear_qkv.bias", tuple(name + ".bias" for name in _QKV), when="qkv_bias", columns=()
)
_ATTENTION_OUTPUT_BIAS = Plain(
    _MCORE + "self_attention.linear_proj.bias",
    (_HF + "self_attn.o_proj.bias",),
    when="attention_output_bias",
    axes=_WIDTH,
)
_MLP_BIASES = (
    GatedMlp(_MCORE + "mlp.linear_fc1.bias", tuple(name + ".bias" for name in _GATE_UP), when="mlp_bias", columns=()),
    Plain(_MCORE + "mlp.linear_fc2.bias", (_HF + "mlp.down_proj.bias",), when="mlp_bias", axes=_WIDTH),
)
_QK_NORMS = tuple(
    Plain(
        _MCORE + f"self_attention.{name}_layernorm.weight",
        (_HF + f"self_attn.{name}_norm.weight",),
        when="qk_norm",
        axes=(("kv_channels",),),
    )
    for name in "qk"
)


def _family(*more: WeightMapping) -> Family:
    """A table of the usual matrices and norms, and `more`."""
    return Family(
        mappings=(*_MATRICES_AND_NORMS, *more),
        head="output_layer.weight",
        ignored=("model.rotary_emb.inv_freq", _HF + "self_attn.rotary_emb.inv_freq"),
    )


FAMILIES = {
    "llama": _family(_QKV_BIAS, _ATTENTION_OUTPUT_BIAS, *_MLP_BIASES),
    "mistral": _family(),
    "qwen2": _family(_QKV_BIAS),
    "qwen3": _family(_QKV_BIAS, _ATTENTION_OUTPUT_BIAS, *_QK_NORMS),
}
