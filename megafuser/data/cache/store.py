"""The files of one domain's tokenized samples.

    samples.arrow      record batches of ids, in Arrow's IPC format
    lengths.arrow      one batch: the samples' lengths, so that nothing else is read to draw and to pack
    statistics.json    what was counted

Source of the format: https://arrow.apache.org/docs/format/Columnar.html (IPC File Format).

The directory's name is `data.cache.key`; the samples in it are read by `data.tokenized`.
"""

import errno
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from megafuser.data.cache.key import cache_key
from megafuser.data.tokenized import TokenizedDomain, batch_lengths, batch_schema
from megafuser.errors import UserError, first_line
from megafuser.runtime.atomic import write_text_atomic

SAMPLES, LENGTHS, STATISTICS = "samples.arrow", "lengths.arrow", "statistics.json"

# What a file server, or whoever has made a cache, is asked about; making it again would not help.
_OF_THE_DISK = (
    *(errno.EACCES, errno.EPERM),
    *(errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN, errno.EHOSTDOWN),
    *(errno.EMFILE, errno.ENFILE, errno.ENOMEM),
)


class DamagedCache(Exception):
    """A cache that lacks a file, or has a part of one only."""


class CacheWriter:
    """Writes batches as they come, and what is known of all of them at the end."""

    def __init__(self, directory: Path, specialists: int) -> None:
        """Begins the samples' file in an existing, empty directory."""
        self._directory = directory
        self._file = pa.OSFile(str(directory / SAMPLES), "wb")
        self._writer = pa.ipc.new_file(self._file, batch_schema(specialists))
        # Twelve to twenty bytes a sample. A build holds little more of what it has written: see `_Counts`.
        self._lengths: list[np.ndarray] = [np.empty((0, specialists), dtype=np.int32)]
        self._responses: list[np.ndarray] = [np.empty(0, dtype=np.int32)]

    def write(self, batch: pa.RecordBatch) -> int:
        """Adds a batch; returns its number of samples."""
        if batch.num_rows:
            lengths, responses = batch_lengths(batch)
            self._writer.write_batch(batch)
            self._lengths.append(lengths)
            self._responses.append(responses)
        return int(batch.num_rows)

    def lengths(self) -> tuple[np.ndarray, np.ndarray]:
        """Of all samples so far: the views' `[N, K]`, and the responses' `[N]`."""
        return np.concatenate(self._lengths), np.concatenate(self._responses)

    def close(self, statistics: dict[str, Any] | None = None) -> None:
        """Completes the files; without statistics only closes them."""
        self._writer.close()
        self._file.close()
        if statistics is None:
            return
        views, responses = self.lengths()
        columns = [
            pa.FixedSizeListArray.from_arrays(pa.array(views.reshape(-1)), views.shape[1]),
            pa.array(responses),
        ]
        batch = pa.record_batch(columns, names=["views", "responses"])
        with pa.OSFile(str(self._directory / LENGTHS), "wb") as file, pa.ipc.new_file(file, batch.schema) as writer:
            writer.write_batch(batch)
        write_text_atomic(self._directory / STATISTICS, json.dumps(statistics, indent=1) + "\n")


def open_cache(directory: Path) -> TokenizedDomain:
    """Maps a cache into memory; its pages are read when samples are.

    Raises:
        DamagedCache: it is not complete.
        UserError: the disk does not give it, which says nothing of what it holds.
    """
    try:
        statistics = json.loads((directory / STATISTICS).read_text("utf-8"))
        samples = pa.ipc.open_file(pa.memory_map(str(directory / SAMPLES)))
        batches = [samples.get_batch(index) for index in range(samples.num_record_batches)]
        table = pa.ipc.open_file(pa.memory_map(str(directory / LENGTHS))).get_batch(0)
    except (OSError, ValueError, pa.ArrowException) as error:
        if isinstance(error, OSError) and error.errno in _OF_THE_DISK:
            raise UserError(
                f"{directory} cannot be read ({error.strerror}); look after the disk, or set data.cache_dir to another"
            ) from None
        raise DamagedCache(f"{directory} is damaged ({first_line(error)})") from error
    views = table.column("views")
    lengths = np.from_dlpack(views.values).reshape(len(views), -1)
    if not len(views) == sum(batch.num_rows for batch in batches) == statistics["samples"]:
        raise DamagedCache(f"{directory} is damaged (its files hold different numbers of samples)")
    return TokenizedDomain(
        statistics["domain"],
        batches,
        lengths=lengths,
        response_lengths=np.from_dlpack(table.column("responses")),
        source_sizes=tuple(source["kept"] for source in statistics["sources"]),
        refused=statistics["dropped"],
        statistics=statistics,
        key=cache_key(directory),
    )
