"""The microbatches of a training step or of a validation run, for one data-parallel rank.

Which samples a step has is `data.sampler`, which share a row `data.packing`, the tensors `data.row_building`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from megafuser.data.packing import Packing, deal, pack
from megafuser.data.row_building import build_row
from megafuser.data.sampler import Sampler
from megafuser.data.tokenized import TokenizedDomain
from megafuser.fusion.row import PackedRow


@dataclass(frozen=True)
class StepCounts:
    """What a global step holds, over all ranks.

    Attributes:
        domain_samples: number of samples of each domain.
        domain_tokens: of each domain, sum over its samples of the longest of their K views, without padding.
        domain_response_tokens: response tokens of each domain.
    """

    domain_samples: tuple[int, ...]
    domain_tokens: tuple[int, ...]
    domain_response_tokens: tuple[int, ...]

    @property
    def samples(self) -> int:
        """Number of samples."""
        return sum(self.domain_samples)

    @property
    def tokens(self) -> int:
        """Tokens of all domains, without padding."""
        return sum(self.domain_tokens)

    @property
    def response_tokens(self) -> int:
        """Number of response tokens, T."""
        return sum(self.domain_response_tokens)


class StepBatches:
    """One rank's microbatches of any step; the union over the ranks does not depend on their number."""

    def __init__(
        self,
        domains: Sequence[TokenizedDomain],
        sampler: Sampler,
        width: int,
        ranks: int,
        rank: int,
        row_multiple: int = 1,
        width_multiple: int = 1,
    ):
        """Binds the data to the place of one rank.

        Args:
            domains: tokenized domains in configuration order.
            sampler: chooses each step's samples.
            width: positions that a row has at most, S.
            ranks: number of data-parallel ranks.
            rank: this rank among them.
            row_multiple: the number of a rank's microbatches is a multiple of this.
            width_multiple: the rows' widths are multiples of this.
        """
        self.domains = tuple(domains)
        self.sampler = sampler
        self.width = width
        self.ranks = ranks
        self.rank = rank
        self.row_multiple = row_multiple
        self.width_multiple = width_multiple
        self._last: tuple[int, np.ndarray, Packing] | None = None

    def rows(self, step: int) -> list[PackedRow]:
        """This rank's microbatches of global step `step`, from 1; as many on every rank, at least one."""
        references, packing = self._packed(step)
        return _rows(self.domains, references, packing, self.ranks, self.rank)

    def packing_efficiency(self, step: int) -> float:
        """Real positions of all K views, over all that the rows of global step `step` have, on all ranks."""
        return self._packed(step)[1].efficiency

    def _packed(self, step: int) -> tuple[np.ndarray, Packing]:
        """A step's samples and their rows; the last step's are kept, since it is asked about more than once."""
        if self._last is None or self._last[0] != step:
            references = self.sampler.step(step)
            lengths = _lengths(self.domains, references)
            packing = pack(lengths, self.width, self.ranks * self.row_multiple, self.width_multiple)
            self._last = step, references, packing
        return self._last[1:]

    def lengths(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Of the G samples of global step `step`, over all ranks: their longest view's tokens, and response tokens."""
        references = self.sampler.step(step)
        return _lengths(self.domains, references).max(axis=1), _response_lengths(self.domains, references)

    def counts(self, step: int) -> StepCounts:
        """Samples and tokens of global step `step`, over all ranks."""
        return count(self.domains, self._packed(step)[0])


def count(domains: Sequence[TokenizedDomain], references: np.ndarray) -> StepCounts:
    """Counts the samples `references`, `[G, 2]` of (domain index, sample index)."""

    def by_domain(numbers: np.ndarray) -> tuple[int, ...]:
        sums = np.bincount(references[:, 0], weights=numbers, minlength=len(domains))
        return tuple(sums.astype(np.int64).tolist())

    return StepCounts(
        domain_samples=by_domain(np.ones(len(references))),
        domain_tokens=by_domain(_lengths(domains, references).max(axis=1)),
        domain_response_tokens=by_domain(_response_lengths(domains, references)),
    )


def validation_sizes(domains: Sequence[TokenizedDomain], samples_per_domain: int | None) -> list[int]:
    """How many samples of each domain a validation looks at; see `validation_rows`."""
    return [len(domain) if samples_per_domain is None else min(samples_per_domain, len(domain)) for domain in domains]


def validation_rows(
    domains: Sequence[TokenizedDomain],
    samples_per_domain: int | None,
    width: int,
    ranks: int,
    rank: int,
    row_multiple: int = 1,
    width_multiple: int = 1,
) -> list[PackedRow]:
    """One rank's rows of the first `samples_per_domain` samples of each domain (None: of all samples)."""
    sizes = validation_sizes(domains, samples_per_domain)
    references = np.stack(
        [np.repeat(np.arange(len(domains)), sizes), np.concatenate([np.arange(size) for size in sizes])], axis=1
    )
    packing = pack(_lengths(domains, references), width, ranks * row_multiple, width_multiple)
    return _rows(domains, references, packing, ranks, rank)


def _rows(
    domains: Sequence[TokenizedDomain], references: np.ndarray, packing: Packing, ranks: int, rank: int
) -> list[PackedRow]:
    own = deal(packing.rows, ranks)[rank]
    return [build_row(domains, references[row], packing.widths) for row in own]


def _lengths(domains: Sequence[TokenizedDomain], references: np.ndarray) -> np.ndarray:
    """Lengths `[G, K]` of the referenced samples."""
    return _gather([domain.lengths for domain in domains], references)


def _response_lengths(domains: Sequence[TokenizedDomain], references: np.ndarray) -> np.ndarray:
    """Response tokens `[G]` of the referenced samples."""
    return _gather([domain.response_lengths for domain in domains], references)


def _gather(columns: Sequence[np.ndarray], references: np.ndarray) -> np.ndarray:
    """Rows of each domain's column at the references, in their order."""
    gathered = np.zeros((len(references), *columns[0].shape[1:]), dtype=np.int64)
    for index, column in enumerate(columns):
        own = references[:, 0] == index
        gathered[own] = column[references[own, 1]]
    return gathered
