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
        mappings: every weight.
        head: the output head's key on the megatron-core side; not stored where the head is the embedding.
        ignored: source keys that hold no weights, `{layer}` as above: buffers that old exports carry.
    """

    mappings: tuple[WeightMapping, ...]
    head: str
    ignored: tuple[str, ...]


_LAYER = "model.layers.{layer}."
_WIDTH = (("hidden_size",),)

LLAMA = Family(
    mappings=(
        VocabularyRows("embedding.word_embeddings.weight", ("model.embed_tokens.weight",)),
        Plain(
            "decoder.layers.self_attention.linear_qkv.layer_norm_weight", (_LAYER + "input_layernorm.weight",), _WIDTH
        ),
        QueryKeyValue(
            "decoder.layers.self_attention.linear_qkv.weight",
            tuple(_LAYER + f"self_attn.{name}_proj.weight" for name in "qkv"),
        ),
        Plain(
            "decoder.layers.self_attention.linear_proj.weight",
            (_LAYER + "self_attn.o_proj.weight",),
            (("hidden_size",), ("num_attention_heads", "kv_channels")),
        ),
        Plain("decoder.layers.mlp.linear_fc1.layer_norm_weight", (_LAYER + "post_attention_layernorm.weight",), _WIDTH),
        GatedMlp(
            "decoder.layers.mlp.linear_fc1.weight", (_LAYER + "mlp.gate_proj.weight", _LAYER + "mlp.up_proj.weight")
        ),
        Plain(
            "decoder.layers.mlp.linear_fc2.weight",
            (_LAYER + "mlp.down_proj.weight",),
            (("hidden_size",), ("ffn_hidden_size",)),
        ),
        Plain("decoder.final_layernorm.weight", ("model.norm.weight",), _WIDTH),
        VocabularyRows("output_layer.weight", ("lm_head.weight",)),
    ),
    head="output_layer.weight",
    ignored=("model.rotary_emb.inv_freq", _LAYER + "self_attn.rotary_emb.inv_freq"),
)

FAMILIES = {"llama": LLAMA}
