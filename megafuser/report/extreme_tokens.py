"""The tokens where fusion helps and hurts most, with what stands around them.

A token's difference is the fused model's loss less that of the best specialist of its domain. Which one that is, is
known only after the last row, so each rank keeps a few tokens for each specialist in that role: bounded memory,
whatever the number of samples. Samples that are chosen beforehand, and shown from their beginning, are
`watching.excerpts`.
"""

import heapq
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch.distributed as dist
from megatron.core import parallel_state

from megafuser.data.tokenized import TokenizedDomain
from megafuser.fusion.mixture_loss import MixtureLoss
from megafuser.fusion.row import PackedRow
from megafuser.watching.excerpts import token_pieces

KEPT = 20
BEFORE, AFTER = 24, 8
_PROMPT_CHARACTERS = 160


@dataclass(frozen=True)
class FoundToken:
    """A token and what it got.

    Attributes:
        difference: fused loss less the specialist's, in nats.
        domain: index of its domain.
        sample: index of its sample in the domain.
        token: index among the sample's response tokens.
        fused: loss of the fused model.
        specialists: [K] each specialist's own.
        start: index of the first token that is shown.
        weights: [shown, K] the gate's weights there.
    """

    difference: float
    domain: int
    sample: int
    token: int
    fused: float
    specialists: np.ndarray
    start: int
    weights: np.ndarray


@dataclass(frozen=True)
class ExtremeToken:
    """The same in words.

    Attributes:
        domain: its domain's name.
        sample_id: its sample's identity.
        token: index among the sample's response tokens.
        difference: fused loss less the best specialist's.
        best: that specialist.
        fused: loss of the fused model.
        specialists: each specialist's own loss.
        gate: the gate's weights at the token.
        prompt: the end of the prompt, as the first specialist sees it.
        pieces: texts of the tokens that are shown.
        place: which of them it is.
        weights: [shown, K] the gate's weights.
    """

    domain: str
    sample_id: str
    token: int
    difference: float
    best: str
    fused: float
    specialists: dict[str, float]
    gate: dict[str, float]
    prompt: str
    pieces: list[str]
    place: int
    weights: np.ndarray

    def to_dict(self) -> dict[str, Any]:
        """The fields of `report.json`."""
        return {
            "domain": self.domain,
            "sample": self.sample_id,
            "token": self.token,
            "text": self.pieces[self.place],
            "before": "".join(self.pieces[: self.place]),
            "after": "".join(self.pieces[self.place + 1 :]),
            "prompt": self.prompt,
            "difference": self.difference,
            "best_specialist": self.best,
            "cross_entropy": {"fused": self.fused, "specialists": self.specialists},
            "gate": self.gate,
        }


@dataclass(frozen=True)
class ExtremeTokens:
    """Of all domains.

    Attributes:
        helped: those that the fused model gives more probability than the best specialist, the most helped first.
        hurt: those that it gives less, the most hurt first.
    """

    helped: list[ExtremeToken] = field(default_factory=list)
    hurt: list[ExtremeToken] = field(default_factory=list)


# (domain, specialist in the role of the best, sign of the difference)
_Key = tuple[int, int, int]


