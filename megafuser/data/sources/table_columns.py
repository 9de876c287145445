"""What readers of tables share: only the columns that samples are made of, and blocks of about a megabyte.

The tables are read by `data.sources.parquet` and `data.sources.hub`.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from megafuser.config.data import FIELDS
from megafuser.data.sources.records import Block

ROWS = 64  # read at once; few enough that long chats stay far below a block's memory


def needed_columns(there: Sequence[str], fields: Mapping[str, str]) -> list[str]:
    """The columns that samples are made of; all of them where those are too few, so that messages can name them.

    Args:
        there: the table's columns.
        fields: names of the fields in this source, where they are not ours.
    """
    names = {name: fields.get(name, name) for name in FIELDS}
    found = [column for column in there if column in names.values()]
    complete = names["messages"] in found or (names["instruction"] in found and names["response"] in found)
    return found if complete else list(there)


def table_blocks(
    name: str, batches: Iterable[Any], block_bytes: int, bytes_per_row: float | None = None
) -> Iterator[Block]:
    """Blocks of a table's rows.

    Args:
        name: the source, as messages name it.
        batches: Arrow tables or record batches.
        block_bytes: about what a block holds.
        bytes_per_row: what a row stands for in `bytes_read`; the size of its contents where it is not given.

    Yields:
        Blocks; where the batches end in an error, what there was before it comes first.
    """
    rows: list[Any] = []
    number, held = 1, 0

    def block() -> Block:
        if bytes_per_row is None:
            return Block(name, number, rows, "row", held)
        before, behind = number - 1, number - 1 + len(rows)
        return Block(name, number, rows, "row", round(behind * bytes_per_row) - round(before * bytes_per_row))

    try:
        for batch in batches:
            rows.extend(batch.to_pylist())
            held += batch.nbytes
            if held >= block_bytes:
                yield block()
                number, held, rows = number + len(rows), 0, []
    except Exception:
        if rows:
            yield block()  # what was read before the damage
        raise
    if rows:
        yield block()
