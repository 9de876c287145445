"""Reading a configuration, with overrides, into the dataclasses; writing it; comparing two.

OmegaConf reads YAML (numbers such as 2e-5, `${oc.env:HOME}`, no duplicate keys), pydantic builds the dataclasses. Which
values are possible is said by the dataclasses, see `config.schema`.
"""

import dataclasses
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pydantic
import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from megafuser.config.error_messages import describe, key_problem, plain_data_problem
from megafuser.config.schema import RunConfig
from megafuser.config.values import yaml_key
from megafuser.config.yaml_file import read_yaml, yaml_problem
from megafuser.errors import UserError, first_line

# Where and how a run computes, looks, saves and logs: what it computes is the same without them, up to rounding.
WITHOUT_EFFECT_ON_RESULTS = (
    *("parallel", "memory", "evaluation", "checkpoint", "debug", "logging", "profile", "faults"),
    *("data.workers", "data.cache_dir"),
)
_ADAPTER = pydantic.TypeAdapter(RunConfig)


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Reads a configuration file and checks every value in it.

    Args:
        path: YAML file.
        overrides: `dotted.key=value`; the value is YAML and replaces what the file has, list items go by index
            (`specialists.0.template=plain`).

    Raises:
        UserError: the file or an override cannot be read, or has an unknown key, a wrong type or an impossible value.
    """
    tree = _read(Path(path))
    for override in overrides:
        _apply(tree, override)
    try:
        data: Any = OmegaConf.to_container(tree, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        key = f"{error.full_key}: " if error.full_key else ""
        raise UserError(f"{path}: {key}{first_line(error)}; correct it") from None
    if problem := plain_data_problem(data):
        raise _located(path, overrides, *problem)
    try:
        # As JSON: pydantic's strict mode takes lists for tuples and mappings for dataclasses only from there.
        return _ADAPTER.validate_json(json.dumps(data))
    except pydantic.ValidationError as error:
        raise _located(path, overrides, *describe(error.errors(), data)) from None


def to_yaml(config: RunConfig, *, changed: bool = False) -> str:
    """The resolved configuration as YAML; `load_config` makes an equal configuration of it.

    Args:
        config: the configuration.
        changed: leaves out what is as by default.
    """
    return OmegaConf.to_yaml(OmegaConf.create(_escaped(_plain(config, changed=changed))))


def differences(a: RunConfig, b: RunConfig) -> list[str]:
    """What differs, a line for each key: `optimizer.clip_grad: 1.0 → 0.5`; the order of the domains, too."""
    left, right = _flat(_plain(a)), _flat(_plain(b))
    found = [
        f"{key}: {_written(left, key)} → {_written(right, key)}"
        for key in dict.fromkeys([*left, *right])
        if key not in left or key not in right or left[key] != right[key]
    ]
    # Which samples are drawn depends on it.
    before, after = list(a.data.domains), list(b.data.domains)
    if before != after and set(before) == set(after):
        found.append(f"data.domains: in the order {', '.join(before)} → {', '.join(after)}")
    return found


def other_templates_than(path: Path, config: RunConfig) -> list[str]:
    """A line for each specialist that was trained with another template, which is allowed, but seldom meant.

    Args:
        path: the configuration that it was trained with; where it cannot be read, nothing is said.
        config: the one to be used now.
    """
    try:
        saved = load_config(path)
    except UserError:
        return []
    trained = {specialist.name: specialist.template for specialist in saved.specialists}
    return [
        f"specialist {specialist.name} was trained with another template (see {path})"
        for specialist in config.specialists
        if trained.get(specialist.name, specialist.template) != specialist.template
    ]


def _read(path: Path) -> DictConfig:
    tree = read_yaml(path, "a configuration", "the run's configuration")
    if not isinstance(tree, DictConfig):
        raise UserError(f"{path}: is a list; a configuration must be a mapping of keys (run_dir, specialists, data, …)")
    if not tree:
        raise UserError(f"{path}: is empty; a configuration must have run_dir, specialists and data")
    return tree


def _apply(tree: DictConfig, override: str) -> None:
    """Puts one `dotted.key=value` into the tree."""
    key, equals, text = override.partition("=")
    key = key.strip()
    if not equals or not key:
        problem = key_problem(key.split(".")) if key else None
        hint = f" ({problem})" if problem else f", e.g. {key or 'warmup.steps'}=VALUE"
        raise UserError(f"override {override!r} is not of the form dotted.key=value{hint}; give a key and a value")
    parts = key.split(".")
    if problem := key_problem(parts):
        raise UserError(f"override {override!r}: {key}: {problem}")
    try:
        _check_place(tree, override, parts)
        value = OmegaConf.to_container(OmegaConf.from_dotlist([f"value={text}"]))["value"]  # type: ignore[index,call-overload]
        OmegaConf.update(tree, key, value, merge=False)
    except yaml.YAMLError as error:
        problem = f"its value is no YAML ({yaml_problem(error)}); put quotes around text with special characters"
        raise UserError(f"override {override!r}: {problem}") from None
    except OmegaConfBaseException as error:
        raise UserError(f"override {override!r}: {first_line(error)}; correct it") from None


def _check_place(tree: DictConfig, override: str, parts: Sequence[str]) -> None:
    """Refuses an item that a list does not have, and a key that would be changed somewhere else."""
    for depth, part in enumerate(parts):
        above = OmegaConf.select(tree, ".".join(parts[:depth])) if depth else tree
        if OmegaConf.is_list(above) and int(part) >= len(above):
            problem = (
                f"{'.'.join(parts[:depth])} has {len(above)} items, the last is {len(above) - 1}; give one of them"
            )
            raise UserError(f"override {override!r}: {'.'.join(parts)}: {problem}")
        is_last = depth == len(parts) - 1
        if not is_last and OmegaConf.is_dict(above) and OmegaConf.is_interpolation(above, part):
            problem = "refers to another key, which would change too; override that one, or write this one out"
            raise UserError(f"override {override!r}: {'.'.join(parts[: depth + 1])} {problem}")


def overrides_of(section: str, overrides: Sequence[str]) -> list[str]:
    """The overrides, `key=value`, that set a section of the configuration or something in it, e.g. of `parallel`."""
    names = [(override, override.partition("=")[0].strip()) for override in overrides]
    return [override for override, name in names if name == section or name.startswith(f"{section}.")]


def _located(path: str | Path, overrides: Sequence[str], key: tuple[str, ...], problem: str) -> UserError:
    """An error that names the override which set the key, else the file."""
    dotted = ".".join(key)
    for override in reversed(overrides):
        name = override.partition("=")[0].strip()
        if dotted == name or dotted.startswith(f"{name}."):
            return UserError(f"override {override!r}: {dotted}: {problem}")
    return UserError(f"{path}: {f'{dotted}: ' if dotted else ''}{problem}")


def _plain(value: Any, *, changed: bool = False) -> Any:
    """Dataclasses as mappings by YAML key, of all fields or of those that are not as by default; tuples as lists."""
    if dataclasses.is_dataclass(value):
        return {
            yaml_key(field.name): _plain(own, changed=changed)
            for field in dataclasses.fields(value)
            if (own := getattr(value, field.name)) != _default(field) or not changed
        }
    if isinstance(value, dict):
        return {key: _plain(item, changed=changed) for key, item in value.items()}
    return [_plain(item, changed=changed) for item in value] if isinstance(value, tuple) else value


def _default(field: "dataclasses.Field[Any]") -> Any:
    """A field's default; `MISSING`, which equals no value, where it has none."""
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def _escaped(value: Any) -> Any:
    """Text that OmegaConf reads back as it is: `${` starts an interpolation, unless a backslash stands before it."""
    if isinstance(value, dict):
        return {key: _escaped(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_escaped(item) for item in value]
    if isinstance(value, str):
        return re.sub(r"(\\*)\$\{", lambda match: match[1] * 2 + "\\${", value)
    return value


def _flat(value: Any, key: str = "") -> dict[str, Any]:
    """Leaves by dotted key; lists of plain values and empty containers are leaves."""
    if isinstance(value, dict):
        items = list(value.items())
    elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
        items = [(str(index), item) for index, item in enumerate(value)]
    else:
        return {key: value}
    return {leaf: item for name, part in items for leaf, item in _flat(part, f"{key}.{name}" if key else name).items()}


def _written(leaves: dict[str, Any], key: str) -> str:
    return json.dumps(leaves[key], ensure_ascii=False) if key in leaves else "absent"
