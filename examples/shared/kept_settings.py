"""A run's settings in its output directory, which belongs to one set of them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from megafuser.errors import UserError
from megafuser.runtime.atomic import write_text_atomic


def keep_values(values: Mapping[str, Any], path: Path) -> None:
    """Writes settings.json, or compares with the one that is there.

    Raises:
        UserError: the output directory was made with other settings.
    """
    text = json.dumps(values, indent=2) + "\n"
    if path.exists():
        if path.read_text("utf-8") != text:
            there, here = read_values(path), json.loads(text)
            names = sorted(key for key in {*there, *here} if there.get(key) != here.get(key))
            raise UserError(
                f"{path.parent} was made with other settings ({', '.join(names)}); remove it or give another --out"
            )
        return
    write_text_atomic(path, text)


def read_values(path: Path) -> dict[str, Any]:
    """What `keep_values` wrote."""
    values: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return values
