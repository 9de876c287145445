"""Prints the table of layouts of docs/layouts.md: `-m tests.parallel.layout_table TABLE.json`.

The slow test of `test_layout_table` writes the file: by layout and `SET STAGE DTYPE`, the largest relative difference
of a loss or a gradient norm from one rank's.
"""

import json
import sys
from pathlib import Path

from tests.parallel.layout_cases import LAYOUTS, SETS

DTYPES = ("fp32", "bf16")


def to_markdown(table: dict[str, dict[str, float]]) -> str:
    """A line a layout, a column for each format and set: the larger of the two stages' differences."""
    columns = [(dtype, specialists) for dtype in DTYPES for specialists in SETS]
    lines = [
        "| layout | ranks | " + " | ".join(f"{dtype} {specialists}" for dtype, specialists in columns) + " |",
        "|---|---|" + "---|" * len(columns),
    ]
    for name, differences in table.items():
        cells = [_cell(differences, dtype, specialists) for dtype, specialists in columns]
        lines.append(f"| {name} | {LAYOUTS[name].world} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(differences: dict[str, float], dtype: str, specialists: str) -> str:
    found = [value for run, value in differences.items() if run.startswith(f"{specialists} ") and run.endswith(dtype)]
    return f"{max(found):.0e}" if found else "–"


if __name__ == "__main__":
    print(to_markdown(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))))
