"""The harness's tasks by name, loaded before any model is, with what would go wrong later told now.

Running them is `harness.evaluate`.
"""

import functools
import logging
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import lm_eval
from datasets.exceptions import DatasetsError
from lm_eval.api.group import Group
from lm_eval.api.task import Task
from lm_eval.tasks import TaskManager

from megafuser.config.values import nearest
from megafuser.errors import UserError, explained_paths, first_line, is_full_disk
from megafuser.harness.generation import parse_generation

logger = logging.getLogger(__name__)

_OWN = Path(lm_eval.__file__).resolve().parent / "tasks"
# directories of the harness's own tasks whose code runs by the metric that `code` replaces
_REPLACEABLE = ("humaneval", "mbpp")
_CODE = "task {} runs code that the model writes; give --allow-code-execution to run it in a sandbox"


def load_tasks(
    names: Sequence[str], include_paths: Sequence[str], *, code_allowed: bool
) -> tuple[TaskManager, list[Task | Group]]:
    """Loads tasks, groups of tasks and tags, their data too.

    Args:
        names: of the harness's, or of those under `include_paths`.
        include_paths: directories with tasks of the user's.
        code_allowed: whether generated code may be run.

    Raises:
        UserError: no such task or directory, no data without a network, a task that runs code where it may not, or
            one whose settings have no meaning here.
    """
    for directory in include_paths:
        with explained_paths():
            is_there = Path(directory).is_dir()
        if not is_there:
            raise UserError(f"--include-path {directory} is not a directory; give one with tasks' YAML files")
    if repeated := next((name for name in names if names.count(name) > 1), None):
        raise UserError(f"--tasks has {repeated} twice; take one away")
    manager = _manager(names, include_paths)
    for name in names:
        _check_name(manager, name)
        for task, config, path in _configurations(manager, name):
            _check_code(task, config, path, code_allowed)
    found: list[Task | Group] = []
    for name in names:
        loaded = _load(manager, name)
        groups, tasks = loaded.get("groups", {}), loaded["tasks"]
        found += [groups[name]] if name in groups else list(tasks.values())
        for task in tasks.values():
            if getattr(task, "UNSAFE_CODE", False) and not code_allowed:
                raise UserError(_CODE.format(task.task_name))
            _check_settings(task)
    try:
        manager.load(list(found))
    except ValueError as error:  # a task that two of them have
        raise UserError(f"--tasks: {error}; leave one of the two out") from None
    return manager, found


def _manager(names: Sequence[str], include_paths: Sequence[str]) -> TaskManager:
    """Knows of all tasks, or of the user's only where no others are wanted: the harness has thousands of files."""
    if include_paths:
        own = TaskManager(include_path=list(include_paths), include_defaults=False)
        if all(name in own.task_index and not _is_group(own, name) for name in names):
            return own
        return TaskManager(include_path=list(include_paths))
    return _harness_tasks()


@functools.cache
def _harness_tasks() -> TaskManager:
    return TaskManager()


def _is_group(manager: TaskManager, name: str) -> bool:
    return isinstance((manager.task_index[name].cfg or {}).get("task"), list)


def _check_name(manager: TaskManager, name: str) -> None:
    if name in manager.task_index:
        return
    hint = nearest(name, manager.all_tasks, otherwise="give another")
    raise UserError(f"no task {name!r}; {hint} (tasks of your own: --include-path DIR)")


def _configurations(manager: TaskManager, name: str) -> Iterator[tuple[str, dict[str, Any], Path | None]]:
    """What the YAML files say of a task, or of all tasks of a group or tag."""
    entry = manager.task_index.get(name)
    if entry is None:
        return
    if entry.cfg is None:  # a tag: what bears it
        for child in sorted(entry.tags):
            yield from _configurations(manager, child)
        return
    children = entry.cfg.get("task")
    if not isinstance(children, list):
        yield name, entry.cfg, entry.yaml_path
        return
    for child in children:
        if isinstance(child, dict):
            yield str(child.get("task", name)), child, entry.yaml_path
            child = child.get("task")
        if child != name:
            yield from _configurations(manager, str(child))


