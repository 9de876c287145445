"""The proof of a conversion: fp32 logits of the converted specialist against those of Hugging Face's own model.

Weights are compared bit by bit in `conversion.verification`.
"""

from pathlib import Path

import torch

from megafuser.checkpoint.index import stored_shapes
from megafuser.checkpoint.loading import load_weights_into
from megafuser.config.compute import ParallelConfig, PrecisionConfig
from megafuser.conversion.logit_difference import LogitDifference, logit_difference
from megafuser.families.family import EMBEDDING
from megafuser.specialist.build import Specialist, build_specialist
from megafuser.specialist.card import ArchitectureCard
from megafuser.specialist.core_attention import packed_segments
from megafuser.specialist.padded_vocabulary import padded_vocab_size

# In tokens: one alone, odd lengths, and some that are long enough for a wrong θ to show clearly.
_LENGTHS = (1, 7, 66, 131)


@torch.no_grad()
def compare_with_hugging_face(
    hf: Path, card: ArchitectureCard, weights: Path, *, prefix: str = "", rounded_to: torch.dtype | None = None
) -> LogitDifference:
    """Runs both models in fp32 on the same fixed prompts; a single-process group on the CPU must be there.

    Args:
        hf: the Hugging Face directory; its weights are read, and no code of its own is run.
        card: the architecture.
        weights: the distributed checkpoint.
        prefix: of the specialist's keys in it.
        rounded_to: dtype that one side was rounded to; the other is rounded alike.

    Returns:
        How far their logits are apart.
    """
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    reference = AutoModelForCausalLM.from_pretrained(
        hf, dtype=torch.float32, trust_remote_code=False, local_files_only=True
    ).eval()
    specialist = load_in_fp32(card, weights, prefix, rounded_to)
    _round(reference, rounded_to)
    return logit_difference(
        (reference(ids[None]).logits[0].float(), specialist_logits(specialist, ids, card.vocab_size))
        for ids in fixed_prompts(card.vocab_size, card.max_position_embeddings)
    )


@torch.no_grad()
def load_in_fp32(card: ArchitectureCard, weights: Path, prefix: str, rounded_to: torch.dtype | None) -> Specialist:
    """Megatron-core's model of a specialist; a single-process group on the CPU must be there.

    Args:
        card: the architecture.
        weights: the distributed checkpoint.
        prefix: of the specialist's keys in it.
        rounded_to: dtype that its weights are rounded to; None for as they are.
    """
    # in a fused checkpoint all specialists have as many rows as the largest
    rows = stored_shapes(weights)[prefix + EMBEDDING.mcore][0]
    specialist = build_specialist(
        card,
        parallel=ParallelConfig(),
        precision=PrecisionConfig(dtype="fp32"),
        backend="torch",
        padded_vocabulary=padded_vocab_size(max(card.vocab_size, rows), 1),
    )
    specialist.eval()
    load_weights_into(specialist, weights, prefix)
    _round(specialist, rounded_to)
    return specialist


def fixed_prompts(vocab_size: int, longest: int) -> list[torch.Tensor]:
    """The same token ids for every run, of a few lengths: [S] each.

    Args:
        vocab_size: the ids are below it.
        longest: none has more tokens.
    """
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(vocab_size, (min(length, longest),), generator=generator) for length in _LENGTHS]


def hidden_states(specialist: Specialist, ids: torch.Tensor) -> torch.Tensor:
    """Last hidden states of one sequence by a specialist that is on one rank: [S] ids → [S, h]."""
    length = len(ids)
    bounds = torch.tensor([0, length], dtype=torch.int32)
    packed = packed_segments(bounds, max_seqlen=length, segments=1)
    hidden: torch.Tensor = specialist(ids[None], torch.arange(length)[None], None, packed_seq_params=packed)[:, 0]
    return hidden


def specialist_logits(specialist: Specialist, ids: torch.Tensor, vocab_size: int) -> torch.Tensor:
    """Logits of one sequence by a specialist that is on one rank: [S] ids → [S, vocab_size]."""
    return hidden_states(specialist, ids) @ specialist.head_weight()[:vocab_size].T


def _round(model: torch.nn.Module, dtype: torch.dtype | None) -> None:
    if dtype is not None:
        for parameter in model.parameters():
            parameter.copy_(parameter.to(dtype))
