"""Makes a cache: blocks go to worker processes, their samples come back in order and are written as they come.

Whether one must be made, and where it lies, is decided by `data.cache.loading`.
"""

import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from tqdm import tqdm

from megafuser.data.cache.blocks import BlockEncoder, EncodedBlock, encode_in_worker, start_worker
from megafuser.data.cache.key import Task
from megafuser.data.cache.store import CacheWriter
from megafuser.data.sources.files import size_bytes
from megafuser.data.sources.reading import read_blocks
from megafuser.data.sources.records import BadRecord, Block
from megafuser.data.workers import available_cores, in_order, worker_pool
from megafuser.errors import UserError

logger = logging.getLogger(__name__)

# Starting a process and loading tokenizers there takes seconds, in which one process encodes some megabytes.
_ALONE_BYTES = 8 << 20
# Less than readers give by default: a block's ids are held as Python's integers for a moment, K + 1 times.
_BLOCK_BYTES = 1 << 18
_EXAMPLES = 5
SPELLED_OUT = "spells out a control token, kept as text"
_HISTOGRAM_BINS = 32


def build(task: Task, tokenizers: Mapping[str, Any], directory: Path, workers: int | None) -> None:
    """Reads, tokenizes and writes all samples of a task.

    Args:
        task: what is to be made.
        tokenizers: by specialist.
        directory: an existing, empty directory.
        workers: processes; None: as many as there are cores. Small sources are encoded in this one.

    Raises:
        UserError: a line cannot be used and `task.on_error` is `stop`, or no sample is left.
    """
    sizes = [size_bytes(source) for source in task.sources]
    writer = CacheWriter(directory, len(task.specialists))
    counts = _Counts(task)
    known = None if None in sizes else sum(size or 0 for size in sizes)
    small = known is not None and known < _ALONE_BYTES
    count = 1 if small else workers or available_cores()
    name = f"{task.domain} {task.split}"
    bar = tqdm(total=known, unit="B", unit_scale=True, desc=name, disable=True if small else None)
    alone = BlockEncoder(task, list(tokenizers.values())) if count == 1 else None
    try:
        with (
            bar,
            worker_pool(
                count,
                alone.encode if alone else encode_in_worker,
                encode_in_worker,
                start_worker,
                (task, list(tokenizers.values())),
            ) as encode,
        ):

            def submit(item: tuple[int, Block | BadRecord]) -> "Future[EncodedBlock] | None":
                index, block = item
                return None if isinstance(block, BadRecord) else encode(block, task.sources[index].fields)

            for (index, block), result in in_order(_blocks(task), submit, count):
                if isinstance(block, BadRecord):
                    counts.add_bad(index, [block])
                else:
                    bar.update(block.bytes_read)
                    assert result is not None
                    counts.add(index, result, writer)
        counts.refuse_empty_sources()
    except BaseException:
        writer.close()
        raise
    statistics = counts.statistics(*writer.lengths())
    if not statistics["samples"]:
        writer.close()
        told = ", ".join(f"{count} ({reason})" for reason, count in (counts.dropped + counts.bad).items())
        where = f"data.domains.{task.domain}"
        reason = f": {told}" if told else ", the share that is kept apart for validation is too small for it"
        raise UserError(f"no {task.split} sample of domain {task.domain} is left{reason}; correct {where}")
    writer.close(statistics)


def _blocks(task: Task) -> Iterator[tuple[int, Block | BadRecord]]:
    """Everything that is read, with its source's number."""
    for index, source in enumerate(task.sources):
        for block in read_blocks(source, block_bytes=_BLOCK_BYTES):
            yield index, block


