"""The proof of a conversion: fp32 logits of the converted specialist against those of Hugging Face's own model."""

from collections.abc import Iterator
from pathlib import Path

import torch

from megafuser.checkpoint.index import stored_shapes
from megafuser.checkpoint.loading import load_weights_into
from megafuser.config.compute import ParallelConfig, PrecisionConfig
from megafuser.specialist.build import Specialist, build_specialist
from megafuser.specialist.card import ArchitectureCard
from megafuser.specialist.core_attention import packed_segments
from megafuser.specialist.vocabulary import padded_vocab_size

# In tokens: one alone, odd lengths, and some that are long enough for a wrong θ to show clearly.
_LENGTHS = (1, 7, 66, 131)


@torch.no_grad()
def largest_logit_difference(
    hf: Path, card: ArchitectureCard, weights: Path, *, prefix: str = "", rounded_to: torch.dtype | None = None
) -> float:
    """Runs both models in fp32 on the same fixed prompts; a single-process group on the CPU must be there.

    Args:
        hf: the Hugging Face directory; its weights are read, and no code of its own is run.
        card: the architecture.
        weights: the distributed checkpoint.
        prefix: of the specialist's keys in it.
        rounded_to: dtype that one side was rounded to; the other is rounded alike.

    Returns:
        The largest absolute difference of any logit; NaN if one is not a number.
    """
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    reference = AutoModelForCausalLM.from_pretrained(
        hf, dtype=torch.float32, trust_remote_code=False, local_files_only=True
    ).eval()
    specialist = build_specialist(
        card,
        parallel=ParallelConfig(),
        precision=PrecisionConfig(dtype="fp32"),
        backend="torch",
        padded_vocabulary=padded_vocab_size(max(card.vocab_size, _vocabulary_rows(weights, prefix)), 1),
    ).eval()
    load_weights_into(specialist, weights, prefix)
    if rounded_to is not None:
        for parameter in (*reference.parameters(), *specialist.parameters()):
            parameter.copy_(parameter.to(rounded_to))
    differences = [
        (specialist_logits(specialist, ids, card.vocab_size) - reference(ids[None]).logits[0].float()).abs().max()
        for ids in _prompts(card)
    ]
    return float(torch.stack(differences).max())


def specialist_logits(specialist: Specialist, ids: torch.Tensor, vocab_size: int) -> torch.Tensor:
    """Logits of one sequence by a specialist that is on one rank: [S] ids → [S, vocab_size]."""
    length = len(ids)
    bounds = torch.tensor([0, length], dtype=torch.int32)
    packed = packed_segments(bounds, max_seqlen=length, segments=1)
    hidden = specialist(ids[None], torch.arange(length)[None], None, packed_seq_params=packed)[:, 0]
    logits: torch.Tensor = hidden @ specialist.head_weight()[:vocab_size].T
    return logits


def _vocabulary_rows(weights: Path, prefix: str) -> int:
    """Rows of the stored embedding: in a fused checkpoint all specialists have as many as the largest."""
    return stored_shapes(weights)[f"{prefix}embedding.word_embeddings.weight"][0]


def _prompts(card: ArchitectureCard) -> Iterator[torch.Tensor]:
    """The same token ids for every run, of each length that the model allows."""
    generator = torch.Generator().manual_seed(0)
    for length in _LENGTHS:
        yield torch.randint(card.vocab_size, (min(length, card.max_position_embeddings),), generator=generator)
