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
            names = ", ".join(_differing({"": there}, {"": here}))
            raise UserError(f"{path.parent} was made with other settings ({names}); remove it or give another --out")
        return
    write_text_atomic(path, text)


def _differing(there: Mapping[str, Any], here: Mapping[str, Any], above: str = "") -> list[str]:
    """The dotted names of what is not the same text; of mappings, the order counts."""
    names = []
    for key in sorted({*there, *here}):
        left, right, name = there.get(key, ...), here.get(key, ...), f"{above}{key}"
        if isinstance(left, dict) and isinstance(right, dict):
            names += _differing(left, right, f"{name}." if name else "")
            if list(left) != list(right) and set(left) == set(right):
                names.append(f"order of {name or 'all'}")
        elif ... in (left, right) or json.dumps(left) != json.dumps(right):  # 1 is not 1.0, and null not absent
            names.append(name)
    return names


def read_values(path: Path) -> dict[str, Any]:
    """What `keep_values` wrote."""
    values: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return values
