"""Files that are there as a whole or not at all, and JSON."""

import json
from pathlib import Path
from typing import Any

from megafuser.runtime.atomic import write_text_atomic


def write_by_rename(path: Path, text: str) -> None:
    """Writes a file that is never seen half written, and its directory."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text_atomic(path, text)


def kept_beside(output: Path) -> Path:
    """What a long training keeps until it has written `output`, to go on from after an interruption."""
    return output.with_name(f".{output.name}.kept")


def read_json(path: Path) -> Any:
    """A JSON file."""
    return json.loads(path.read_text("utf-8"))
