"""A few samples of each domain, token by token: what the gate did where, for a person to read.

The values come from the last pipeline stage of whichever data-parallel rank has the sample's row; only those tokens
travel to the other ranks. Showing them is `watching.excerpt_markdown`, `watching.gate_pictures` and `report.html`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch.distributed as dist
from megatron.core import parallel_state

from megafuser.data.tokenized import TokenizedDomain
from megafuser.fusion.mixture_loss import MixtureLoss
from megafuser.fusion.row import PackedRow

SAMPLES_PER_DOMAIN = 3
# Longer ones are cut: the page is for reading.
SHOWN_TOKENS = 240
SHOWN_PROMPT_CHARACTERS = 700

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"

Reference = tuple[int, int]


@dataclass(frozen=True)
class TokenValues:
    """What one sample's first response tokens got.

    Attributes:
        fused: [t] loss of the fused model.
        specialists: [t, K] each specialist's own loss.
        weights: [t, K] the gate's weights.
    """

    fused: np.ndarray
    specialists: np.ndarray
    weights: np.ndarray


@dataclass(frozen=True)
class ExcerptTurn:
    """A prompt and the tokens of its response.

    Attributes:
        prompt: as the first specialist sees it.
        pieces: the text of each token; empty for one that ends within a character.
        values: of the same tokens.
    """

    prompt: str
    pieces: list[str]
    values: TokenValues


@dataclass(frozen=True)
class Excerpt:
    """The beginning of one sample.

    Attributes:
        domain: its domain's name.
        sample_id: its identity in the data.
        response_tokens: how many it has in all.
        shown_tokens: how many are here.
        turns: the turns that are here.
    """

    domain: str
    sample_id: str
    response_tokens: int
    shown_tokens: int
    turns: list[ExcerptTurn]


def choose_samples(sizes: Sequence[int], each: int = SAMPLES_PER_DOMAIN) -> list[Reference]:
    """(domain, sample) of `each` samples to show, spread evenly over the first `sizes` samples of each domain."""
    return [
        (domain, int(sample))
        for domain, size in enumerate(sizes)
        for sample in np.unique(np.linspace(0, size - 1, each).round().astype(int))
    ]


class Collector:
    """Picks the chosen samples' tokens out of the rows that pass the last stage."""

    def __init__(self, references: Sequence[Reference], tokens: int = SHOWN_TOKENS) -> None:
        """Looks out for `references`, of each the first `tokens`."""
        self._tokens = tokens
        self._wanted = set(references)
        self._found: dict[Reference, TokenValues] = {}

    def take(self, loss: MixtureLoss, row: PackedRow) -> None:
        """Keeps what belongs to a chosen sample; called with every row, on the last stage."""
        assert loss.specialists is not None, "excerpts need the parts of the loss"
        for index, (domain, sample) in enumerate(row.references.tolist()):
            if (domain, sample) in self._wanted:
                own = (row.samples == index).nonzero().flatten()[: self._tokens]
                self._found[domain, sample] = TokenValues(
                    fused=loss.fused[own].float().cpu().numpy(),
                    specialists=loss.specialists[own].float().cpu().numpy(),
                    weights=loss.weights[own].float().cpu().numpy(),
                )

    def gather(self) -> dict[Reference, TokenValues]:
        """What all ranks found; every rank calls it."""
        own = self._found if parallel_state.get_tensor_model_parallel_rank() == 0 else {}
        found: list[dict[Reference, TokenValues]] = [{} for _ in range(dist.get_world_size())]
        dist.all_gather_object(found, own)
        return {reference: values for part in found for reference, values in part.items()}


def build_excerpts(
    values: dict[Reference, TokenValues], domains: Sequence[TokenizedDomain], tokenizer: Any
) -> list[Excerpt]:
    """Puts texts to the values.

    Args:
        values: as `Collector.gather` gives them.
        domains: the data they were measured on.
        tokenizer: the first specialist's.
    """
    return [_excerpt(domains[domain], sample, own, tokenizer) for (domain, sample), own in sorted(values.items())]


def _excerpt(domain: TokenizedDomain, sample: int, values: TokenValues, tokenizer: Any) -> Excerpt:
    turns: list[ExcerptTurn] = []
    start, shown = 0, len(values.fused)
    for prompt, response in domain.turns(sample, specialist=0):
        if start == shown:
            break
        own = slice(start, min(start + len(response), shown))
        turns.append(
            ExcerptTurn(
                prompt=_prompt(tokenizer, prompt.tolist()),
                pieces=token_pieces(tokenizer, response[: own.stop - own.start].tolist()),
                values=TokenValues(values.fused[own], values.specialists[own], values.weights[own]),
            )
        )
        start = own.stop
    return Excerpt(
        domain=domain.name,
        sample_id=domain.sample_id(sample),
        response_tokens=int(domain.response_lengths[sample]),
        shown_tokens=shown,
        turns=turns,
    )


def _prompt(tokenizer: Any, ids: list[int]) -> str:
    text = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False).strip()
    shown: str = text if len(text) <= SHOWN_PROMPT_CHARACTERS else text[:SHOWN_PROMPT_CHARACTERS] + " …"
    return shown


def token_pieces(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """The text that each token adds; joined, they are the text of all.

    A token alone does not decode to its text (leading blanks go, characters come in several bytes), so prefixes are
    compared: a character appears with the token that completes it.

    Args:
        tokenizer: a Hugging Face tokenizer.
        ids: at most a few hundred.
    """
    prefixes = [list(ids[:end]) for end in range(1, len(ids) + 1)]
    texts = [tokenizer.decode(prefix, clean_up_tokenization_spaces=False) for prefix in prefixes]
    pieces, done = [], ""
    for index, text in enumerate(texts):
        stable = text if index == len(texts) - 1 else text.rstrip(_REPLACEMENT)
        # A decoder may rewrite what came before; then the token's own name is the best that can be shown.
        continues = stable.startswith(done)
        pieces.append(stable[len(done) :] if continues else tokenizer.convert_ids_to_tokens(ids[index]))
        done = stable if continues or len(stable) > len(done) else done
    return pieces
