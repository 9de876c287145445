"""Rows of a Parquet file, a few at a time.

Which columns are needed is `data.sources.table_columns`.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from megafuser.data.sources.formats import open_file
from megafuser.data.sources.records import BadRecord, Block, place
from megafuser.data.sources.table_columns import ROWS, needed_columns, table_blocks
from megafuser.errors import UserError, first_line


def read_parquet(path: str, fields: Mapping[str, str], block_bytes: int) -> Iterator[Block | BadRecord]:
    """Reads the columns of a Parquet file that samples are made of.

    Args:
        path: the file.
        fields: names of the fields in it, where they are not ours.
        block_bytes: about what a block holds.

    Yields:
        Blocks of rows; a `BadRecord` where the file is damaged, behind which nothing is read.

    Raises:
        UserError: the file cannot be opened.
    """
    import pyarrow
    from pyarrow.parquet import ParquetFile

    with open_file(path) as (contents, _):
        read = 0

        def batches(file: ParquetFile) -> Iterator[Any]:
            nonlocal read
            columns = needed_columns(file.schema_arrow.names, fields)
            # One group after the other: a reader of all of them loses whole rows before the damaged one.
            for group in range(file.num_row_groups):
                for batch in file.iter_batches(ROWS, row_groups=[group], columns=columns, use_threads=False):
                    yield batch
                    read += batch.num_rows

        try:
            file = ParquetFile(contents, pre_buffer=False)
            bytes_per_row = Path(path).stat().st_size / max(1, file.metadata.num_rows)
            yield from table_blocks(path, batches(file), block_bytes, bytes_per_row)
        except (pyarrow.ArrowException, OSError) as error:
            problem = f"the Parquet file is damaged ({first_line(error)}); nothing behind it is read; fetch it again"
            yield BadRecord(place(path, "row", read + 1), problem, "damaged Parquet")


def check_parquet(path: str) -> None:
    """Reads a Parquet file's footer, without which nothing of it can be read.

    Raises:
        UserError: it has none.
    """
    import pyarrow
    from pyarrow.parquet import ParquetFile

    with open_file(path) as (contents, _):
        try:
            ParquetFile(contents)
        except (pyarrow.ArrowException, OSError) as error:
            raise UserError(f"{path} is damaged, or no Parquet file ({first_line(error)})") from None
