"""Which samples a step sees: a function of the seed, the stage and the step's number alone.

It is made from a configuration by `data.stage_sampler`; the rows of its samples are `data.packing`.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from megafuser.data.weighted_draws import Mixture


@dataclass(frozen=True)
class SourceShares:
    """The sources of a domain whose samples are drawn by weight; the domain holds them in this order.

    Attributes:
        names: of the sources.
        sizes: number of samples of each.
        weights: of each, relative to the others'.
    """

    names: tuple[str, ...]
    sizes: tuple[int, ...]
    weights: tuple[float, ...]


@dataclass(frozen=True)
class Draws:
    """How often the samples of a domain, or of one source of it, are drawn.

    Attributes:
        domain: index of the domain.
        source: its source; None where the domain is drawn as one.
        size: number of samples there.
        draws: number of draws from them.
    """

    domain: int
    source: str | None
    size: int
    draws: int


class Sampler:
    """Draws each step's samples without replacement within an epoch, the same for every layout of ranks.

    Balanced, as in the paper (Balanced sampling): every step has `samples_per_domain` samples of each domain, and each
    domain runs through its own epochs. Otherwise a step takes as many samples in all: by weight, where there are
    weights, each domain again with its own epochs, or else from all domains pooled, in proportion to their sizes.
    Within a domain, sources with weights are drawn by them, each with its own epochs. Any step can be asked for in any
    order; memory is that of one permutation of every domain.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        samples_per_domain: int,
        balanced: bool,
        seed: int,
        stage: str,
        *,
        weights: Mapping[str, float] | None = None,
        sources: Sequence[SourceShares | None] | None = None,
    ):
        """Makes the streams; nothing is drawn yet.

        Args:
            sizes: number of samples of each domain, all positive.
            samples_per_domain: samples of each domain in a step, over all ranks.
            balanced: as many of each domain in every step, where there are no `weights`; or one pooled stream.
            seed: the run's seed.
            stage: name of the training stage; the two stages draw different orders.
            weights: by domain, in their order, its share of the samples, relative to the others'; takes the place of
                `balanced`.
            sources: of each domain, its sources where they have weights.

        Raises:
            UserError: a weight is next to nothing beside the others.
        """
        if not sizes or min(sizes) < 1 or samples_per_domain < 1:
            raise ValueError(f"sizes and samples_per_domain must be positive: {list(sizes)}, {samples_per_domain}")
        self.sizes = tuple(int(size) for size in sizes)
        self.samples_per_domain = samples_per_domain
        self.balanced = balanced
        self._starts = np.concatenate([[0], np.cumsum(self.sizes)])
        names = [f"{seed}/{stage}/{domain}" for domain in range(len(self.sizes))]
        by_source = sources or [None] * len(self.sizes)
        self._pools = [
            _Pool(size, name) if shares is None else _WeightedPool(size, name, shares)
            for size, name, shares in zip(self.sizes, names, by_source, strict=True)
        ]
        if weights is not None and len(weights) != len(self.sizes):
            raise ValueError(f"{len(self.sizes)} domains have {len(weights)} weights")
        self._mixture = None if weights is None else Mixture(list(weights), list(weights.values()))
        self._pooled = _Stream(sum(self.sizes), f"{seed}/{stage}/pooled") if weights is None and not balanced else None

    def step(self, n: int) -> np.ndarray:
        """Samples of step `n`, counted from 1.

        Returns:
            `[G, 2]` int64 of (domain index, sample index), G = samples_per_domain · number of domains.
        """
        if n < 1:
            raise ValueError(f"steps are counted from 1, got {n}")
        if self._pooled is not None:
            return self._pooled_step(self._pooled, (n - 1) * self._step_size)
        starts, ends = self._drawn_before(n - 1), self._drawn_before(n)
        counts = ends - starts
        samples = [
            pool.take(start, count)
            for pool, start, count in zip(self._pools, starts.tolist(), counts.tolist(), strict=True)
        ]
        return np.stack([np.repeat(np.arange(len(self.sizes)), counts), np.concatenate(samples)], axis=1)

    def draws(self, steps: int) -> list[Draws]:
        """How many draws the first `steps` steps make from each domain, or from each of its sources with weights."""
        of_domains = self._drawn_before(steps).tolist()
        return [
            Draws(domain, source, size, draws)
            for domain, (pool, drawn) in enumerate(zip(self._pools, of_domains, strict=True))
            for source, size, draws in pool.draws(drawn)
        ]

    def _drawn_before(self, steps: int) -> np.ndarray:
        """Samples `[domains]` drawn of each domain in the first `steps` steps."""
        if self._pooled is not None:
            return self._pooled_before(self._pooled, steps * self._step_size)
        if self._mixture is not None:
            return self._mixture.before(steps * self._step_size)
        return np.full(len(self.sizes), steps * self.samples_per_domain, dtype=np.int64)

    @property
    def _step_size(self) -> int:
        return self.samples_per_domain * len(self.sizes)

    def _pooled_step(self, stream: "_Stream", start: int) -> np.ndarray:
        pooled = stream.take(start, self._step_size)
        domains = self._domain_of(pooled)
        samples = pooled - self._starts[domains]
        if any(isinstance(pool, _WeightedPool) for pool in self._pools):
            before = self._pooled_before(stream, start).tolist()
            for domain, pool in enumerate(self._pools):
                if isinstance(pool, _WeightedPool):
                    own = domains == domain
                    samples[own] = pool.take(before[domain], int(own.sum()))
        return np.stack([domains, samples], axis=1)

    def _pooled_before(self, stream: "_Stream", start: int) -> np.ndarray:
        epoch, offset = divmod(start, stream.size)
        counts = epoch * np.array(self.sizes, dtype=np.int64)
        if offset:
            begun = self._domain_of(stream.take(epoch * stream.size, offset))
            counts += np.bincount(begun, minlength=len(self.sizes))
        return counts

    def _domain_of(self, pooled: np.ndarray) -> np.ndarray:
        return np.searchsorted(self._starts, pooled, side="right") - 1


