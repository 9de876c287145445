"""From a Hugging Face `config.json` to an architecture card: exactly, or refused by name.

Sources: transformers' `LlamaConfig`; RoPE parameters stand under `rope_parameters` since transformers 5, before that
as `rope_theta` and `rope_scaling` at the top level.
"""

from collections.abc import Mapping
from typing import Any

from megafuser.errors import UserError
from megafuser.specialist.card import ArchitectureCard

_REQUIRED = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size")


def card_from_hf_config(config: Mapping[str, Any]) -> ArchitectureCard:
    """Makes the card of a Hugging Face configuration.

    Args:
        config: the parsed `config.json`.

    Raises:
        UserError: an unsupported architecture or a setting that this version cannot reproduce exactly.
    """
    architectures = config.get("architectures") or []
    if config.get("model_type") != "llama" or architectures not in ([], ["LlamaForCausalLM"]):
        named = ", ".join(architectures) or f"model_type {config.get('model_type')!r}"
        raise UserError(f"config.json: architecture {named} is not supported; supported: LlamaForCausalLM")
    for key in _REQUIRED:
        if not isinstance(config.get(key), int) or config[key] < 1:
            raise UserError(f"config.json: {key} must be a positive integer, not {config.get(key)!r}")
    for key in ("attention_bias", "mlp_bias"):
        if config.get(key):
            raise UserError(f"config.json: {key} true is not supported")
    if config.get("hidden_act", "silu") != "silu":
        raise UserError(f"config.json: hidden_act {config['hidden_act']!r} is not supported; supported: silu")
    heads = config["num_attention_heads"]
    head_dim = config.get("head_dim") or config["hidden_size"] // heads
    if not config.get("head_dim") and config["hidden_size"] % heads:
        raise UserError(f"config.json: hidden_size {config['hidden_size']} is no multiple of its {heads} heads")
    groups = config.get("num_key_value_heads") or heads
    if heads % groups:
        raise UserError(f"config.json: num_attention_heads {heads} is no multiple of num_key_value_heads {groups}")
    return ArchitectureCard(
        family="llama",
        num_layers=config["num_hidden_layers"],
        hidden_size=config["hidden_size"],
        ffn_hidden_size=config["intermediate_size"],
        num_attention_heads=heads,
        num_query_groups=groups,
        kv_channels=head_dim,
        vocab_size=config["vocab_size"],
        max_position_embeddings=config.get("max_position_embeddings", 2048),
        rotary_base=_rotary_base(config),
        norm_epsilon=float(config.get("rms_norm_eps", 1e-6)),
        tie_word_embeddings=bool(config.get("tie_word_embeddings", False)),
    )


def _rotary_base(config: Mapping[str, Any]) -> float:
    """θ of plain RoPE; any scaling is refused rather than lost."""
    rope = config.get("rope_parameters") or {}
    scaling = config.get("rope_scaling") or rope
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind != "default":
        raise UserError(f"config.json: RoPE scaling {kind!r} is not supported; supported: default")
    partial = rope.get("partial_rotary_factor", config.get("partial_rotary_factor", 1.0))
    if partial != 1.0:
        raise UserError(f"config.json: partial_rotary_factor {partial} is not supported")
    return float(rope.get("rope_theta", config.get("rope_theta", 10000.0)))
