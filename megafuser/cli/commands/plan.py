"""`megafuser plan`: memory and time of a run, before anything is loaded.

Arguments and help only: the work is `planning.command`.
"""

import argparse

from megafuser.cli.shared_arguments import (
    BAD_INPUT,
    DONE,
    NOT_SAVED,
    ONE_PROCESS,
    Parser,
    above_zero,
    add_command,
    positive,
    share,
)
from megafuser.runtime.logs import configure_logs

_DESCRIPTION = """\
Says, without loading weights and in one process, what a run will need: parameters and memory of every rank by part
(weights, gradients, optimizer, activations, logits), operations and expected time of a step, for both stages; what
does not fit, and the nearest change that does.

Reads the architecture cards of the converted specialists, or the config.json of Hugging Face directories that are not
converted yet.

Exits with 0 whether the plan fits or not: the last line says which. With --check it exits with 3 where a stage does not
fit, so that `megafuser plan --check ... && sbatch ...` submits only what fits.
"""


def add(subparsers: "argparse._SubParsersAction[Parser]") -> None:
    """`megafuser plan`."""
    plan = add_command(
        subparsers,
        "plan",
        _run,
        summary="memory and time of a run, before anything is loaded",
        description=_DESCRIPTION,
        example="megafuser plan --config config.yaml --gpus 16 --gpu h100 memory.recompute=selective",
        usage="megafuser plan --config FILE [options] [key=value ...]",
        launch=ONE_PROCESS,
        exits=(DONE, BAD_INPUT, "3 with --check: a stage does not fit", NOT_SAVED),
    )
    plan.add_argument(
        "--gpus", metavar="N", type=positive, help="number of GPUs (default: parallel.tensor x parallel.pipeline)"
    )
    plan.add_argument("--gpu", metavar="NAME", default="h100", help="kind of GPU: h100 (default), h200, b200, ...")
    plan.add_argument("--gpu-memory", metavar="GIB", type=above_zero, help="memory of a GPU (default: the kind's)")
    plan.add_argument(
        "--mfu",
        metavar="F",
        type=share,
        help="share of the peak rate while computing (default: 0.4 of bf16's, under FP8 0.25 of FP8's)",
    )
    plan.add_argument(
        "--sample-tokens",
        metavar="N",
        type=positive,
        help="tokens of a sample (default: from the training files, roughly, else an assumption)",
    )
    plan.add_argument("--check", action="store_true", help="exit with 3 where a stage does not fit")
    plan.add_argument("--json", metavar="FILE", help="file to write everything to, in bytes and seconds")
    plan.add_argument("--overwrite", action="store_true", help="replace a plan that is already at --json")


def _run(arguments: argparse.Namespace) -> int:
    from megafuser.config.load import load_config
    from megafuser.planning.command import Options, run_plan

    options = Options(
        gpus=arguments.gpus,
        gpu=arguments.gpu,
        gpu_memory=arguments.gpu_memory,
        mfu=arguments.mfu,
        sample_tokens=arguments.sample_tokens,
        json_file=arguments.json,
        overwrite=arguments.overwrite,
        check=arguments.check,
    )
    configure_logs(0)
    return run_plan(load_config(arguments.config, arguments.overrides), options)
