"""What every section of the configuration is made with: strictness, checks of single values, and their messages.

pydantic's own errors are put into words by `config.error_messages`.
"""

import difflib
import math
import re
from collections.abc import Iterable
from typing import Any, ClassVar

_SAFE_NAME = re.compile(r"[A-Za-z0-9_.-]+")


class InvalidValue(ValueError):
    """An impossible value.

    Attributes:
        key: the key's dotted name, below the dataclass that raises.
        problem: what is wrong, and what would be right.
    """

    def __init__(self, key: str, problem: str) -> None:
        """Keeps both parts, so that the loader can put the path of the dataclass in front of the key."""
        super().__init__(f"{key}: {problem}")
        self.key = key
        self.problem = problem


def closest(name: str, names: Iterable[str]) -> str | None:
    """Which of some names is most like the one that the user wrote; None where none is like it."""
    return next(iter(difflib.get_close_matches(name, list(names), n=1)), None)


def nearest(name: str, valid: Iterable[str], above: str = "", otherwise: str | None = None) -> str:
    """What to say about a name that is none of the valid ones: the nearest, or all of them.

    Args:
        name: what the user wrote.
        valid: what could have been meant.
        above: dotted key that the names stand below.
        otherwise: what to say where none is like it, in place of all: where there are too many.
    """
    prefix = f"{above}." if above else ""
    close = closest(name, valid := list(valid))
    if close is not None:
        return f"the nearest valid one is {prefix + close!r}"
    return otherwise or f"valid are {', '.join(prefix + item for item in valid)}"


def yaml_key(field_name: str) -> str:
    """The YAML key of a dataclass's field."""
    return field_name.rstrip("_")


class Strict:
    """How pydantic builds these dataclasses: it converts no types, refuses unknown keys, NaN and infinity."""

    __pydantic_config__: ClassVar[Any] = {
        "strict": True,
        "extra": "forbid",
        "allow_inf_nan": False,
        "alias_generator": yaml_key,
    }


def at_least(key: str, value: float, least: float) -> None:
    """Refuses a number below `least`, NaN and infinity."""
    # Not `value < least`, which NaN would pass.
    if not (value >= least and math.isfinite(value)):
        raise InvalidValue(key, f"must be at least {least}, not {value}")


def not_empty(key: str, text: str | None) -> None:
    """Refuses text of nothing but spaces."""
    if text is not None and not text.strip():
        raise InvalidValue(key, "must not be empty")


def is_safe_name(name: str) -> bool:
    """Whether a name can be part of a file's or a metric's name."""
    return _SAFE_NAME.fullmatch(name) is not None and name not in (".", "..")


def safe_name(key: str, name: str) -> None:
    """Refuses a name that cannot be part of a file's or a metric's name, and says one that can."""
    if not is_safe_name(name):
        safe = re.sub(r"[^A-Za-z0-9_.-]+", "-", name).strip("-.") or "name"
        problem = f"{name!r} cannot name files and metrics; use letters, digits, '_', '.' and '-' only, e.g. {safe!r}"
        raise InvalidValue(key, problem)
