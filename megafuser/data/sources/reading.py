"""Any source, read in blocks: chooses the reader by the kind of source and file.

Making samples of the blocks is `data.sources.samples`.
"""

from collections.abc import Iterator

from megafuser.config.data import SourceConfig
from megafuser.data.sources.records import BadRecord, Block

BLOCK_BYTES = 1 << 20


def read_blocks(source: SourceConfig, *, block_bytes: int = BLOCK_BYTES) -> Iterator[Block | BadRecord]:
    """Reads a source in bounded memory, in order.

    Args:
        source: a file or a data set.
        block_bytes: about what a block holds.

    Yields:
        Blocks, and between them what could not be read at all: a line beyond `LONGEST_RECORD`, the rest of a damaged
        file.

    Raises:
        UserError: the source is missing or cannot be opened.
    """
    # Each reader brings a library of its own.
    if source.path is None:
        from megafuser.data.sources.hub import read_dataset

        return read_dataset(source, block_bytes)
    from megafuser.data.sources.formats import file_format

    match file_format(source.path):
        case "parquet":
            from megafuser.data.sources.parquet import read_parquet

            return read_parquet(source.path, source.fields, block_bytes)
        case "array":
            from megafuser.data.sources.arrays import read_array

            return read_array(source.path, block_bytes)
        case "jsonl":
            from megafuser.data.sources.jsonl import read_lines

            return read_lines(source.path, block_bytes)
