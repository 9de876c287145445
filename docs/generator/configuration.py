"""The references of a run's configuration and of a data recipe, from their dataclasses.

Every key with type, default and meaning.
"""

import dataclasses
import inspect
import json
import re
import types
import typing
from typing import Any

from megafuser.config.schema import RunConfig
from megafuser.config.values import yaml_key
from megafuser.data.recipe.config import Recipe

_INTRODUCTION = """\
# Configuration

One YAML file for both stages of a run. Every key may be replaced on the command line by its dotted name:
`megafuser warmup --config config.yaml warmup.steps=20`. An unknown key, a wrong type or an impossible value is refused
before anything is loaded. [The quickstart's](../../examples/quickstart/config.yaml) and
[the paper's](../../examples/ultrafuser-13b/config.yaml) are complete examples.

This page is made from the dataclasses of `megafuser/config`, from [schema.py](../../megafuser/config/schema.py) on,
whenever the site is built.
"""
_RECIPE = """\
# Data recipe

A recipe is the YAML file that `tools/build_data.py --recipe FILE` makes training files of: which public data sets a
domain is made of, what of them is kept, and which benchmarks must not be in it.
[That of the Qwen example](../../examples/qwen2.5-7b/data.yaml) is complete. It knows nothing of tokenizers: lengths are
counted in characters, while a run's `data.domains.NAME.lengths` ([configuration](configuration.md)) are in tokens.

This page is made from the dataclasses of [data/recipe/config.py](../../megafuser/data/recipe/config.py) whenever the
site is built.
"""
_WORDS = {bool: "true or false", int: "whole number", float: "number", str: "text", types.NoneType: "null"}


def page() -> str:
    """The configuration's page, see `_page`."""
    return _page(_INTRODUCTION, RunConfig)


def recipe_page() -> str:
    """The recipe's page, see `_page`."""
    return _page(_RECIPE, Recipe)


def _page(introduction: str, whole: type) -> str:
    """A section for each dataclass.

    Raises:
        LookupError: a key has no meaning in its dataclass's docstring.
    """
    sections: list[str] = []
    _add_section(whole, "", sections)
    return "\n".join([introduction, *sections])


def keys(section: type = RunConfig, prefix: str = "") -> list[str]:
    """The dotted names of all keys; NAME and N stand for names and places that are the user's own."""
    found = []
    for field in dataclasses.fields(section):
        name = f"{prefix}{yaml_key(field.name)}"
        found.append(name)
        for inner, place in _sections_in(_hint(section, field.name)):
            found += keys(inner, f"{name}.{place}")
    return found


def _add_section(section: type, prefix: str, sections: list[str]) -> None:
    title = f"`{prefix.rstrip('.')}`" if prefix else "The whole"
    summary = (inspect.getdoc(section) or "").split("\n\n")[0].replace("\n", " ")
    rows = [f"## {title}\n\n{summary}\n", "| key | type | default | meaning |", "|---|---|---|---|"]
    own = meanings(section)
    inner: list[tuple[type, str]] = []
    for field in dataclasses.fields(section):
        hint = _hint(section, field.name)
        below = [(kind, f"{prefix}{yaml_key(field.name)}.{place}") for kind, place in _sections_in(hint)]
        inner += below
        if field.name not in own:
            raise LookupError(f"{section.__name__}.{field.name} has no line under Attributes in its docstring")
        cells = (f"`{prefix}{yaml_key(field.name)}`", _type(hint), _default(field), own[field.name])
        rows.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    sections.append("\n".join(rows) + "\n")
    for kind, path in inner:
        if f"## `{path.rstrip('.')}`\n" not in "\n".join(sections):
            _add_section(kind, path, sections)


def meanings(section: type) -> dict[str, str]:
    """What the `Attributes:` of a dataclass's docstring, and of those above it, say of each field."""
    found: dict[str, str] = {}
    for cls in reversed(section.__mro__):
        _, _, attributes = (inspect.cleandoc(cls.__doc__ or "")).partition("Attributes:\n")
        for match in re.finditer(r"^    (\w+): (.*(?:\n     +.*)*)", attributes, re.MULTILINE):
            found[match[1]] = re.sub(r"\s+", " ", match[2])
    return found


def _hint(section: type, name: str) -> Any:
    return typing.get_type_hints(section)[name]


def _sections_in(hint: Any) -> list[tuple[type, str]]:
    """The dataclasses in a type, and what stands between the key and theirs."""
    if dataclasses.is_dataclass(hint):
        return [(typing.cast(type, hint), "")]
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is dict:
        return [(kind, f"NAME.{place}") for kind, place in _sections_in(inner[1])]
    if origin is tuple:
        return [(kind, f"N.{place}") for kind, place in _sections_in(inner[0])]
    return [found for arm in inner for found in _sections_in(arm)] if origin in (types.UnionType, typing.Union) else []


def _type(hint: Any) -> str:
    if hint in _WORDS:
        return _WORDS[hint]
    if dataclasses.is_dataclass(hint):
        return "mapping, below"
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return ", ".join(f"`{value}`" for value in inner)
    if origin is dict:
        return f"mapping: name → {_type(inner[1])}"
    if origin is tuple:
        return f"list of {_type(inner[0])}" if inner[-1] is Ellipsis else f"list of {len(inner)}: {_type(inner[0])}"
    if origin in (types.UnionType, typing.Union):
        return " or ".join(_type(arm) for arm in inner)
    raise LookupError(f"no words for the type {hint}")


def _default(field: "dataclasses.Field[Any]") -> str:
    value = field.default
    if field.default_factory is not dataclasses.MISSING:
        value = field.default_factory()
        if dataclasses.is_dataclass(value):
            return "those below"
    if value is dataclasses.MISSING:
        return "*required*"
    return f"`{json.dumps(value)}`"
