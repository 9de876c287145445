"""`megafuser evaluate`: the harness's tasks on a fused model, and on each specialist alone.

Tasks are loaded by `harness.task_loading`; the model is asked by `harness.language_model`.
"""

import contextlib
import dataclasses
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lm_eval.api.group import Group
from lm_eval.api.task import Task
from lm_eval.evaluator import simple_evaluate
from lm_eval.tasks import TaskManager

from megafuser.checkpoint.manifest import checkpoint_identity
from megafuser.config.run_directory import resolve_checkpoint
from megafuser.harness.answers import Answers
from megafuser.harness.code import code_allowed
from megafuser.harness.evaluation_directory import EvaluationDirectory
from megafuser.harness.language_model import FusedLM
from megafuser.harness.results import table
from megafuser.harness.sandbox import Sandbox
from megafuser.harness.task_loading import check_room, load_tasks
from megafuser.inference.open_model import FusedLanguageModel, Opening, open_checkpoint
from megafuser.inference.stopping import AskedToStop, leave_it_to_rank_zero, until_asked_to_stop
from megafuser.runtime.world import detect_world

logger = logging.getLogger(__name__)

_FUSED, _UNIFORM = "fused", "uniform"
_BOOTSTRAPS = 1000  # of the few metrics whose standard error has no formula


@dataclass(frozen=True)
class Options:
    """What to evaluate.

    Attributes:
        tasks: of the harness.
        include_paths: directories with more of them.
        out: directory for the results.
        overwrite: replaces an earlier evaluation, finished or not.
        limit: takes the first so many questions of each task; None: all.
        raw: requests go to all specialists as they are.
        num_fewshot: examples before each question; None: the task's own.
        alone: also each specialist alone, and all with the same weight.
        allow_code: runs code that the model writes.
        isolated: in a sandbox that sees neither files nor network; without it under limits only.
        max_running: most sequences in a step.
    """

    tasks: tuple[str, ...]
    include_paths: tuple[str, ...]
    out: Path
    overwrite: bool
    limit: int | None
    raw: bool
    num_fewshot: int | None
    alone: bool
    allow_code: bool
    isolated: bool
    max_running: int


@dataclass(frozen=True)
class _Work:
    """What the rank that leads has found before a model is opened."""

    output: EvaluationDirectory
    manager: TaskManager
    tasks: list[Task | Group]


def run_evaluate(opening: Opening, options: Options) -> int:
    """Evaluates; every rank calls it, and the first one knows of tasks.

    Returns:
        The exit code, 0.

    Raises:
        UserError: something that the user can mend; nothing is written then, unless it is a task's own mistake.
        StoppedEarly: by a signal; on rank 0.
    """
    for name in ("lm_eval", "datasets"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with contextlib.ExitStack() as stack:
        work = None
        if detect_world().rank == 0:
            output = EvaluationDirectory(options.out, _settings(opening, options))
            output.check(overwrite=options.overwrite)
            sandbox = None
            if options.allow_code:
                sandbox = Sandbox(isolated=options.isolated)
                sandbox.check()
            stack.enter_context(code_allowed(sandbox))
            manager, tasks = load_tasks(options.tasks, options.include_paths, code_allowed=options.allow_code)
            work = _Work(output, manager, tasks)
        model = stack.enter_context(open_checkpoint(opening))
        if work is None:
            leave_it_to_rank_zero()
        with model.engine.following() as leads:
            if leads:
                assert work is not None
                _until_stopped(model, opening, options, work)
    return 0


def _until_stopped(model: FusedLanguageModel, opening: Opening, options: Options, work: _Work) -> None:
    def told(asked: AskedToStop) -> str:
        kept = f"{asked} was received; answers so far are in {options.out}"
        again = "without --overwrite" if options.overwrite else "again"  # which would begin anew
        return f"the evaluation stopped, since {kept}; run the same command {again} to go on"

    with until_asked_to_stop(model.engine, told):
        _evaluate(model, opening, options, work)


def _settings(opening: Opening, options: Options) -> dict[str, Any]:
    """What the results depend on; the checkpoint by its content, which may have moved."""
    kept = ("tasks", "include_paths", "limit", "raw", "num_fewshot", "alone")
    chosen = {key: value for key, value in dataclasses.asdict(options).items() if key in kept}
    return {
        "checkpoint": checkpoint_identity(resolve_checkpoint(opening.checkpoint)),
        "force": opening.force,
        "overrides": list(opening.overrides),
        **{key: list(value) if isinstance(value, tuple) else value for key, value in chosen.items()},
    }


def _evaluate(model: FusedLanguageModel, opening: Opening, options: Options, work: _Work) -> None:
    check_room(work.tasks, model.limit)
    with work.output.begin(overwrite=options.overwrite):
        results = {}
        for name, forced in _models(model.specialists, opening.force, alone=options.alone).items():
            if forced is not None:
                model.engine.force(forced)
            results[name] = _evaluate_one(model, name, options, work)
        text = table(results, model.name + (" (raw)" if options.raw else ""))
        first, *others = results
        try:
            work.output.finish(results[first] | {"alone": {name: results[name] for name in others}}, text)
        finally:
            print(text)
    print(f"results: {options.out / 'results.json'}")


def _models(specialists: Sequence[str], force: str | None, *, alone: bool) -> dict[str, Sequence[float] | None]:
    """What is evaluated, by name: the gate's weights, or those of `--force`, first (None), then others."""
    models: dict[str, Sequence[float] | None] = {force or _FUSED: None}
    if alone:
        for name in specialists:
            # a specialist may be called as a mixture is
            own = f"{name} alone" if name in (_FUSED, _UNIFORM) else name
            models[own] = [float(name == other) for other in specialists]
        models[_UNIFORM] = [1 / len(specialists)] * len(specialists)
    return models


def _evaluate_one(model: FusedLanguageModel, name: str, options: Options, work: _Work) -> dict[str, Any]:
    """The harness's dictionary for one model; the samples are in files of their own."""
    settings = work.output.settings
    identity = {key: settings[key] for key in ("checkpoint", "overrides", "raw")} | {"model": name}
    with Answers(work.output.answers_file(name), identity) as answers:
        if len(answers):
            logger.info("%s: %d answers are there already", name, len(answers))
        found = simple_evaluate(
            model=FusedLM(model, answers, raw=options.raw, max_running=options.max_running, description=name),
            tasks=list(work.tasks),
            task_manager=work.manager,
            num_fewshot=options.num_fewshot,
            limit=options.limit,
            bootstrap_iters=_BOOTSTRAPS,
            confirm_run_unsafe_code=options.allow_code,
        )
    assert found is not None, "the harness gives results on the first rank"
    results = dict(found)
    work.output.write_samples(name, results.pop("samples", {}))
    return results
