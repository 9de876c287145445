"""Reading files of JSON lines that somebody may be writing to.

Such files are written by `watching.metrics_file` and `watching.events`.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def read_lines(path: Path, keys: Sequence[str] = ()) -> list[dict[str, Any]]:
    """The whole lines of a file, none where there is no file.

    What follows the last line break is being written, or a kill cut it. A line that is not a JSON object is left out.

    Args:
        path: the file.
        keys: that a line must have.
    """
    if not path.is_file():
        return []
    found = []
    for text in path.read_text(encoding="utf-8", errors="replace").split("\n")[:-1]:
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if isinstance(line, dict) and all(key in line for key in keys):
            found.append(line)
    return found
