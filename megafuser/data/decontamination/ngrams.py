"""An index of the benchmarks' n-grams, and the search for one in a text."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from megafuser.data.decontamination.words import words

# An item with fewer words is not searched for: so few stand in many texts by chance. Source: GPT-3 paper, appendix C.
FEWEST_WORDS = 8


@dataclass(frozen=True)
class BenchmarkItem:
    """A text of a benchmark.

    Attributes:
        source: the benchmark's file or data set.
        where: the item's place in it.
        field: which of the item's fields.
        text: what it says.
    """

    source: str
    where: str
    field: str
    text: str


@dataclass(frozen=True)
class Hit:
    """A benchmark's text that a text shares words with.

    Attributes:
        item: the benchmark's.
        ngram: the words that both have, in a row.
    """

    item: BenchmarkItem
    ngram: str


class NgramIndex:
    """The n-grams of benchmark items; an item of fewer words, but at least `FEWEST_WORDS`, counts as a whole."""

    def __init__(self, ngram: int) -> None:
        """An empty index of n-grams of `ngram` words."""
        self.ngram = ngram
        self.too_short: list[BenchmarkItem] = []
        # by number of words: the item that has them first
        self._grams: dict[int, dict[tuple[str, ...], BenchmarkItem]] = defaultdict(dict)

    @classmethod
    def build(cls, items: Iterable[BenchmarkItem], ngram: int = 13) -> "NgramIndex":
        """Indexes items; those too short to be searched for are listed in `too_short`."""
        index = cls(ngram)
        for item in items:
            found = words(item.text)
            if len(found) < min(FEWEST_WORDS, ngram):
                index.too_short.append(item)
                continue
            length = min(len(found), ngram)
            for start in range(len(found) - length + 1):
                index._grams[length].setdefault(tuple(found[start : start + length]), item)
        return index

    def find(self, text: str) -> Hit | None:
        """The first n-gram of the text that a benchmark has, too; None where there is none."""
        found = words(text)
        for start in range(len(found)):
            for length, grams in self._grams.items():
                gram = tuple(found[start : start + length])
                if len(gram) == length and (item := grams.get(gram)) is not None:
                    return Hit(item, " ".join(gram))
        return None
