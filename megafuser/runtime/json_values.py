"""Values as JSON has them, which knows no NaN and no infinity.

Files of JSON lines are `runtime.append_log` and `watching.json_lines`.
"""

import math
from collections.abc import Mapping
from typing import Any


def json_safe(value: Any) -> Any:
    """A value that JSON has: numbers that are none become null, what JSON does not know its text."""
    if isinstance(value, Mapping):
        return {str(key): json_safe(one) for key, one in value.items()}
    if isinstance(value, (list, tuple, set)):
        return [json_safe(one) for one in value]
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if hasattr(value, "item") and getattr(value, "ndim", 1) == 0:
        return json_safe(value.item())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return str(value)


def finite(line: Mapping[str, Any]) -> dict[str, Any]:
    """A line of numbers by name without those that are not finite: a reader has nothing to tell them by."""
    return {key: value for key, value in line.items() if not isinstance(value, float) or math.isfinite(value)}
