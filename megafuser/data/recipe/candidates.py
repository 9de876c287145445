"""The first half of a build: rows of the data sets become candidates, which wait in a file until they are drawn.

Drawing them is `data.recipe.build`.
"""

import json
import re
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import xxhash

from megafuser.data.recipe.config import Lengths, RecipeDomain, RecipeSource
from megafuser.data.scratch_file import ScratchFile
from megafuser.data.sources.records import BadRecord
from megafuser.data.sources.samples import Sample

Record = dict[str, Any]


class Spill(ScratchFile):
    """Candidates of one domain, in a file; memory holds twenty-four bytes for each."""

    def __init__(self, path: Path, seed: int) -> None:
        """Opens a fresh file.

        Args:
            path: where it may be.
            seed: of the draw.
        """
        super().__init__(path)
        self._seed = seed
        self._keys, self._offsets = array("Q"), array("Q")
        self._sources = array("Q")

    def __len__(self) -> int:
        """How many candidates wait."""
        return len(self._keys)

    def add(self, record: Record, source: int) -> None:
        """Takes one in; `source` is the number of its data set in the recipe."""
        self._keys.append(xxhash.xxh3_64_intdigest(record["id"].encode(), self._seed))
        self._offsets.append(self._file.tell())
        self._sources.append(source)
        self._file.write(json.dumps(record, ensure_ascii=False).encode() + b"\n")

    def drawn(self) -> Iterator[tuple[int, Record]]:
        """All of them with their data set's number, in an order that depends on the seed and each one's id alone."""
        for index in sorted(range(len(self)), key=lambda one: (self._keys[one], one)):
            self._file.seek(self._offsets[index])
            yield self._sources[index], json.loads(self._file.readline())


class Filter:
    """Decides which rows of one data set are candidates, and counts why others are not.

    Attributes:
        counts: rows by what became of them.
        bad: rows that make no sample, by kind.
    """

    def __init__(self, source: RecipeSource, domain: RecipeDomain, seen: set[bytes]) -> None:
        """Remembers the rules.

        Args:
            source: the data set.
            domain: what it is for.
            seen: digests of the samples so far; a copy of one is left out.
        """
        self._turns = source.turns
        self._columns = [(column, re.compile(text), True) for column, text in source.columns.items()]
        self._columns += [(column, re.compile(text), False) for column, text in source.not_columns.items()]
        self._lengths = domain.lengths
        self._reject = [re.compile(pattern) for pattern in domain.reject]
        self._seen = seen
        self.counts: Counter[str] = Counter()
        self.bad: Counter[str] = Counter()

    def candidate(self, row: dict[str, Any], parsed: Sample | BadRecord) -> Sample | None:
        """The sample as it is used, or none.

        Args:
            row: the row itself, for its other columns.
            parsed: what the parser made of it.
        """
        self.counts["read"] += 1
        if not all(bool(pattern.search(str(row[column]))) == kept for column, pattern, kept in self._columns):
            self.counts["filtered by column"] += 1
            return None
        if isinstance(parsed, BadRecord):
            self.counts["unusable"] += 1
            self.bad[parsed.kind] += 1
            return None
        turns = parsed.turns[:1] if self._turns == "first" else parsed.turns
        sample = Sample(turns, parsed.system, parsed.id, parsed.where, parsed.named)
        if not within(self._lengths, sample):
            self.counts["filtered by length"] += 1
        elif any(pattern.search(text) for pattern in self._reject for text in texts(sample)):
            self.counts["filtered by pattern"] += 1
        elif (digest := content(sample)) in self._seen:
            self.counts["duplicates"] += 1
        else:
            self._seen.add(digest)
            return sample
        return None


def texts(sample: Sample) -> list[str]:
    """Every text of a sample: system prompt, instructions and responses."""
    return [*([sample.system] if sample.system else []), *(text for turn in sample.turns for text in turn)]


def within(lengths: Lengths, sample: Sample) -> bool:
    """Whether a sample's lengths are within the bounds."""
    whole = sum(map(len, texts(sample)))
    responses = sum(len(response) for _, response in sample.turns)
    return lengths.min_characters <= whole <= (
        lengths.max_characters or whole
    ) and lengths.min_response_characters <= responses <= (lengths.max_response_characters or responses)


def content(sample: Sample) -> bytes:
    """The same for samples whose texts differ by white space alone."""
    parts: Sequence[str] = [sample.system or "", *(text for turn in sample.turns for text in turn)]
    return xxhash.xxh3_128_digest(json.dumps([" ".join(part.split()) for part in parts]).encode())


def as_record(sample: Sample, identity: str, source: RecipeSource) -> Record:
    """The line that a sample becomes."""
    head = {"id": identity, "source": source.dataset, "license": source.license}
    if len(sample.turns) == 1 and sample.system is None:
        instruction, response = sample.turns[0]
        return {**head, "instruction": instruction, "response": response}
    messages = [{"role": "system", "content": sample.system}] if sample.system else []
    for instruction, response in sample.turns:
        messages += [{"role": "user", "content": instruction}, {"role": "assistant", "content": response}]
    return {**head, "messages": messages}


def record_texts(record: Record) -> list[str]:
    """Every text of a line."""
    if "messages" in record:
        return [message["content"] for message in record["messages"]]
    return [record["instruction"], record["response"]]


def first_instruction(record: Record) -> Sample:
    """What the split looks at: a sample of the line's first turn."""
    parts = record_texts(record)
    start = 1 if "messages" in record and record["messages"][0]["role"] == "system" else 0
    return Sample(((parts[start], parts[start + 1]),), None, record["id"])
