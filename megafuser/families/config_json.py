"""From a Hugging Face `config.json` to an architecture card: exactly, or refused by name.

What a config.json leaves out differs by family, and where RoPE's parameters stand differs by version (`rope_parameters`
since transformers 5, before that `rope_theta` and `rope_scaling`): transformers' own configuration classes fill it in.
They accept much that no model could run with, so values are checked here first. Whether the weights are those of the
card is found by `conversion.tensor_accounting`.
"""

import copy
import dataclasses
import sys
from collections.abc import Mapping
from typing import Any

from megafuser.errors import UserError, in_one_line
from megafuser.families.family import Family
from megafuser.families.known import FAMILIES
from megafuser.runtime.logs import quiet_transformers
from megafuser.specialist.card import ArchitectureCard, RopeScaling

_REQUIRED = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
_INTEGERS = (*_REQUIRED, "num_key_value_heads", "head_dim", "max_position_embeddings", "sliding_window")
_NUMBERS = ("rms_norm_eps", "rope_theta", "partial_rotary_factor")
_BOOLEANS = ("tie_word_embeddings", "attention_bias", "mlp_bias", "use_sliding_window")
# null stands for a default that the other sizes give
_MAY_BE_NULL = ("num_key_value_heads", "head_dim", "sliding_window")
_LLAMA3 = ("low_freq_factor", "high_freq_factor")
# Lists with an entry for each layer are made before the weights are looked at.
_MOST_LAYERS = 10_000
_ROPE_KINDS = ("default", "linear", "llama3")


def card_from_hf_config(config: Mapping[str, Any]) -> ArchitectureCard:
    """Makes the card of a Hugging Face configuration.

    Args:
        config: the parsed `config.json`.

    Raises:
        UserError: an unsupported architecture, a value that makes no sense, or a setting that this version cannot
            reproduce exactly.
    """
    family = _family(config)
    _check_values(family, config)
    _refuse_settings(config)
    full = _completed(family, config)
    if full.hidden_act != "silu":
        raise UserError(f"config.json: hidden_act {full.hidden_act!r} is not supported; supported: silu")
    _refuse_sliding_windows(family, full)
    heads, groups = full.num_attention_heads, full.num_key_value_heads
    if heads % groups:
        raise UserError(
            f"config.json: num_attention_heads {heads} is not a multiple of num_key_value_heads {groups}; correct it"
        )
    return ArchitectureCard(
        family=family.name,
        num_layers=full.num_hidden_layers,
        hidden_size=full.hidden_size,
        ffn_hidden_size=full.intermediate_size,
        num_attention_heads=heads,
        num_query_groups=groups,
        kv_channels=_head_width(full),
        vocab_size=full.vocab_size,
        max_position_embeddings=full.max_position_embeddings,
        rotary_base=float(full.rope_parameters["rope_theta"]),
        norm_epsilon=float(full.rms_norm_eps),
        tie_word_embeddings=full.tie_word_embeddings,
        rope_scaling=_rope_scaling(full.rope_parameters),
        **dataclasses.asdict(family.flags(full)),
    )


def _family(config: Mapping[str, Any]) -> Family:
    """The family, where it is one of ours."""
    architectures = config.get("architectures") or []
    if not isinstance(architectures, list) or not all(isinstance(name, str) for name in architectures):
        raise UserError(f"config.json: architectures must be a list of names, not {architectures!r}")
    name = config.get("model_type")
    named = ", ".join(architectures) or f"model_type {name!r}"
    known = {family.architecture: family for family in FAMILIES.values()}
    supported = ", ".join(known)
    if any(config.get(key) for key in ("num_experts", "num_local_experts")) or "Moe" in named or "Mixtral" in named:
        raise UserError(f"config.json: {named} is a mixture-of-experts, which is not supported; supported: {supported}")
    family = FAMILIES.get(name) if isinstance(name, str) else None
    if family is None and architectures and set(architectures) <= set(known):
        raise UserError(f"config.json: model_type {name!r} does not go with {named}; one of them is wrong, correct it")
    if family is None or architectures not in ([], [family.architecture]):
        raise UserError(f"config.json: architecture {named} is not supported; supported: {supported}")
    return family


def _check_values(family: Family, config: Mapping[str, Any]) -> None:
    """Types and ranges of every key that counts."""
    for key in _REQUIRED:
        if key not in config:
            raise UserError(f"config.json: {key} must be a positive integer, but is missing")
    for key in (key for key in _INTEGERS if key in config):
        if not (_is_positive_integer(config[key]) or (config[key] is None and key in _MAY_BE_NULL)):
            raise UserError(f"config.json: {key} must be a positive integer, not {config[key]!r}")
    for key in (key for key in _NUMBERS if key in config):
        if not _is_positive_number(config[key]):
            raise UserError(f"config.json: {key} must be a positive number, not {config[key]!r}")
    for key in (key for key in _BOOLEANS if key in config):
        if not isinstance(config[key], bool):
            raise UserError(f"config.json: {key} must be true or false, not {config[key]!r}")
    if (layers := config["num_hidden_layers"]) > _MOST_LAYERS:
        raise UserError(f"config.json: num_hidden_layers {layers} is more than any model has; correct it")
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    if hidden % heads and not config.get("head_dim") and not family.own_head_width:
        raise UserError(f"config.json: hidden_size {hidden} is not a multiple of its {heads} heads; correct it")
    for key in ("rope_scaling", "rope_parameters"):
        if not isinstance(config.get(key), dict | None):
            raise UserError(f"config.json: {key} must be an object, not {config[key]!r}")
        _check_rope(key, config.get(key) or {})


