"""What a model family must say: how its config.json is to be read, and which of its weights make which of ours.

Keys on the megatron-core side are those of `GPTModel.sharded_state_dict()`: all layers share one key, and norms in
front of a linear layer stand under that layer (as Transformer Engine fuses them), whatever the backend. The families
themselves are in `families.known`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from megafuser.errors import UserError
from megafuser.families.weight_mapping import GatedMlp, Plain, QueryKeyValue, VocabularyRows, WeightMapping

HF = "model.layers.{layer}."
MCORE = "decoder.layers."
WIDTH = (("hidden_size",),)

EMBEDDING = VocabularyRows("embedding.word_embeddings.weight", ("model.embed_tokens.weight",))
OUTPUT_HEAD = VocabularyRows("output_layer.weight", ("lm_head.weight",))
"""Not stored where the head is the embedding."""
BUFFERS = ("model.rotary_emb.inv_freq", HF + "self_attn.rotary_emb.inv_freq")
"""Source keys that hold no weights, as old exports carry them."""

_QKV = tuple(HF + f"self_attn.{name}_proj" for name in "qkv")
_GATE_UP = tuple(HF + f"mlp.{name}_proj" for name in ("gate", "up"))

QUERY_KEY_VALUE = QueryKeyValue(MCORE + "self_attention.linear_qkv.weight", tuple(name + ".weight" for name in _QKV))
GATE_AND_UP = GatedMlp(MCORE + "mlp.linear_fc1.weight", tuple(name + ".weight" for name in _GATE_UP))
# Weights that only some families have, where the card's flag says so.
QUERY_KEY_VALUE_BIAS = QueryKeyValue(
    MCORE + "self_attention.linear_qkv.bias", tuple(name + ".bias" for name in _QKV), when="qkv_bias", columns=()
)
ATTENTION_OUTPUT_BIAS = Plain(
    MCORE + "self_attention.linear_proj.bias",
    (HF + "self_attn.o_proj.bias",),
    when="attention_output_bias",
    axes=WIDTH,
)
MLP_BIASES = (
    GatedMlp(MCORE + "mlp.linear_fc1.bias", tuple(name + ".bias" for name in _GATE_UP), when="mlp_bias", columns=()),
    Plain(MCORE + "mlp.linear_fc2.bias", (HF + "mlp.down_proj.bias",), when="mlp_bias", axes=WIDTH),
)
QK_NORMS = tuple(
    Plain(
        MCORE + f"self_attention.{name}_layernorm.weight",
        (HF + f"self_attn.{name}_norm.weight",),
        when="qk_norm",
        axes=(("kv_channels",),),
    )
    for name in "qk"
)


def decoder_weights(
    *more: WeightMapping, query_key_value: WeightMapping = QUERY_KEY_VALUE, gate_and_up: WeightMapping = GATE_AND_UP
) -> tuple[WeightMapping, ...]:
    """The usual matrices and norms of a decoder with a gated MLP, and `more`.

    Args:
        more: biases and norms that only some have.
        query_key_value: how queries, keys and values are stored.
        gate_and_up: how the MLP's first matrices are stored.
    """
    return (
        EMBEDDING,
        Plain(MCORE + "self_attention.linear_qkv.layer_norm_weight", (HF + "input_layernorm.weight",), axes=WIDTH),
        query_key_value,
        Plain(
            MCORE + "self_attention.linear_proj.weight",
            (HF + "self_attn.o_proj.weight",),
            axes=(("hidden_size",), ("num_attention_heads", "kv_channels")),
        ),
        Plain(MCORE + "mlp.linear_fc1.layer_norm_weight", (HF + "post_attention_layernorm.weight",), axes=WIDTH),
        gate_and_up,
        Plain(
            MCORE + "mlp.linear_fc2.weight",
            (HF + "mlp.down_proj.weight",),
            axes=(("hidden_size",), ("ffn_hidden_size",)),
        ),
        Plain("decoder.final_layernorm.weight", ("model.norm.weight",), axes=WIDTH),
        OUTPUT_HEAD,
        *more,
    )


def slides_with_a_window(full: Any) -> bool:
    """Whether every layer's attention slides: where the configuration names a window."""
    return full.sliding_window is not None


def slides_by_layer(full: Any) -> bool:
    """Whether any layer's attention slides, of those that `layer_types` lists.

    Raises:
        UserError: a layer is of yet another kind.
    """
    kinds = set(getattr(full, "layer_types", None) or ())
    if other := sorted(kinds - {"full_attention", "sliding_attention"}):
        raise UserError(f"config.json: layer_types {other[0]!r} is not supported; supported: full_attention")
    return "sliding_attention" in kinds


@dataclass(frozen=True)
class Flags:
    """What an architecture card says of a family's layers; see `megafuser.specialist.card`."""

    qkv_bias: bool = False
    attention_output_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False


@dataclass(frozen=True)
class Family:
    """A model family.

    Attributes:
        name: transformers' `model_type`.
        architecture: its class for causal language models there.
        mappings: every weight, `EMBEDDING` and `OUTPUT_HEAD` among them.
        flags: from transformers' complete configuration to the card's flags.
        slides: whether, by that configuration, attention of any layer is over a window and not the whole context.
        own_head_width: whether a head's width has a default of its own, and need not be an even share of the hidden
            size where the configuration leaves it out.
    """

    name: str
    architecture: str
    mappings: tuple[WeightMapping, ...]
    flags: Callable[[Any], Flags] = lambda _: Flags()
    slides: Callable[[Any], bool] = lambda _: False
    own_head_width: bool = False
