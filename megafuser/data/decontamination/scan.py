"""What a worker does with a block of lines: searches it for n-grams, or sketches its samples.

The passes over whole files are `data.decontamination.clean`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from megafuser.data.decontamination.ngrams import NgramIndex
from megafuser.data.decontamination.records import read_record, texts_of
from megafuser.data.sources.records import BadRecord, Block


@dataclass
class Searched:
    """What was found in a block.

    Attributes:
        lines: samples and bad lines; blank lines do not count.
        hits: of each line with a hit, by its index in the block, hashes `[n]` uint64 of the n-grams.
        bad: lines that cannot be read, by index.
    """

    lines: int = 0
    hits: dict[int, np.ndarray] = field(default_factory=dict)
    bad: dict[int, BadRecord] = field(default_factory=dict)


def search_block(index: NgramIndex, block: Block) -> Searched:
    """Searches all strings of a block at once."""
    found = Searched()
    texts: list[str] = []
    owners: list[int] = []
    for number in range(len(block.items)):
        record = read_record(block, number)
        if record is None:
            continue
        found.lines += 1
        if isinstance(record, BadRecord):
            found.bad[number] = record
            continue
        own = [text for _, text in texts_of(record)]
        texts += own
        owners += [number] * len(own)
    for text, keys in index.search(texts).items():
        owner = owners[text]
        found.hits[owner] = np.union1d(found.hits[owner], keys) if owner in found.hits else keys
    return found


def sketch_block(block: Block, wanted: Sequence[int]) -> list[Any]:
    """MinHash sketches of some of a block's lines, of all their strings but the `id`; None of a blank one."""
    from megafuser.data.near_duplicates import sketch

    made: list[Any] = []
    for number in wanted:
        record = read_record(block, number)
        usable = record is not None and not isinstance(record, BadRecord)
        texts = "\n".join(text for name, text in texts_of(record) if name != "id") if usable else ""
        made.append(sketch(texts) if texts.strip() else None)
    return made


# A worker process's index: too large to send along with every block.
_index: NgramIndex | None = None


def start_worker(index: NgramIndex) -> None:
    """Takes what a worker process needs, once."""
    global _index
    _index = index


def search_in_worker(block: Block) -> Searched:
    """Searches a block in a worker process."""
    assert _index is not None
    return search_block(_index, block)
