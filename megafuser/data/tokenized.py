"""Tokenized samples in Arrow record batches, memory-mapped from a cache or in memory: K prompts, one shared response.

Nothing here grows by a Python object for each sample: ids stay in Arrow's buffers, and a sample's are views of them.
The files of a cache are `data.cache.store`; rows are made of samples by `data.row_building`.
"""

from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa

# The ids of each turn of a sample.
_TURNS = pa.list_(pa.list_(pa.int32()))


def batch_schema(specialists: int) -> pa.Schema:
    """Columns of a batch for K `specialists`: the samples' identities, their responses, and K prompts a turn."""
    prompts = [pa.field(f"prompts_{index}", _TURNS, nullable=False) for index in range(specialists)]
    return pa.schema([pa.field("id", pa.string(), nullable=False), pa.field("responses", _TURNS, False), *prompts])


def make_batch(
    sample_ids: Sequence[str],
    prompts: Sequence[Sequence[Sequence[Sequence[int]]]],
    responses: Sequence[Sequence[Sequence[int]]],
) -> pa.RecordBatch:
    """Puts n samples into a batch.

    Args:
        sample_ids: n identities.
        prompts: of each specialist, by sample and turn, the prompt's ids.
        responses: by sample and turn, the response's ids.
    """
    columns = [pa.array(sample_ids, pa.string()), _turns(responses), *map(_turns, prompts)]
    return pa.record_batch(columns, schema=batch_schema(len(prompts)))


class _Turns:
    """A column of lists of lists of ids, without a copy."""

    def __init__(self, column: pa.ListArray) -> None:
        turns = column.values
        # `to_numpy` would import pandas, if it is there, to ask whether the array is one of its own
        self.samples: np.ndarray = np.from_dlpack(column.offsets)
        self.turns: np.ndarray = np.from_dlpack(turns.offsets)
        self.ids: np.ndarray = np.from_dlpack(turns.values)

    def __getitem__(self, row: int) -> list[np.ndarray]:
        turns = range(int(self.samples[row]), int(self.samples[row + 1]))
        return [self.ids[self.turns[turn] : self.turns[turn + 1]] for turn in turns]

    def lengths(self) -> np.ndarray:
        """Ids of all turns of each sample, `[n]` int32."""
        return np.diff(self.turns[self.samples]).astype(np.int32)


class _Batch:
    """A record batch's columns as arrays."""

    def __init__(self, batch: pa.RecordBatch) -> None:
        self.ids = batch.column("id")
        self.responses = _Turns(batch.column("responses"))
        names = [name for name in batch.schema.names if name.startswith("prompts_")]
        self.prompts = [_Turns(batch.column(name)) for name in names]


