"""Rows of a data set of the Hugging Face hub, or of a directory that `datasets` loads; none of its code runs.

Models of the hub are fetched by `conversion.hub`.
"""

from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from megafuser.config.data import SourceConfig
from megafuser.data.sources.records import Block
from megafuser.data.sources.table_columns import ROWS, needed_columns, table_blocks
from megafuser.errors import UserError, first_line, is_full_disk
from megafuser.extras import require


def read_dataset(source: SourceConfig, block_bytes: int) -> Iterator[Block]:
    """Reads the columns of a data set that samples are made of.

    Args:
        source: the data set.
        block_bytes: about what a block holds.

    Yields:
        Blocks of rows.

    Raises:
        UserError: `datasets` is not installed, or the data set does not load.
    """
    dataset = load_split(source)
    dataset = dataset.select_columns(needed_columns(dataset.column_names, source.fields))
    yield from table_blocks(str(source), dataset.with_format("arrow").iter(ROWS), block_bytes)


def dataset_hash(source: SourceConfig) -> str:
    """xxh3 of a data set's rows: the same whatever cache they lie in."""
    import xxhash

    digest = xxhash.xxh3_128()
    for batch in load_split(source).with_format("arrow").iter(1024):
        digest.update(str(batch.schema.remove_metadata()).encode())
        for record_batch in batch.to_batches():
            digest.update(record_batch.serialize())
    return digest.hexdigest()


def check_dataset(source: SourceConfig) -> None:
    """Refuses what can be told without a network: that the library is missing, or a directory.

    Raises:
        UserError: one of both.
    """
    _library(source)
    name = source.dataset or ""
    if name.startswith((".", "/", "~")) and not Path(name).is_dir():
        raise UserError(f"{source} is not a directory; give one that `datasets` loads, or ORG/NAME")


def load_split(source: SourceConfig) -> Any:
    """The rows of a data set's split, memory-mapped from the cache of `datasets`, to which they are fetched once.

    Raises:
        UserError: `datasets` is not installed, or the data set does not load.
    """
    return _load(_library(source), source.dataset, source.subset, source.files, source.split, source.revision)


def _library(source: SourceConfig) -> Any:
    require("datasets", f"data set {source}", otherwise="give files that are on this machine")
    import datasets

    return datasets


@lru_cache(maxsize=8)
def _load(
    datasets: Any, name: str, subset: str | None, files: tuple[str, ...], split: str, revision: str | None
) -> Any:
    told = f"data set {name}{f' ({subset})' if subset else ''}"
    try:
        return datasets.load_dataset(name, subset, data_files=list(files) or None, split=split, revision=revision)
    except Exception as error:
        # `datasets` raises errors of its own, of huggingface_hub, of httpx and of pyarrow, with no class in common.
        if isinstance(error, OSError) and is_full_disk(error):
            raise
        reason = first_line(error)
        if isinstance(error, ConnectionError) or "offline" in reason.lower():
            remedy = "check the network, or give files that are on this machine"
        else:
            remedy = "check `dataset`, `subset`, `split`, `files` and `revision`"
        raise UserError(f"{told} does not load ({reason}); {remedy}") from error