class _Counts:
    """What is found on the way, and what stops it."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.items = [0] * len(task.sources)
        self.read = [0] * len(task.sources)
        self.kept = [0] * len(task.sources)
        self.truncated = 0
        self.spelled_out = 0
        self.dropped: Counter[str] = Counter()
        self.bad: Counter[str] = Counter()
        self.examples: dict[str, list[str]] = {}
        self._identities: set[int] = set()
        self._contents: list[np.ndarray] = []

    def add(self, index: int, found: EncodedBlock, writer: CacheWriter) -> None:
        """Counts a block of source `index` and writes its samples."""
        batch, unique = found.read_batch(), self._unique(found)
        if not unique.all():
            twice = np.flatnonzero(~unique)
            ids = batch.column("id")
            found.bad += [
                BadRecord(
                    found.places[row],
                    f"the id {ids[row].as_py()!r} was used before in this domain; give every sample an id of its own",
                    "duplicate id",
                )
                for row in twice
            ]
            batch = batch.filter(pa.array(unique))
        self.add_bad(index, sorted(found.bad, key=lambda bad: bad.number))
        self.items[index] += found.items
        self.read[index] += found.read
        self.truncated += int((found.truncated & unique).sum())
        for row in np.flatnonzero(found.spelled_out & unique):
            self.spelled_out += 1
            self._example(SPELLED_OUT, found.places[row])
        for reason, place in found.refused:
            self.dropped[reason] += 1
            self._example(reason, place)
        self._contents.append(found.contents[unique])
        self.kept[index] += writer.write(batch)

    def add_bad(self, index: int, bad: Sequence[BadRecord]) -> None:
        """Counts lines that cannot be used, or stops at the first of them."""
        self.items[index] += len(bad)
        for one in bad:
            if self.task.on_error == "stop":
                raise UserError(f"{one}, or set data.on_error=skip")
            if one.kind not in self.bad:
                logger.warning("skipped: %s", one)
            self.bad[one.kind] += 1
            self._example(one.kind, one.where)

    def refuse_empty_sources(self) -> None:
        """Refuses a source of blank lines only, say, which is a mistake wherever it stands."""
        for source, items in zip(self.task.sources, self.items, strict=True):
            if not items:
                raise UserError(f"{source} is empty; it must hold samples; correct data.domains.{self.task.domain}")

    def statistics(self, lengths: np.ndarray, responses: np.ndarray) -> dict[str, Any]:
        """Everything that was counted, with what the lengths `[N, K]` and `[N]` tell."""
        contents = np.concatenate(self._contents) if self._contents else np.empty(0, np.uint64)
        edges = np.linspace(0, self.task.encoder.limit, _HISTOGRAM_BINS + 1).astype(int)
        names = self.task.specialists
        return {
            "domain": self.task.domain,
            "split": self.task.split,
            "samples": len(responses),
            "read": sum(self.read),
            "duplicates": len(contents) - len(np.unique(contents)),
            "tokens": {name: int(lengths[:, k].sum()) for k, name in enumerate(names)},
            "response_tokens": int(responses.sum()),
            "longest_view_tokens": int(lengths.max(axis=1).sum()) if len(lengths) else 0,
            "dropped": dict(self.dropped),
            "bad": dict(self.bad),
            "truncated": self.truncated,
            "spelled_out": self.spelled_out,
            "examples": self.examples,
            "sources": [
                {"name": str(source), "read": read, "kept": kept, "weight": source.weight}
                for source, read, kept in zip(self.task.sources, self.read, self.kept, strict=True)
            ],
            "lengths": {
                "edges": edges.tolist(),
                "views": {name: np.histogram(lengths[:, k], edges)[0].tolist() for k, name in enumerate(names)},
                "responses": np.histogram(responses, edges)[0].tolist(),
            },
        }

    def _unique(self, found: EncodedBlock) -> np.ndarray:
        """Which samples `[n]` have no identity that an earlier one had."""
        unique = np.ones(len(found.named), dtype=bool)
        for row in np.flatnonzero(found.named):
            identity = int(found.named[row])
            unique[row] = identity not in self._identities
            self._identities.add(identity)
        return unique

    def _example(self, kind: str, place: str) -> None:
        places = self.examples.setdefault(kind, [])
        if len(places) < _EXAMPLES:
            places.append(place)