class ExtremeCollector:
    """Keeps the most helped and the most hurt tokens of the rows that pass the last stage."""

    def __init__(self, kept: int = KEPT) -> None:
        """Keeps `kept` tokens each way, for each domain and specialist."""
        self._kept = kept
        self._heaps: dict[_Key, list[tuple[float, int, int, FoundToken]]] = {}

    def take(self, loss: MixtureLoss, row: PackedRow) -> None:
        """Looks at a row; called on the last stage."""
        assert loss.specialists is not None, "this needs the parts of the loss"
        fused, alone, weights = (
            values.float().cpu().numpy() for values in (loss.fused, loss.specialists, loss.weights)
        )
        domains, samples = row.domains.cpu().numpy(), row.samples.cpu().numpy()
        differences = fused[:, None] - alone
        for domain in np.unique(domains):
            own = np.flatnonzero(domains == domain)
            for specialist, sign in ((k, s) for k in range(alone.shape[1]) for s in (-1, 1)):
                sizes = sign * differences[own, specialist]
                heap = self._heaps.setdefault((int(domain), specialist, sign), [])
                for place in np.lexsort((own, row.references[samples[own], 1], -sizes))[: self._kept]:
                    size, token = float(sizes[place]), int(own[place])
                    if size <= 0 or (len(heap) == self._kept and size < heap[0][0]):
                        break
                    first, end = np.searchsorted(samples, [samples[token], samples[token] + 1])
                    start = max(int(first), token - BEFORE)
                    sample = int(row.references[samples[token], 1])
                    found = FoundToken(
                        difference=float(differences[token, specialist]),
                        domain=int(domain),
                        sample=sample,
                        token=token - int(first),
                        fused=float(fused[token]),
                        specialists=alone[token].copy(),
                        start=start - int(first),
                        weights=weights[start : min(int(end), token + AFTER + 1)].copy(),
                    )
                    # Of equals, the one that comes first in the data is kept, however the rows are dealt.
                    entry = (size, -sample, -found.token, found)
                    (heapq.heappush if len(heap) < self._kept else heapq.heappushpop)(heap, entry)

    def gather(self) -> dict[_Key, list[FoundToken]]:
        """What all ranks found, the largest differences first; every rank calls it."""
        own = self._heaps if parallel_state.get_tensor_model_parallel_rank() == 0 else {}
        parts: list[dict[_Key, list[tuple[float, int, int, FoundToken]]]] = [{} for _ in range(dist.get_world_size())]
        dist.all_gather_object(parts, own)
        keys = sorted({key for part in parts for key in part})
        return {
            key: [entry[-1] for entry in _largest([entry for part in parts for entry in part.get(key, ())], self._kept)]
            for key in keys
        }


def build_extremes(
    found: Mapping[_Key, Sequence[FoundToken]],
    best: Sequence[int],
    domains: Sequence[TokenizedDomain],
    tokenizer: Any,
    names: Sequence[str],
    kept: int = KEPT,
) -> ExtremeTokens:
    """Chooses among what was found and puts texts to it.

    Args:
        found: as `ExtremeCollector.gather` gives it.
        best: index of the best specialist of each domain.
        domains: the data that was measured.
        tokenizer: the first specialist's.
        names: the specialists'.
        kept: tokens each way.
    """

    def chosen(sign: int) -> list[ExtremeToken]:
        own = [token for domain, k in enumerate(best) for token in found.get((domain, k, sign), ())]
        own.sort(key=lambda token: -sign * token.difference)
        return [_in_words(token, names[best[token.domain]], domains, tokenizer, names) for token in own[:kept]]

    return ExtremeTokens(helped=chosen(-1), hurt=chosen(1))


def _largest(entries: Iterable[tuple[float, int, int, FoundToken]], kept: int) -> list[Any]:
    return heapq.nlargest(kept, entries, key=lambda entry: entry[:3])


def _in_words(
    token: FoundToken, best: str, domains: Sequence[TokenizedDomain], tokenizer: Any, names: Sequence[str]
) -> ExtremeToken:
    domain = domains[token.domain]
    ids = domain.targets(token.sample)[token.start : token.start + len(token.weights)]
    place = token.token - token.start
    return ExtremeToken(
        domain=domain.name,
        sample_id=domain.sample_id(token.sample),
        token=token.token,
        difference=token.difference,
        best=best,
        fused=token.fused,
        specialists=dict(zip(names, token.specialists.tolist(), strict=True)),
        gate=dict(zip(names, token.weights[place].tolist(), strict=True)),
        prompt=_prompt_end(domain, token, tokenizer),
        pieces=token_pieces(tokenizer, ids.tolist()),
        place=place,
        weights=token.weights,
    )


def _prompt_end(domain: TokenizedDomain, token: FoundToken, tokenizer: Any) -> str:
    """The end of the prompt of the turn that the token is in."""
    turns = domain.turns(token.sample, specialist=0)
    ends = np.cumsum([len(response) for _, response in turns])
    prompt, _ = turns[int(np.searchsorted(ends, token.token, side="right"))]
    text = tokenizer.decode(prompt.tolist(), skip_special_tokens=True, clean_up_tokenization_spaces=False).strip()
    shown: str = text if len(text) <= _PROMPT_CHARACTERS else "… " + text[-_PROMPT_CHARACTERS:]
    return shown
