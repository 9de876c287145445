"""What is wrong with a configuration, in words: keys checked against the dataclasses, pydantic's errors translated.

It raises nothing: `config.load`, `data.recipe.load` and `serving.body_parsing` do.
"""

import dataclasses
import types
import typing
from collections.abc import Sequence
from typing import Any

from megafuser.config.schema import RunConfig
from megafuser.config.values import InvalidValue, nearest, yaml_key

_SHOWN_CHARACTERS = 60
_SHOWN_BITS = 190

_EXPECTED = {
    "int_type": "an integer",
    "int_from_float": "an integer",
    "float_type": "a number",
    "string_type": "text",
    "bool_type": "true or false",
    "tuple_type": "a list",
    "dict_type": "a mapping",
    "dataclass_type": "a mapping",
    "finite_number": "a finite number",
    "list_type": "a list",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
    "none_required": "null",
}
_BOUNDS = {
    "greater_than": ("above", "gt"),
    "greater_than_equal": ("at least", "ge"),
    "less_than": ("below", "lt"),
    "less_than_equal": ("at most", "le"),
}
_EMPTINESS = {("at least", 1): "must not be empty", ("at most", 0): "must be empty"}
_SHOWN_CHOICES = {"False": "false", "True": "true"}
_LENGTHS = {
    "too_short": ("at least", "min_length", "items"),
    "too_long": ("at most", "max_length", "items"),
    "string_too_short": ("at least", "min_length", "characters"),
    "string_too_long": ("at most", "max_length", "characters"),
}


def key_problem(parts: Sequence[str], root: Any = RunConfig) -> str | None:
    """Why no configuration can have this key; None for a key that one can have.

    Args:
        parts: the dotted key's parts; list items by their index.
        root: dataclass of the configuration.
    """
    kind: Any = root
    for depth, part in enumerate(parts):
        valid = _keys(kind)
        children = _child_types(kind, part)
        if not children:
            above = ".".join(parts[:depth])
            if valid:
                return f"unknown key; {nearest(part, valid, above)}"
            if depth and _is_list(kind):
                return f"{above} is a list; name its item by an index, e.g. {above}.0"
            return f"unknown key; leave it out, since {above} is a value"
        kind = children[0] if len(children) == 1 else typing.Union[tuple(children)]  # noqa: UP007
    return None


def plain_data_problem(value: Any, path: tuple[str, ...] = ()) -> tuple[tuple[str, ...], str] | None:
    """The first key that is not text or value that no field can hold (YAML's binary), with its path, if any."""
    if isinstance(value, dict):
        for key in value:
            if not isinstance(key, str):
                return path, f"the key {key!r} is not text; put it in quotes"
        items = list(value.items())
    elif isinstance(value, list):
        items = [(str(index), item) for index, item in enumerate(value)]
    else:
        allowed = isinstance(value, str | bool | int | float) or value is None
        return None if allowed else (path, f"must be text, a number, a list or a mapping, not {type(value).__name__}")
    return next((found for key, item in items if (found := plain_data_problem(item, (*path, key)))), None)


def value_problem(errors: Sequence[Any], *, nullable: bool = False) -> str:
    """What is wrong with a value.

    Args:
        errors: what pydantic says about it: one thing, or one for each member of a union.
        nullable: whether it may also be null, which pydantic does not say of a choice.
    """
    # Of a union, the member was meant whose type the value has.
    error = next((one for one in errors if one["type"] not in _EXPECTED), errors[0])
    kind, context, told = error["type"], error.get("ctx", {}), _shown(error["input"])
    if kind in _EXPECTED:
        expected = " or ".join(dict.fromkeys(_EXPECTED[one["type"]] for one in errors))
        return f"must be {expected}, not {told}"
    if kind == "literal_error":
        expected = _SHOWN_CHOICES.get(context["expected"], context["expected"])
        return f"must be {expected}{', or null' if nullable else ''}, not {told}"
    if kind in _BOUNDS:
        relation, bound = _BOUNDS[kind]
        limit = context[bound]
        return f"must be {relation} {int(limit) if limit == int(limit) else limit}, not {told}"
    if kind in _LENGTHS:
        relation, bound, what = _LENGTHS[kind]
        if (relation, context[bound]) in _EMPTINESS:
            return _EMPTINESS[relation, context[bound]]
        length = len(error["input"]) if isinstance(error["input"], str | list | dict) else context.get("actual_length")
        return f"must have {relation} {context[bound]} {what}, not {length}"
    reason = error["msg"][:1].lower() + error["msg"][1:]
    return f"cannot be {told} ({reason}); correct it"


