"""Samples that are nearly the same as one that was taken before, by MinHash over word 5-grams."""

from typing import Any

_WORDS = 5
_PERMUTATIONS = 128


class NearDuplicates:
    """Remembers the samples that were taken."""

    def __init__(self, threshold: float) -> None:
        """Makes an empty memory.

        Args:
            threshold: share of common 5-grams (Jaccard) from which on two samples are near duplicates.
        """
        from datasketch import MinHashLSH

        self._threshold = threshold
        self._index = MinHashLSH(threshold=threshold, num_perm=_PERMUTATIONS)
        self._sketches: dict[str, Any] = {}

    def take(self, identity: str, text: str) -> str | None:
        """Remembers a sample, unless it nearly repeats one that was taken before.

        Args:
            identity: its id.
            text: all of its texts.

        Returns:
            Id of the one that it repeats, or None of a new one.
        """
        sketch = _sketch(text)
        # The index finds what may be near; only an estimate above the threshold counts.
        near = [one for one in self._index.query(sketch) if sketch.jaccard(self._sketches[one]) >= self._threshold]
        if near:
            return min(near)
        self._index.insert(identity, sketch)
        self._sketches[identity] = sketch
        return None


def _sketch(text: str) -> Any:
    from datasketch import MinHash

    words = text.lower().split()
    grams = {" ".join(words[start : start + _WORDS]) for start in range(max(1, len(words) - _WORDS + 1))}
    sketch = MinHash(num_perm=_PERMUTATIONS, seed=1)
    sketch.update_batch([gram.encode() for gram in sorted(grams)])
    return sketch
