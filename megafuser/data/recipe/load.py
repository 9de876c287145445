"""Reading a recipe: every mistake in it is told with its dotted key.

The keys are in `data.recipe.config`; a run's configuration is read by `config.load`.
"""

import json
from pathlib import Path
from typing import Any

import pydantic
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from megafuser.config.error_messages import describe, plain_data_problem
from megafuser.config.yaml_file import read_yaml
from megafuser.data.recipe.config import Recipe
from megafuser.errors import UserError, first_line

_ADAPTER = pydantic.TypeAdapter(Recipe)


def load_recipe(path: str | Path) -> Recipe:
    """Reads a recipe and checks every value in it.

    Args:
        path: YAML file.

    Raises:
        UserError: the file cannot be read, or has an unknown key, a wrong type or an impossible value.
    """
    data = _read(Path(path))
    if problem := plain_data_problem(data):
        raise _located(path, *problem)
    try:
        # As JSON: pydantic's strict mode takes lists for tuples and mappings for dataclasses only from there.
        return _ADAPTER.validate_json(json.dumps(data))
    except pydantic.ValidationError as error:
        raise _located(path, *describe(error.errors(), data, Recipe)) from None


def _read(path: Path) -> Any:
    tree = read_yaml(path, "a recipe", "a recipe, such as examples/ultrafuser-13b/data.yaml")
    if not isinstance(tree, DictConfig) or not tree:
        raise UserError(f"{path}: is not a recipe; it must be a mapping with `domains`")
    try:
        return OmegaConf.to_container(tree, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise UserError(f"{path}: {first_line(error)}; correct it") from None


def _located(path: str | Path, key: tuple[str, ...], problem: str) -> UserError:
    return UserError(f"{path}: {'.'.join(key)}: {problem}" if key else f"{path}: {problem}")