def describe(errors: Sequence[Any], data: dict[str, Any], root: Any = RunConfig) -> tuple[tuple[str, ...], str]:
    """The most telling of pydantic's errors as (path of the key, what is wrong).

    An unknown key goes first: where a key is misspelt, it explains the one that is missing.

    Args:
        errors: `ValidationError.errors()`.
        data: what was validated.
        root: dataclass that it was validated as.
    """
    found = []
    for error in errors:
        path, chosen = _path(error["loc"], root)
        # Pydantic tries every member of a union; only what it says of the one that was meant is of use.
        if all(dataclasses.is_dataclass(kind) == isinstance(_value(data, above), dict) for above, kind in chosen):
            found.append((error["type"] != "unexpected_keyword_argument", *_describe(path, error, root)))
    found.sort(key=lambda item: item[0])
    _, path, problem = found[0]
    return path, problem


def _describe(path: tuple[str, ...], error: Any, root: Any) -> tuple[tuple[str, ...], str]:
    kind = error["type"]
    if kind == "unexpected_keyword_argument":
        return path, key_problem(path, root) or "unknown key; leave it out"
    if kind == "missing":
        return path, "is required and missing; give it"
    if kind == "value_error" and isinstance(error["ctx"]["error"], InvalidValue):
        invalid = error["ctx"]["error"]
        return (*path, *invalid.key.split(".")), invalid.problem
    return path, value_problem([error], nullable=kind == "literal_error" and _nullable(path, root))


def _path(location: Sequence[str | int], root: Any) -> tuple[tuple[str, ...], list[tuple[tuple[str, ...], Any]]]:
    """The key's path in pydantic's location, and the union members that stand in it though they are no keys.

    Returns:
        The path, and (path, member) for each union on the way.
    """
    kinds: list[Any] = [root]
    path: tuple[str, ...] = ()
    chosen = []
    for part in location:
        if len(kinds) > 1:
            kinds = [kind for kind in kinds if kind.__name__ == part]
            chosen += [(path, kind) for kind in kinds]
        else:
            path = (*path, str(part))
            kinds = _child_types(kinds[0], str(part)) if kinds else []
    return path, chosen


def _nullable(path: Sequence[str], root: Any) -> bool:
    kinds: list[Any] = [root]
    for part in path[:-1]:
        kinds = [child for kind in kinds for child in _child_types(kind, part)]
    hints = [typing.get_type_hints(kind).get(path[-1]) for kind in kinds if dataclasses.is_dataclass(kind)]
    return any(type(None) in typing.get_args(hint) for hint in hints)


def _value(data: Any, path: Sequence[str]) -> Any:
    for part in path:
        if isinstance(data, dict):
            data = data.get(part)
        elif isinstance(data, list) and part.isdecimal() and int(part) < len(data):
            data = data[int(part)]
        else:
            return None
    return data


def _members(kind: Any) -> list[Any]:
    """The types that a union allows, None left out; any other type alone."""
    if isinstance(kind, types.UnionType) or typing.get_origin(kind) is typing.Union:
        return [member for member in typing.get_args(kind) if member is not type(None)]
    return [kind]


def _is_list(kind: Any) -> bool:
    return any(typing.get_origin(member) is tuple for member in _members(kind))


def _keys(kind: Any) -> list[str]:
    return [
        yaml_key(field.name)
        for member in _members(kind)
        if dataclasses.is_dataclass(member)
        for field in dataclasses.fields(member)
    ]


def _child_types(kind: Any, part: str) -> list[Any]:
    """The types that the key or index `part` of a value of this type may have; none where there is no such key."""
    for member in _members(kind):
        origin, arguments = typing.get_origin(member), typing.get_args(member)
        if dataclasses.is_dataclass(member):
            for name, hint in typing.get_type_hints(member).items():
                if yaml_key(name) == part and not name.startswith("_"):
                    return _members(hint)
        elif origin is dict:
            return _members(arguments[1])
        elif origin is tuple and part.isdecimal():
            return _members(arguments[0])
    return []


def _shown(value: Any) -> str:
    """A value for a message: its YAML type tells `12` from `"12"`."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return "a list"
    if isinstance(value, int) and value.bit_length() > _SHOWN_BITS:  # Python writes no number of thousands of digits
        return "a number of too many digits"
    text = f"the text {value!r}" if isinstance(value, str) else repr(value)
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[: _SHOWN_CHARACTERS - 1]}…"
