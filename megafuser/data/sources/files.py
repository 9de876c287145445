"""Before anything is read: whether every source is there, how large it is, and what tells its contents from others.

Reading them is `data.sources.reading`.
"""

from collections.abc import Sequence
from pathlib import Path

import xxhash

from megafuser.config.data import DataConfig, SourceConfig
from megafuser.data.sources.formats import file_format, open_file
from megafuser.errors import UserError

_HASHED_AT_ONCE = 1 << 20


def check_sources(data: DataConfig, splits: Sequence[str] = ("train", "valid")) -> None:
    """Refuses missing, empty and unreadable sources of all domains, before hours go into the first of them.

    Args:
        data: what lists them.
        splits: of `train` and `valid`, those whose samples are wanted.

    Raises:
        UserError: the first such source, with the key that lists it.
    """
    for name, domain in data.domains.items():
        # what validates may be a part of the training samples
        for split in dict.fromkeys(split if domain.valid else "train" for split in splits):
            for index, source in enumerate(domain.sources(split)):
                try:
                    _check(source)
                except UserError as error:
                    raise UserError(f"{error}; correct data.domains.{name}.{split}.{index}") from None


def source_hash(source: SourceConfig) -> str:
    """xxh3 of a file's bytes as they are on the disk, or of a data set's rows.

    Args:
        source: any source; its field names do not count.

    Raises:
        UserError: it is missing or does not load.
    """
    if source.path is None:
        from megafuser.data.sources.hub import dataset_hash

        return dataset_hash(source)
    digest = xxhash.xxh3_128()
    with open_file(source.path) as (_, raw):
        while chunk := raw.read(_HASHED_AT_ONCE):
            digest.update(chunk)
    return digest.hexdigest()


def size_bytes(source: SourceConfig) -> int | None:
    """Bytes that the `bytes_read` of all blocks add up to; None of a data set.

    Raises:
        UserError: the file is missing.
    """
    if source.path is None:
        return None
    with open_file(source.path) as (_, raw):
        return raw.seek(0, 2)


def _check(source: SourceConfig) -> None:
    if source.path is None:
        from megafuser.data.sources.hub import check_dataset

        return check_dataset(source)
    if Path(source.path).is_dir():
        raise UserError(f"{source} is a directory; list its files, or give it as a `dataset`")
    if size_bytes(source) == 0:
        raise UserError(f"{source} is empty; it must hold samples")
    if file_format(source.path) == "parquet":
        from megafuser.data.sources.parquet import check_parquet

        check_parquet(source.path)
    return None