class _Pool:
    """A domain that is drawn as one."""

    def __init__(self, size: int, key: str):
        self._stream = _Stream(size, key)

    def take(self, start: int, count: int) -> np.ndarray:
        """Samples of the domain's draws start … start + count - 1."""
        return self._stream.take(start, count)

    def draws(self, drawn: int) -> list[tuple[str | None, int, int]]:
        """(source, its size, its draws) after `drawn` draws from the domain."""
        return [(None, self._stream.size, drawn)]


class _WeightedPool:
    """A domain whose draws are spread over its sources by weight."""

    def __init__(self, size: int, key: str, shares: SourceShares):
        if sum(shares.sizes) != size or min(shares.sizes) < 1:
            raise ValueError(f"sources of {list(shares.sizes)} samples cannot make up a domain of {size}")
        self._shares = shares
        self._mixture = Mixture(shares.names, shares.weights)
        self._streams = [_Stream(own, f"{key}/{source}") for source, own in enumerate(shares.sizes)]
        self._starts = np.concatenate([[0], np.cumsum(shares.sizes)]).tolist()

    def take(self, start: int, count: int) -> np.ndarray:
        """Samples of the domain's draws start … start + count - 1, source after source."""
        begins = self._mixture.before(start)
        counts = self._mixture.before(start + count) - begins
        pieces = [
            first + stream.take(begin, own)
            for first, stream, begin, own in zip(
                self._starts[:-1], self._streams, begins.tolist(), counts.tolist(), strict=True
            )
        ]
        return np.concatenate(pieces)

    def draws(self, drawn: int) -> list[tuple[str | None, int, int]]:
        """(source, its size, its draws) after `drawn` draws from the domain."""
        counts = self._mixture.before(drawn).tolist()
        return list(zip(self._shares.names, self._shares.sizes, counts, strict=True))


class _Stream:
    """An endless sequence of indices below `size`: one permutation after another, each from its own key."""

    def __init__(self, size: int, key: str):
        """`key` names the stream: streams of different keys have different permutations."""
        self.size = size
        self.key = key
        self._epoch = -1
        self._permutation = np.empty(0, dtype=np.int64)

    def take(self, start: int, count: int) -> np.ndarray:
        """Indices `[count]` int64 at the stream's positions start … start + count - 1."""
        pieces = [np.empty(0, dtype=np.int64)]
        end = start + count
        while start < end:
            epoch, offset = divmod(start, self.size)
            piece = self._of_epoch(epoch)[offset : offset + end - start]
            pieces.append(piece)
            start += len(piece)
        return np.concatenate(pieces)

    def _of_epoch(self, epoch: int) -> np.ndarray:
        if epoch != self._epoch:
            digest = hashlib.sha256(f"{self.key}/{epoch}".encode()).digest()
            # Raw bits and a stable sort: numpy promises the bit stream across versions, but not its permutation().
            bits = np.random.PCG64(int.from_bytes(digest[:16], "little")).random_raw(self.size)
            self._permutation = np.argsort(bits, kind="stable")
            self._epoch = epoch
        return self._permutation