def _check_code(name: str, config: dict[str, Any], path: Path | None, allowed: bool) -> None:
    if not config.get("unsafe_code"):
        return
    if not allowed:
        raise UserError(_CODE.format(name))
    # a file may include another's settings and functions
    for place in (*([path] if path is not None else []), *_functions(config)):
        own = _own_directory(place)
        if own is not None and not own.startswith(_REPLACEABLE):
            raise UserError(
                f"task {name} runs the model's code as the harness's {own} does, outside the sandbox; leave it out"
            )


def _functions(value: Any) -> Iterator[Path]:
    """What may be functions among a configuration's values: the harness gives `DIRECTORY/module.name` for one."""
    if isinstance(value, str) and value.startswith("/") and "\n" not in value:
        yield Path(value)
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _functions(item)


def _own_directory(place: Path) -> str | None:
    """The harness's directory of tasks that a file or function is from; None for the user's own."""
    place = place.parent.resolve() / place.name
    if _OWN in place.parents:
        return place.relative_to(_OWN).parts[0]
    imported = re.match(r"lm_eval\.tasks\.(\w+)", place.name)  # a module's name, behind the user's directory
    return imported[1] if imported else None


def _load(manager: TaskManager, name: str) -> Any:
    try:
        return manager.load([name])
    except OSError as error:  # what `datasets` raises where the hub is out of reach is one
        if is_full_disk(error):
            raise
        raise UserError(
            f"the data of task {name} cannot be had: {first_line(error)}; evaluate where there is a network or the "
            "data set is in Hugging Face's cache, or use local tasks (--include-path examples/tasks)"
        ) from None
    except ModuleNotFoundError as error:
        raise UserError(f"task {name} needs the module {error.name}; install the package that has it") from None
    except (DatasetsError, ImportError, AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        # how the harness tells of a function that a YAML file names, of unknown keys and of values that cannot be, and
        # `datasets` of data that it cannot read or find
        logger.debug("task %s", name, exc_info=True)
        path = manager.task_index[name].yaml_path
        is_own = path is None or _own_directory(path) is not None
        remedy = "leave it out, or use local tasks (--include-path)" if is_own else "correct its YAML file"
        if isinstance(error, DatasetsError):
            remedy = remedy if is_own else f"{remedy}, or the data that it names"
            error = error.__cause__ or error  # `datasets` says no more than that an error occurred
        raise UserError(f"task {name}: {first_line(error)}; {remedy}") from None
    except SystemExit as end:  # of a module that lacks a program
        reason = first_line(end) if str(end) else "its module ends the program"
        raise UserError(f"task {name} cannot be loaded: {reason}; install what it lacks") from None


def _check_settings(task: Task) -> None:
    if getattr(task, "MULTIMODAL", False):
        raise UserError(f"task {task.task_name} has images, and a fused model reads text only; leave it out")
    if task.OUTPUT_TYPE != "generate_until":
        return
    try:
        parse_generation(task.config.generation_kwargs or {}, end=None)
    except UserError as error:
        raise UserError(f"task {task.task_name}: {error}") from None


def check_room(tasks: Sequence[Task | Group], limit: int) -> None:
    """Refuses tasks whose answers have no room, before anything is written.

    Args:
        tasks: as loaded.
        limit: positions of the context window.

    Raises:
        UserError: names the task.
    """
    for one in tasks:
        for task in one.get_all_tasks() if isinstance(one, Group) else [one]:
            if task.OUTPUT_TYPE != "generate_until":
                continue
            wanted = parse_generation(task.config.generation_kwargs or {}, end=None).max_tokens
            if wanted >= limit:
                raise UserError(
                    f"task {task.task_name} wants answers of {wanted} tokens, and the context window has {limit}; give "
                    "it a smaller generation_kwargs.max_gen_toks, in a YAML file that includes its own"
                )
