"""What a worker does: one block of a source to a record batch of ids, and what is to be told of it.

The processes are `data.workers`; what comes back is counted and written by `data.cache.building`.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import xxhash

from megafuser.data.cache.key import Task
from megafuser.data.sources.records import BadRecord, Block
from megafuser.data.sources.samples import Sample, parse_block
from megafuser.data.sources.split import in_valid
from megafuser.data.tokenization import Encoder
from megafuser.data.tokenized import make_batch


@dataclass
class EncodedBlock:
    """A block's samples, and what became of the others.

    Attributes:
        batch: the kept samples, as Arrow's stream bytes.
        named: of the kept samples, hashes `[n]` uint64 of the identities that lines have themselves; 0 without one.
        contents: hashes `[n]` uint64 of what the kept samples say.
        places: of the kept samples.
        items: samples of either split and bad lines.
        read: samples of this split, kept or not.
        bad: lines that cannot be used.
        refused: samples that cannot be fused over, as (reason, place).
        truncated: `[n]` bool: which of the kept samples were cut.
        spelled_out: `[n]` bool: which of them have a text that spells out a control token, which stays text.
    """

    batch: bytes
    named: np.ndarray
    contents: np.ndarray
    places: list[str]
    truncated: np.ndarray
    spelled_out: np.ndarray
    items: int = 0
    read: int = 0
    bad: list[BadRecord] = field(default_factory=list)
    refused: list[tuple[str, str]] = field(default_factory=list)

    def read_batch(self) -> pa.RecordBatch:
        """The kept samples."""
        return pa.ipc.open_stream(self.batch).read_next_batch()


class BlockEncoder:
    """Encodes blocks, in this process."""

    def __init__(self, task: Task, tokenizers: Sequence[Any]) -> None:
        """Makes the templates.

        Raises:
            UserError: one does not work.
        """
        self.task = task
        self._encoder = Encoder(task.encoder, tokenizers)

    def encode(self, block: Block, fields: Mapping[str, str]) -> EncodedBlock:
        """Parses and encodes a block; `fields` are the names of the source's fields."""
        parsed = parse_block(block, fields)
        samples = [one for one in parsed if isinstance(one, Sample) and self._is_kept(one)]
        encoded = self._encoder.encode(samples)
        order = {one.where: index for index, one in enumerate(parsed)}
        batch = make_batch([sample.id for sample in encoded.samples], encoded.prompts, encoded.responses)
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, batch.schema) as writer:
            writer.write_batch(batch)
        return EncodedBlock(
            batch=sink.getvalue().to_pybytes(),
            named=np.array([_hash(sample.id) if sample.named else 0 for sample in encoded.samples], dtype=np.uint64),
            contents=np.array([_hash(repr((sample.system, sample.turns))) for sample in encoded.samples], np.uint64),
            places=[sample.where for sample in encoded.samples],
            items=len(parsed),
            read=len(samples),
            bad=sorted(
                [*(one for one in parsed if isinstance(one, BadRecord)), *encoded.failed],
                key=lambda bad: order[bad.where],
            ),
            refused=encoded.refused,
            truncated=_among(encoded.samples, encoded.truncated),
            spelled_out=_among(encoded.samples, encoded.spelled_out),
        )

    def _is_kept(self, sample: Sample) -> bool:
        keep = self.task.keep
        return keep == "all" or in_valid(sample, self.task.valid_fraction) == (keep == "valid")


def _among(samples: Sequence[Sample], places: Collection[str]) -> np.ndarray:
    """Which of the samples are at one of the places, `[n]` bool."""
    return np.array([sample.where in places for sample in samples], dtype=bool)


def _hash(text: str) -> int:
    return xxhash.xxh3_64_intdigest(text.encode())


# A worker process's encoder: tokenizers are too large to send along with every block.
_encoder: BlockEncoder | None = None


def start_worker(task: Task, tokenizers: Sequence[Any]) -> None:
    """Takes what a worker process needs, once.

    The tokenizers come as they are: loading them again would import torch, 130 MiB that no worker has a use for.
    """
    global _encoder
    _encoder = BlockEncoder(task, tokenizers)


def encode_in_worker(block: Block, fields: Mapping[str, str]) -> EncodedBlock:
    """Encodes a block in a worker process."""
    assert _encoder is not None
    return _encoder.encode(block, fields)
