"""An index of the benchmarks' n-grams, and the search for them in texts.

Texts become arrays of word numbers; rolling hashes of all their windows are looked up at once, and what is found is
compared word by word. So a text costs what making its words costs, however many n-grams are sought. What counts as a
word is `data.decontamination.words`; what is dropped, `data.decontamination.clean`.
"""

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import repeat

import numpy as np

from megafuser.data.decontamination.words import BOUNDARY, ascii_words, is_plain, words

# An item with fewer words is not searched for: so few stand in many texts by chance. Source: GPT-3 paper, appendix C.
FEWEST_WORDS = 8

# The number of a word that no benchmark has; and of what stands between two texts, so that no window crosses it.
_UNKNOWN, _BETWEEN = 0, -1
# An odd multiplier of random bits: the hash of a window is Σ word[i] · BASE^i mod 2^64.
_BASE = 0x9E3779B97F4A7C15
# Of a hash, the bits that a table of seen prefixes is addressed by; it is what most windows are looked up in.
_PREFIX_BITS = 24


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
        ngram: the first words that both have, in a row.
        count: how many n-grams both have.
    """

    item: BenchmarkItem
    ngram: str
    count: int = 1


class NgramIndex:
    """The n-grams of benchmark items; an item of fewer words, but at least `FEWEST_WORDS`, counts as a whole.

    Attributes:
        ngram: words of an n-gram.
        items: those searched for.
        too_short: those that are not.
    """

    def __init__(self, items: Iterable[BenchmarkItem], ngram: int) -> None:
        """Indexes items; those too short to be searched for are listed in `too_short`."""
        self.ngram = ngram
        self.items: list[BenchmarkItem] = []
        self.too_short: list[BenchmarkItem] = []
        self._numbers: dict[str, int] = {}
        found: list[np.ndarray] = []
        for item in items:
            own = words(item.text)
            if len(own) < min(FEWEST_WORDS, ngram):
                self.too_short.append(item)
                continue
            self.items.append(item)
            numbers = (self._numbers.setdefault(word, len(self._numbers) + 1) for word in own)
            found.append(np.fromiter(numbers, np.int32, len(own)))
        self._numbers[BOUNDARY] = _BETWEEN
        self._words = np.concatenate([*found, np.zeros(0, np.int32)])
        lengths = np.array([len(own) for own in found], dtype=np.int64)
        ends = np.cumsum(lengths)
        self._index(ends - lengths, lengths)

    def _index(self, starts: np.ndarray, lengths: np.ndarray) -> None:
        """Sorts all n-grams by their hashes.

        Args:
            starts: [items] where an item's words begin in `_words`.
            lengths: [items] how many they are.
        """
        windows = np.minimum(lengths, self.ngram)
        counts = lengths - windows + 1
        item = np.repeat(np.arange(len(lengths)), counts)
        first = np.repeat(starts - np.cumsum(counts) + counts, counts) + np.arange(counts.sum())
        length = windows[item]
        self._lengths = sorted(set(windows.tolist()))
        hashes = np.empty(len(item), np.uint64)
        for window, every in _rolling(self._words, self._lengths):
            chosen = length == window
            hashes[chosen] = every[first[chosen]]
        # By hash, and among equal ones in the items' order.
        order = np.lexsort((first, hashes))
        self._hashes, self._starts = hashes[order], starts
        self._items, self._first, self._length = (values[order].astype(np.int32) for values in (item, first, length))
        self._prefixes = np.zeros(1 << _PREFIX_BITS, dtype=bool)
        self._prefixes[self._hashes >> np.uint64(64 - _PREFIX_BITS)] = True

    def find(self, text: str) -> Hit | None:
        """The first n-gram of the text that a benchmark has, too; None where there is none."""
        return next(iter(self.find_all(text)), None)

    def find_all(self, text: str, ignored: Collection[int] = ()) -> list[Hit]:
        """The items that share an n-gram with the text, in the order in which they are met.

        Args:
            text: to be searched.
            ignored: hashes of n-grams that are not hits.
        """
        numbers = self._numbered(words(text))
        # by item: the row of its first n-gram, and how many
        hits: dict[int, tuple[int, int]] = {}
        for position, low, high in self._candidates(numbers):
            for row in range(low, high):
                if int(self._hashes[row]) not in ignored and self._equal(numbers, position, row):
                    first, count = hits.get(int(self._items[row]), (row, 0))
                    hits[int(self._items[row])] = (first, count + 1)
        return [Hit(self.items[item], self._spelled(row), count) for item, (row, count) in hits.items()]

    def search(self, texts: Sequence[str]) -> dict[int, np.ndarray]:
        """Searches many texts at once, which is the fast way.

        Returns:
            Of each text with a hit, by its index: hashes `[n]` uint64 of the n-grams it shares with a benchmark, each
            once.
        """
        plain = [index for index, text in enumerate(texts) if is_plain(text)]
        others = [index for index, text in enumerate(texts) if not is_plain(text)]
        joined = ascii_words([texts[index] for index in plain]) if plain else []
        for index in others:
            joined += words(texts[index])
            joined.append(BOUNDARY)
        numbers = self._numbered(joined)
        order, ends = [*plain, *others], np.flatnonzero(numbers == _BETWEEN)
        hits: dict[int, set[int]] = {}
        for position, low, high in self._candidates(numbers):
            if any(self._equal(numbers, position, row) for row in range(low, high)):
                text = order[int(np.searchsorted(ends, position))]
                hits.setdefault(text, set()).add(int(self._hashes[low]))
        return {text: np.array(sorted(keys), dtype=np.uint64) for text, keys in hits.items()}

    def spelled(self, key: int) -> str:
        """The words of an n-gram, by its hash."""
        return self._spelled(int(np.searchsorted(self._hashes, np.uint64(key))))

    def _spelled(self, row: int) -> str:
        """Made of the item's text again, since only its words' numbers are kept."""
        item = int(self._items[row])
        begin = int(self._first[row] - self._starts[item])
        return " ".join(words(self.items[item].text)[begin : begin + int(self._length[row])])

    def _numbered(self, found: Sequence[str]) -> np.ndarray:
        return np.fromiter(map(self._numbers.get, found, repeat(_UNKNOWN)), np.int32, len(found))

    def _candidates(self, numbers: np.ndarray) -> list[tuple[int, int, int]]:
        """Windows whose hash some n-gram has, in order: position, and the range of rows of that hash."""
        found: list[tuple[int, int, int]] = []
        for window, hashes in _rolling(numbers, self._lengths):
            count = len(numbers) - window + 1
            if count <= 0:
                break
            hashes = hashes[:count]
            near = np.flatnonzero(self._prefixes[hashes >> np.uint64(64 - _PREFIX_BITS)])
            low = np.searchsorted(self._hashes, hashes[near])
            high = np.searchsorted(self._hashes, hashes[near], side="right")
            there = high > low
            found += zip(near[there].tolist(), low[there].tolist(), high[there].tolist(), strict=True)
        return sorted(found)

    def _equal(self, numbers: np.ndarray, position: int, row: int) -> bool:
        """Whether the words are the same; equal hashes only make it likely."""
        first, length = int(self._first[row]), int(self._length[row])
        window = numbers[position : position + length]
        return len(window) == length and bool((window == self._words[first : first + length]).all())


def _rolling(numbers: np.ndarray, lengths: Sequence[int]) -> Iterator[tuple[int, np.ndarray]]:
    """Hashes of all windows, for each of a few ascending lengths.

    Args:
        numbers: [n] int32.
        lengths: ascending.

    Yields:
        The length, and `[n]` uint64; those of windows beyond the end mean nothing. The array is used again.
    """
    values = numbers.astype(np.uint64)
    total = np.zeros(len(values), np.uint64)
    factor, done = 1, 0
    for length in lengths:
        for offset in range(done, min(length, len(values))):
            # Word numbers are small, and so would be the top bits of a short window's hash: all are multiplied.
            factor = factor * _BASE % 2**64
            total[: len(values) - offset] += values[offset:] * np.uint64(factor)
        done = length
        yield length, total
