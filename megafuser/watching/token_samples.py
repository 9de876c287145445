"""What the validation pass shows of single tokens: the gate's weights on some, and the texts of a few samples.

The last pipeline stage has the values; each data-parallel rank those of its own rows. Only what is shown travels. Which
samples, and their texts, is `watching.excerpts`; the losses of the pass are `training.validation`.
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
from megafuser.watching.excerpts import Collector, Excerpt, build_excerpts, choose_samples

TOKENS_PER_DOMAIN = 4096
"""Of each rank, for the histograms."""
SAMPLES_PER_DOMAIN = 2
SHOWN_TOKENS = 120


@dataclass(frozen=True)
class Seen:
    """What a validation showed; the same on every rank.

    Attributes:
        weights: per domain, [t, K] gate weights of response tokens.
        excerpts: the beginnings of the same few samples each time.
    """

    weights: list[np.ndarray]
    excerpts: list[Excerpt]


class TokenCollector:
    """Looks at every row of one validation pass."""

    def __init__(self, domains: Sequence[TokenizedDomain], samples_per_domain: int, specialists: int) -> None:
        """Chooses the samples to show.

        Args:
            domains: validation data.
            samples_per_domain: samples of each domain that are validated, at most.
            specialists: K.
        """
        self._domains = domains
        self._specialists = specialists
        sizes = [min(samples_per_domain, len(domain)) for domain in domains]
        self._samples = Collector(choose_samples(sizes, SAMPLES_PER_DOMAIN), SHOWN_TOKENS)
        self._weights: list[list[np.ndarray]] = [[] for _ in domains]
        self._room = [TOKENS_PER_DOMAIN] * len(domains)

    def take(self, loss: MixtureLoss, row: PackedRow) -> None:
        """Keeps what is to be shown of a row; called on the last stage."""
        self._samples.take(loss, row)
        if not any(self._room):
            return
        weights, domains = loss.weights.float().cpu().numpy(), row.domains.cpu().numpy()
        for domain, room in enumerate(self._room):
            own = weights[domains == domain][:room]
            if len(own):
                self._weights[domain].append(own)
                self._room[domain] -= len(own)

    def gather(self, tokenizer: Any) -> Seen:
        """Brings together what all ranks saw; every rank calls it.

        Args:
            tokenizer: the first specialist's.
        """
        is_first = parallel_state.get_tensor_model_parallel_rank() == 0
        own = self._weights if is_first else [[] for _ in self._domains]
        found: list[list[list[np.ndarray]]] = [[] for _ in range(dist.get_world_size())]
        dist.all_gather_object(found, own)
        empty = np.zeros((0, self._specialists), dtype=np.float32)
        weights = [
            np.concatenate([empty, *(part for rank in found for part in rank[domain])])
            for domain in range(len(self._domains))
        ]
        return Seen(weights, build_excerpts(self._samples.gather(), self._domains, tokenizer))
