"""Which samples a step sees: a function of the seed, the stage and the step's number alone."""

import hashlib
from collections.abc import Sequence

import numpy as np


class Sampler:
    """Draws each step's samples without replacement within an epoch, the same for every layout of ranks.

    Balanced, as in the paper (Balanced sampling): every step has `samples_per_domain` samples of each domain, and each
    domain runs through its own epochs. Otherwise the domains are pooled, and a step takes as many samples in all, in
    proportion to the domains' sizes. Any step can be asked for in any order; memory is that of one permutation.
    """

    def __init__(self, sizes: Sequence[int], samples_per_domain: int, balanced: bool, seed: int, stage: str):
        """Makes the streams; nothing is drawn yet.

        Args:
            sizes: number of samples of each domain, all positive.
            samples_per_domain: samples of each domain in a step, over all ranks.
            balanced: one stream per domain, or one pooled stream.
            seed: the run's seed.
            stage: name of the training stage; the two stages draw different orders.
        """
        if not sizes or min(sizes) < 1 or samples_per_domain < 1:
            raise ValueError(f"sizes and samples_per_domain must be positive: {list(sizes)}, {samples_per_domain}")
        self.sizes = tuple(int(size) for size in sizes)
        self.samples_per_domain = samples_per_domain
        self.balanced = balanced
        self._starts = np.concatenate([[0], np.cumsum(self.sizes)])
        if balanced:
            self._streams = [_Stream(size, f"{seed}/{stage}/{domain}") for domain, size in enumerate(self.sizes)]
        else:
            self._streams = [_Stream(sum(self.sizes), f"{seed}/{stage}/pooled")]

    def step(self, n: int) -> np.ndarray:
        """Samples of step `n`, counted from 1.

        Returns:
            `[G, 2]` int64 of (domain index, sample index), G = samples_per_domain · number of domains.
        """
        if n < 1:
            raise ValueError(f"steps are counted from 1, got {n}")
        if self.balanced:
            count = self.samples_per_domain
            samples = [stream.take((n - 1) * count, count) for stream in self._streams]
            domains = np.repeat(np.arange(len(self.sizes)), count)
            return np.stack([domains, np.concatenate(samples)], axis=1)
        count = self.samples_per_domain * len(self.sizes)
        pooled = self._streams[0].take((n - 1) * count, count)
        domains = np.searchsorted(self._starts, pooled, side="right") - 1
        return np.stack([domains, pooled - self._starts[domains]], axis=1)


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
        pieces = []
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
