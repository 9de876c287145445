"""`megafuser evaluate`: benchmarks of the lm-evaluation-harness.

Arguments and help only: the work is `harness.evaluate`.
"""

import argparse
from pathlib import Path

from megafuser.cli.model_arguments import add_model_arguments, opening
from megafuser.cli.shared_arguments import (
    BAD_INPUT,
    DONE,
    MODEL_OVERRIDES,
    STOPPED_EARLY,
    Parser,
    add_command,
    not_negative,
    positive,
)
from megafuser.errors import UserError
from megafuser.extras import require
from megafuser.runtime.logs import configure_logs
from megafuser.runtime.signals import leaving_at_a_signal
from megafuser.runtime.world import detect_world

_DESCRIPTION = """\
Runs tasks of EleutherAI's lm-evaluation-harness on a fused model: its own by name, or local ones under --include-path.
Each request goes through each specialist's template, or with --raw unchanged to all.

Writes OUT/results.json (the harness's), OUT/table.md and OUT/samples/. Answers are kept as they come: a command that
was cut off goes on where it was when it is given again. Code that the model writes is run only with
--allow-code-execution, and then in a sandbox. docs/evaluation.md says more.
"""


def add(subparsers: "argparse._SubParsersAction[Parser]") -> None:
    """`megafuser evaluate`."""
    evaluate = add_command(
        subparsers,
        "evaluate",
        _run,
        summary="run benchmarks of the lm-evaluation-harness",
        description=_DESCRIPTION,
        example="megafuser evaluate --checkpoint runs/mine --tasks gsm8k,truthfulqa_mc2 --out evaluation",
        usage="megafuser evaluate --checkpoint DIR --tasks TASK[,TASK ...] --out DIR [options] [key=value ...]",
        has_config=False,
        overrides=MODEL_OVERRIDES,
        exits=(DONE, BAD_INPUT, STOPPED_EARLY),
    )
    add_model_arguments(evaluate)
    evaluate.add_argument("--tasks", metavar="TASKS", required=True, help="names of tasks, groups or tags, with commas")
    evaluate.add_argument(
        "--include-path",
        metavar="DIR",
        action="append",
        default=[],
        help="a directory with tasks of your own, e.g. examples/tasks; may be given again",
    )
    evaluate.add_argument(
        "--out",
        metavar="DIR",
        required=True,
        help="results; an unfinished evaluation with the same settings goes on, a finished one is refused without "
        "--overwrite",
    )
    evaluate.add_argument(
        "--overwrite", action="store_true", help="begin again, in place of an evaluation in --out, finished or not"
    )
    evaluate.add_argument(
        "--limit", metavar="N", type=positive, help="the first N questions of each task (default: all)"
    )
    evaluate.add_argument("--num-fewshot", metavar="N", type=not_negative, help="examples before each question")
    evaluate.add_argument("--raw", action="store_true", help="the same ids to all specialists, without templates")
    evaluate.add_argument(
        "--alone", action="store_true", help="also each specialist alone, and all with the same weight"
    )
    evaluate.add_argument(
        "--allow-code-execution", action="store_true", help="run code that the model writes, in a sandbox"
    )
    evaluate.add_argument(
        "--no-network-isolation",
        action="store_true",
        help="run that code where Linux namespaces are not allowed: it can then use the network and your files",
    )


def _run(arguments: argparse.Namespace) -> int:
    from megafuser.config.run_directory import resolve_checkpoint

    tasks = tuple(name.strip() for name in arguments.tasks.split(",") if name.strip())
    if not tasks:
        raise UserError("--tasks is empty; give names with commas, e.g. --tasks gsm8k,truthfulqa_mc2")
    if arguments.alone and arguments.force is not None:
        raise UserError("--alone goes through all specialists; leave --force out")
    if arguments.no_network_isolation and not arguments.allow_code_execution:
        raise UserError("--no-network-isolation goes with --allow-code-execution")
    checkpoint = resolve_checkpoint(arguments.checkpoint)
    require("eval", "megafuser evaluate")
    world = detect_world()
    configure_logs(world.rank)
    with leaving_at_a_signal(world):  # until the evaluation takes them over
        from megafuser.harness.evaluate import Options, run_evaluate

        options = Options(
            tasks=tasks,
            include_paths=tuple(arguments.include_path),
            out=Path(arguments.out),
            overwrite=arguments.overwrite,
            limit=arguments.limit,
            raw=arguments.raw,
            num_fewshot=arguments.num_fewshot,
            alone=arguments.alone,
            allow_code=arguments.allow_code_execution,
            isolated=not arguments.no_network_isolation,
            max_running=arguments.max_running,
        )
        return run_evaluate(opening(arguments, checkpoint), options)