class TokenizedDomain:
    """One domain's samples of one split, N samples for K specialists.

    Attributes:
        name: the domain.
        lengths: `[N, K]` int32, full length of each view: prompts and responses of all turns, end ids included.
        response_lengths: `[N]` int32, response tokens T of all turns, end ids included.
        source_sizes: samples of each source, in the order of the configuration and of the samples.
        statistics: what was counted while the samples were made; empty for samples made in memory.
        refused: samples left out, by reason.
        key: of what the samples depend on, where they are from a cache; else empty.
    """

    def __init__(
        self,
        name: str,
        batches: Iterable[pa.RecordBatch],
        *,
        lengths: np.ndarray,
        response_lengths: np.ndarray,
        source_sizes: tuple[int, ...],
        refused: dict[str, int],
        statistics: dict[str, Any] | None = None,
        key: str = "",
    ) -> None:
        """Takes batches as `make_batch` makes them, and what is known of all of their samples."""
        self.name = name
        self.lengths = lengths
        self.response_lengths = response_lengths
        self.source_sizes = source_sizes
        self.refused = refused
        self.statistics = statistics or {}
        self.key = key
        self._batches = [_Batch(batch) for batch in batches]
        sizes = [len(batch.ids) for batch in self._batches]
        self._starts = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])

    @classmethod
    def in_memory(
        cls, name: str, batches: Sequence[pa.RecordBatch], refused: dict[str, int] | None = None
    ) -> "TokenizedDomain":
        """A domain of at least one batch that no cache holds."""
        counted = [batch_lengths(batch) for batch in batches]
        lengths, response_lengths = (np.concatenate(parts) for parts in zip(*counted, strict=True))
        return cls(
            name,
            batches,
            lengths=lengths,
            response_lengths=response_lengths,
            source_sizes=(len(lengths),),
            refused=refused or {},
        )

    def __len__(self) -> int:
        """Number of samples, N."""
        return len(self.lengths)

    def sample_id(self, sample: int) -> str:
        """Identity of a sample, as its source gives it."""
        batch, row = self._locate(sample)
        return str(batch.ids[row].as_py())

    def turns(self, sample: int, specialist: int) -> list[tuple[np.ndarray, np.ndarray]]:
        """The (prompt, response) ids of each turn, as one specialist sees them."""
        batch, row = self._locate(sample)
        return list(zip(batch.prompts[specialist][row], batch.responses[row], strict=True))

    def view(self, sample: int, specialist: int) -> tuple[np.ndarray, np.ndarray]:
        """One sample as one specialist sees it.

        Returns:
            Input ids `[L_k]` int32, and the positions `[T]` int32 that predict the response tokens: the last prompt
            position predicts the first of them.
        """
        ids, positions = [], []
        length = 0
        for prompt, response in self.turns(sample, specialist):
            ids += [prompt, response]
            start = length + len(prompt) - 1
            positions.append(np.arange(start, start + len(response), dtype=np.int32))
            length += len(prompt) + len(response)
        return np.concatenate(ids), np.concatenate(positions)

    def targets(self, sample: int) -> np.ndarray:
        """Response ids `[T]` int32 of all turns, the end id of each included."""
        batch, row = self._locate(sample)
        return np.concatenate(batch.responses[row])

    def _locate(self, sample: int) -> tuple[_Batch, int]:
        if not 0 <= sample < len(self):
            raise IndexError(f"domain {self.name} has {len(self)} samples, none of number {sample}")
        index = int(np.searchsorted(self._starts, sample, side="right")) - 1
        return self._batches[index], int(sample - self._starts[index])


def sample_keys(train: Sequence[TokenizedDomain], valid: Sequence[TokenizedDomain]) -> dict[str, dict[str, str]]:
    """Domain → split → key: which samples a run is of."""
    keys = {domain.name: {"train": domain.key} for domain in train}
    for domain in valid:
        keys.setdefault(domain.name, {})["valid"] = domain.key
    return keys


def batch_lengths(batch: pa.RecordBatch) -> tuple[np.ndarray, np.ndarray]:
    """Lengths of a batch's samples: of the K views `[n, K]`, and of the responses `[n]`, int32."""
    columns = _Batch(batch)
    responses = columns.responses.lengths()
    return np.stack([column.lengths() for column in columns.prompts], axis=1) + responses[:, None], responses


def _turns(samples: Sequence[Sequence[Sequence[int]]]) -> pa.ListArray:
    """Lists of lists of ids; by way of flat arrays, since Arrow's own conversion takes several times as long."""
    turns = list(chain.from_iterable(samples))
    ids = np.fromiter(chain.from_iterable(turns), dtype=np.int32, count=sum(map(len, turns)))
    inner = pa.ListArray.from_arrays(_offsets(map(len, turns)), pa.array(ids))
    return pa.ListArray.from_arrays(_offsets(map(len, samples)), inner)


def _offsets(lengths: Iterable[int]) -> pa.Int32Array:
    return pa.array(np.concatenate([[0], np.cumsum(list(lengths), dtype=np.int64)]).astype(np.int32))
