"""Samples that are nearly the same as one that was taken before, by MinHash over word 5-grams.

Texts of benchmarks are found exactly, by `data.decontamination.ngrams`.
"""

from typing import Any

from megafuser.extras import require

_WORDS = 5
_PERMUTATIONS = 128


def sketch(text: str) -> Any:
    """A MinHash, of whose numbers two texts share as large a part as of their 5-grams (Jaccard), about; it pickles."""
    from datasketch import LeanMinHash, MinHash

    words = text.lower().split()
    grams = {" ".join(words[start : start + _WORDS]) for start in range(max(1, len(words) - _WORDS + 1))}
    found = MinHash(num_perm=_PERMUTATIONS, seed=1)
    found.update_batch([gram.encode() for gram in sorted(grams)])
    return LeanMinHash(found)


class NearDuplicates:
    """Remembers the samples that were taken."""

    def __init__(self, threshold: float) -> None:
        """Makes an empty memory.

        Args:
            threshold: share of common 5-grams (Jaccard) from which on two samples are near duplicates.

        Raises:
            UserError: the library is missing.
        """
        require("dedup", "near duplicates", otherwise="do not ask for them")
        from datasketch import MinHashLSH

        self._threshold = threshold
        # An index at the threshold itself would miss a third of the pairs above it; what it finds is compared anyway.
        self._index = MinHashLSH(threshold=min(max(threshold - 0.2, 0.1), 0.8), num_perm=_PERMUTATIONS)
        self._sketches: dict[Any, Any] = {}

    def take(self, identity: Any, own: Any) -> tuple[Any, float] | None:
        """Remembers a sample, unless it nearly repeats one that was taken before.

        Args:
            identity: its name; comparable.
            own: sketch of all of its texts.

        Returns:
            The one that it repeats and their share of common 5-grams, as estimated; None of a new one.
        """
        # The index finds what may be near; only an estimate above the threshold counts.
        shares = {one: float(own.jaccard(self._sketches[one])) for one in self._index.query(own)}
        near = [one for one, share in shares.items() if share >= self._threshold]
        if near:
            first = min(near)
            return first, shares[first]
        self._index.insert(identity, own)
        self._sketches[identity] = own
        return None
