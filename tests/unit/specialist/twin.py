"""A specialist beside the Hugging Face model whose weights it was given, by hand: the same before and after a step."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from megafuser.config.compute import ParallelConfig, PrecisionConfig
from megafuser.families.config_json import card_from_hf_config
from megafuser.runtime.distributed import single_process_cpu
from megafuser.specialist.build import Specialist, build_specialist
from megafuser.specialist.card import ArchitectureCard
from megafuser.specialist.core_attention import packed_segments
from tests.tiny_models import random_model

VOCABULARY, PADDED = 101, 128
LOGITS_TOLERANCE = 1e-4
# enough for one step to move the logits a hundred times more than the tolerance
LEARNING_RATE = 0.02


@dataclass
class Twin:
    """Both models and the card that one was made from the other by."""

    hf: PreTrainedModel
    specialist: Specialist
    card: ArchitectureCard


@contextmanager
def twin(family: str, **changes: Any) -> Iterator[Twin]:
    """Makes both, with two layers; `changes` are of the Hugging Face configuration."""
    hf = random_model(family, VOCABULARY, seed=3, **{"num_hidden_layers": 2} | changes)
    card = card_from_hf_config(hf.config.to_dict())
    with single_process_cpu():
        specialist = build_specialist(
            card, parallel=ParallelConfig(), precision=PrecisionConfig(dtype="fp32"), backend="torch"
        )
        weights = by_hand(hf)
        assert {name: value.shape for name, value in weights.items()} == {
            name: parameter.shape for name, parameter in specialist.named_parameters()
        }
        for name, parameter in specialist.named_parameters():
            parameter.data.copy_(weights[name])
        yield Twin(hf, specialist, card)


def by_hand(hf: PreTrainedModel) -> dict[str, torch.Tensor]:
    """What each parameter of the specialist must be, a head at a time."""
    state = dict(hf.named_parameters())
    config = hf.config
    heads, groups = config.num_attention_heads, config.num_key_value_heads
    padding = torch.zeros(PADDED - VOCABULARY, config.hidden_size)
    made = {
        "embedding.word_embeddings.weight": torch.cat([state["model.embed_tokens.weight"], padding]),
        "decoder.final_layernorm.weight": state["model.norm.weight"],
    }
    if not config.tie_word_embeddings:
        made["output_layer.weight"] = torch.cat([state["lm_head.weight"], padding])
    for layer in range(config.num_hidden_layers):
        source, target = f"model.layers.{layer}.", f"decoder.layers.{layer}."
        plain = {
            "self_attn.q_norm.weight": "self_attention.q_layernorm.weight",
            "self_attn.k_norm.weight": "self_attention.k_layernorm.weight",
            "self_attn.o_proj.weight": "self_attention.linear_proj.weight",
            "self_attn.o_proj.bias": "self_attention.linear_proj.bias",
            "mlp.down_proj.weight": "mlp.linear_fc2.weight",
            "mlp.down_proj.bias": "mlp.linear_fc2.bias",
            "input_layernorm.weight": "input_layernorm.weight",
            "post_attention_layernorm.weight": "pre_mlp_layernorm.weight",
        }
        made |= {target + name: state[source + old] for old, name in plain.items() if source + old in state}
        for kind in ("weight", "bias"):
            if f"{source}self_attn.q_proj.{kind}" in state:
                q, k, v = (state[f"{source}self_attn.{name}_proj.{kind}"] for name in "qkv")
                width = len(q) // heads
                rows = []
                for group in range(groups):
                    own = range(group * heads // groups, (group + 1) * heads // groups)
                    rows += [q[head * width : (head + 1) * width] for head in own]
                    rows += [part[group * width : (group + 1) * width] for part in (k, v)]
                made[f"{target}self_attention.linear_qkv.{kind}"] = torch.cat(rows)
            if f"{source}mlp.gate_proj.{kind}" in state:
                pair = [state[f"{source}mlp.{name}_proj.{kind}"] for name in ("gate", "up")]
                made[f"{target}mlp.linear_fc1.{kind}"] = torch.cat(pair)
    return made


def specialist_logits(specialist: Specialist, samples: list[torch.Tensor]) -> list[torch.Tensor]:
    """Logits of samples that are packed into one row with pads at its end, [length, V] each."""
    lengths = [len(sample) for sample in samples]
    ids = torch.cat([*samples, torch.zeros(3, dtype=torch.int64)])
    bounds = torch.tensor([0, *lengths, 3]).cumsum(0).to(torch.int32)
    packed = packed_segments(bounds, max_seqlen=max(lengths), segments=len(samples))
    # packed rows get their positions from the bounds
    hidden = specialist(ids[None], torch.zeros_like(ids)[None], None, packed_seq_params=packed)[:, 0]
    logits = hidden @ specialist.head_weight()[:VOCABULARY].T
    return list(logits.split([*lengths, 3]))[:-1]


def next_token_loss(logits: list[torch.Tensor], samples: list[torch.Tensor]) -> torch.Tensor:
    """Mean cross-entropy of every next token."""
    pairs = zip(logits, samples, strict=True)
    parts = [torch.nn.functional.cross_entropy(scores[:-1], ids[1:], reduction="sum") for scores, ids in pairs]
    return torch.stack(parts).sum() / sum(len(ids) - 1 for ids in samples)


def assert_same_before_and_after_a_step(models: Twin, lengths: tuple[int, ...] = (9, 37)) -> None:
    """Logits, then a step of gradient descent on both sides, then logits and every parameter."""
    generator = torch.Generator().manual_seed(5)
    samples = [torch.randint(VOCABULARY, (length,), generator=generator) for length in lengths]
    before = []
    for after_the_step in (False, True):
        ours = specialist_logits(models.specialist, samples)
        theirs = [models.hf(ids[None]).logits[0] for ids in samples]
        for mine, reference in zip(ours, theirs, strict=True):
            torch.testing.assert_close(mine, reference, rtol=0, atol=LOGITS_TOLERANCE)
        if after_the_step:
            moved = [(now - then).abs().max() for now, then in zip(theirs, before, strict=True)]
            assert min(moved) > 100 * LOGITS_TOLERANCE
            return
        before = theirs
        for model, logits in ((models.specialist, ours), (models.hf, theirs)):
            next_token_loss(logits, samples).backward()
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter -= LEARNING_RATE * parameter.grad
        expected = by_hand(models.hf)
        for name, parameter in models.specialist.named_parameters():
            torch.testing.assert_close(parameter, expected[name], rtol=0, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")
