"""Tables of plain text: columns of one width, the first ones set left and the others right.

What stands in them is said by `planning.table`, `data.statistics_table` and others.
"""

from collections.abc import Sequence


def aligned(rows: Sequence[Sequence[str]], left: int = 1) -> list[str]:
    """Lines of a table.

    Args:
        rows: of equal length, a header among them.
        left: how many columns are set left.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if place < left else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
