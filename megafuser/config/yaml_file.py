"""Reading a YAML file that a user has written: what is wrong with it becomes one line.

Its keys and values are checked by `config.load` and `data.recipe.load`.
"""

from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from megafuser.errors import UserError, first_line


def read_yaml(path: Path, what: str, instead: str) -> Any:
    """The file as OmegaConf has it, interpolations unresolved.

    Args:
        path: of the file.
        what: it should be, e.g. `a configuration`.
        instead: what to give where there is no such file.

    Raises:
        UserError: the file cannot be read, or is no YAML.
    """
    try:
        return OmegaConf.load(path)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; give {instead}") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: is no UTF-8 text; give a YAML file") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read as {what}: {error.strerror or error}; give a YAML file") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path}: {yaml_problem(error)}; correct it") from None
    except OmegaConfBaseException as error:
        raise UserError(f"{path}: {error.full_key or 'YAML'}: {first_line(error)}; correct it") from None


def yaml_problem(error: yaml.YAMLError) -> str:
    """What is wrong, and in which line."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        tab = " (YAML is indented by spaces, not by tabs)" if "'\\t'" in str(error.problem) else ""
        return f"line {error.problem_mark.line + 1}: {error.problem}{tab}"
    return first_line(error)
