"""The single models: made, loaded, saved; the larger one, and the mixture of experts made of the specialists (BTX)."""

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging

from examples.miniature.settings import COMMON_TEMPLATE, Settings
from examples.quickstart.samples import DOMAINS
from examples.quickstart.tokenizer import SHARED_VOCABULARY
from examples.quickstart.train_specialists import Shape, specialist_config
from megafuser.runtime.atomic import sync_tree

EXPERTS_PER_TOKEN = 2


def load(directory: Path) -> tuple[Any, PreTrainedTokenizerBase]:
    """A Hugging Face directory's model in float32 and its tokenizer."""
    logging.disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    return model, AutoTokenizer.from_pretrained(directory)


def save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, facts: dict[str, Any], target: Path) -> None:
    """Saves a Hugging Face directory with training.json in it, by rename."""
    logging.disable_progress_bar()
    temporary = target.with_name(f".{target.name}.tmp-{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    model.save_pretrained(temporary)
    tokenizer.save_pretrained(temporary)
    facts = {"parameters": parameter_count(model), **facts}
    (temporary / "training.json").write_text(json.dumps(facts, indent=2) + "\n", "utf-8")
    sync_tree(temporary)  # what has its name is whole, after a power cut too
    temporary.rename(target)


def parameter_count(model: torch.nn.Module) -> int:
    """All parameters."""
    return sum(parameter.numel() for parameter in model.parameters())


def gate_parameters(settings: Settings) -> int:
    """Of the fused model's gate: two layers with biases."""
    return (settings.shape.hidden_size + 2) * settings.gate_hidden_size + 1


def larger_model(settings: Settings, total: int) -> LlamaForCausalLM:
    """One model with `total` parameters: as deep as a specialist, wider, with a specialist's proportions.

    Args:
        settings: the specialists' shape.
        total: parameters of the fused model.
    """
    own = settings.shape
    head = own.hidden_size // own.heads
    ratio = own.intermediate_size / own.hidden_size

    def intermediate(hidden: int) -> int:
        embeddings = 2 * SHARED_VOCABULARY * hidden + hidden
        layer = (total - embeddings) / own.layers - 4 * hidden * hidden - 2 * hidden
        return round(layer / (3 * hidden))

    widths = [head * heads for heads in range(own.heads, 100) if intermediate(head * heads) > 0]
    hidden = min(widths, key=lambda width: abs(intermediate(width) / width - ratio))
    shape = Shape(hidden, intermediate(hidden), own.layers, hidden // head)
    return LlamaForCausalLM(specialist_config(COMMON_TEMPLATE, SHARED_VOCABULARY, shape))


def btx_model(specialists: Sequence[LlamaForCausalLM]) -> MixtralForCausalLM:
    """A Mixtral of the specialists, as in Branch-Train-MiX: their FFNs are the experts, all else is averaged.

    The router is new. Of differing vocabularies the rows that all have are kept. rope_theta is the first specialist's,
    since a model has one.
    """
    first = specialists[0].config
    config = MixtralConfig(
        vocab_size=min(own.config.vocab_size for own in specialists),
        hidden_size=first.hidden_size,
        intermediate_size=first.intermediate_size,
        num_hidden_layers=first.num_hidden_layers,
        num_attention_heads=first.num_attention_heads,
        num_key_value_heads=first.num_key_value_heads or first.num_attention_heads,
        max_position_embeddings=first.max_position_embeddings,
        rms_norm_eps=first.rms_norm_eps,
        rope_parameters=dict(first.rope_parameters or {}),
        num_local_experts=len(specialists),
        num_experts_per_tok=EXPERTS_PER_TOKEN,
        tie_word_embeddings=False,
        bos_token_id=first.bos_token_id,
        eos_token_id=first.eos_token_id,
    )
    model = MixtralForCausalLM(config)
    weights = [own.state_dict() for own in specialists]
    mixed = model.state_dict()
    with torch.no_grad():
        for name, tensor in mixed.items():
            prefix, _, last = name.rpartition(".mlp.")
            if last == "experts.gate_up_proj":
                for expert, own in enumerate(weights):
                    parts = [own[f"{prefix}.mlp.{part}_proj.weight"] for part in ("gate", "up")]
                    tensor[expert].copy_(torch.cat(parts))
            elif last == "experts.down_proj":
                for expert, own in enumerate(weights):
                    tensor[expert].copy_(own[f"{prefix}.mlp.down_proj.weight"])
            elif last != "gate.weight":
                tensor.copy_(torch.stack([own[name][: tensor.shape[0]] for own in weights]).mean(0))
    return model


def load_specialists(folder: Path) -> tuple[list[Any], list[PreTrainedTokenizerBase]]:
    """The specialists of a folder, in the order of the domains."""
    pairs = [load(folder / domain) for domain in DOMAINS]
    return [model for model, _ in pairs], [tokenizer for _, tokenizer in pairs]