def _check_rope(key: str, rope: Mapping[str, Any]) -> None:
    """One object of RoPE parameters, as config.json has it."""
    for name, value in rope.items():
        if isinstance(value, dict):
            raise UserError(
                f"config.json: {key}.{name}: RoPE that differs from layer to layer is not supported; supported: one "
                "for all"
            )
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in _ROPE_KINDS:
        raise UserError(f"config.json: {key}: RoPE scaling {kind!r} is not supported; supported: {_listed()}")
    numbers = {"linear": ("factor",), "llama3": ("factor", *_LLAMA3)}.get(kind, ())
    for name in numbers + tuple(name for name in ("rope_theta", "partial_rotary_factor") if name in rope):
        if not _is_positive_number(rope.get(name)):
            found = f"not {rope[name]!r}" if name in rope else "but is missing"
            raise UserError(f"config.json: {key}.{name} must be a positive number, {found}")
    # transformers would take the new context for a missing original one, and scale by the wrong frequencies
    if kind == "llama3" and not _is_positive_integer(rope.get("original_max_position_embeddings")):
        raise UserError(
            f"config.json: {key}.original_max_position_embeddings must be a positive integer, not "
            f"{rope.get('original_max_position_embeddings')!r}"
        )
    if kind == "llama3" and rope["high_freq_factor"] <= rope["low_freq_factor"]:
        raise UserError(f"config.json: {key}.high_freq_factor must be greater than low_freq_factor")
    if rope.get("attention_factor", 1.0) != 1.0:
        raise UserError(
            f"config.json: {key}.attention_factor {rope['attention_factor']!r} is not supported; supported: 1"
        )


def _refuse_settings(config: Mapping[str, Any]) -> None:
    """What transformers reads for every family, and what would make another model of it."""
    if (causal := config.get("is_causal", True)) is not True:
        raise UserError(f"config.json: is_causal {causal!r} is not supported; supported: true")
    if config.get("per_layer_config"):
        raise UserError(
            "config.json: per_layer_config: layers that differ from one another are not supported; supported: all alike"
        )


def _completed(family: Family, config: Mapping[str, Any]) -> Any:
    """transformers' configuration object, defaults filled in."""
    # imported here: transformers takes seconds, which commands that read no config.json need not spend
    from huggingface_hub.errors import StrictDataclassError
    from transformers import CONFIG_MAPPING

    try:
        # its warnings are about what is checked here, and a refusal is one line
        with quiet_transformers():
            # a deep copy, since the classes move RoPE's parameters about in place
            return CONFIG_MAPPING[family.name].from_dict(copy.deepcopy(dict(config)))
    except (StrictDataclassError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"config.json: transformers cannot read it ({in_one_line(error)}); correct it") from error


def _refuse_sliding_windows(family: Family, full: Any) -> None:
    """Attention must be over the whole context in every layer."""
    window, longest = getattr(full, "sliding_window", None), full.max_position_embeddings
    if family.slides(full) and (window is None or window < longest):
        raise UserError(
            f"config.json: sliding_window {window} (of max_position_embeddings {longest}) is not supported; supported: "
            "none, or one that is not shorter"
        )


def _head_width(full: Any) -> int:
    """Width of a head: as given, or an even share of the hidden size."""
    # Qwen 2's class does not declare head_dim, but its model uses one that is there
    width: int = getattr(full, "head_dim", None) or full.hidden_size // full.num_attention_heads
    if width % 2:
        raise UserError(f"config.json: head_dim {width} is odd, and RoPE turns pairs; correct it")
    return width


def _rope_scaling(rope: Mapping[str, Any]) -> RopeScaling | None:
    """The scaling in transformers' form, which `_check_rope` has seen before transformers completed it."""
    partial = rope.get("partial_rotary_factor", 1.0)
    if partial != 1.0:
        raise UserError(f"config.json: partial_rotary_factor {partial} is not supported; supported: 1")
    kind = rope["rope_type"]
    if kind == "default":
        return None
    if kind == "linear":
        return RopeScaling("linear", float(rope["factor"]))
    return RopeScaling(
        "llama3",
        float(rope["factor"]),
        float(rope["low_freq_factor"]),
        float(rope["high_freq_factor"]),
        rope["original_max_position_embeddings"],
    )


def _is_positive_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _is_positive_number(value: Any) -> bool:
    """Whether it is a finite number above zero; JSON as Python reads it has NaN, Infinity and integers of any size."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= sys.float_info.max


def _listed() -> str:
    return ", ".join(_ROPE_KINDS)
