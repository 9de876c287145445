"""The arguments of every command, and the help that explains them."""

import argparse
import difflib
from collections.abc import Sequence
from typing import NoReturn

from megafuser import __version__
from megafuser.cli import commands
from megafuser.cli.arguments import EXIT_CODES, LAUNCH, Parser, above_zero, add_command, duration, positive, share
from megafuser.cli.using import add_evaluate, add_generate, add_serve
from megafuser.errors import UserError

_WARMUP = """\
Stage 1: trains the gate that mixes the specialists' logits; the specialists stay as they are.

Writes checkpoints to RUN_DIR/warmup/step_NNNNNN/, a line per step to RUN_DIR/metrics.jsonl, curves to
RUN_DIR/tensorboard/ and the resolved configuration to RUN_DIR/config.yaml. Run again, it goes on from the last
checkpoint; a finished stage says so and ends at once.
"""

_JOINT = """\
Stage 2: trains the gate and all specialists, from the run's last warm-up checkpoint or from joint.init_from.

Writes checkpoints to RUN_DIR/joint/step_NNNNNN/, a line per step to RUN_DIR/metrics.jsonl and curves to
RUN_DIR/tensorboard/. Run again, it goes on from the last checkpoint; a finished stage says so and ends at once.
"""

_REPORT = """\
Measures a checkpoint on the validation samples: per domain the cross-entropy of each specialist alone, of their
uniform mixture, of the fused model and of the best specialist at each token, with confidence intervals; the gate's
mean weights, its entropy and what is wrong with it; calibration; the tokens where fusion helps and hurts most. A
verdict, go, no-go or unclear, with its reasons, ends the output.

Writes OUT/report.json and OUT/report.html, a page of its own with plots and texts coloured by the gate.
"""

_RESHARD = """\
Converts a checkpoint that was saved between two steps with `checkpoint.reshardable: on_exit`, so that the run can go on
at another tensor or pipeline size. Needs as many processes as the tensor and pipeline sizes that it was saved at, or a
multiple; the configuration is the checkpoint's own, and key=value replaces keys of it, e.g. device=cpu.
"""

_PLAN = """\
Says, without loading weights and in one process, what a run will need: parameters and memory of every rank by part
(weights, gradients, optimizer, activations, logits), operations and expected time of a step, for both stages; what
does not fit, and the nearest change that does.

Reads the architecture cards of the converted specialists, or the config.json of Hugging Face directories that are not
converted yet. Exits with 0 whether the plan fits or not: the last line says which.
"""


_STATUS = """\
Where a run is: stage and step, speed, when it ends, the last losses and gate weights, the last checkpoint, the last
warnings. Reads the run's files only, so it works beside a run, on another machine, and after the run's end.

A run is called stalled when its last line is older than 20 steps take, and than 5 minutes.
"""


def build_parser() -> argparse.ArgumentParser:
    """The parser of `megafuser`, a sub-parser for each command."""
    parser = Parser(
        prog="megafuser",
        description="Fuses finished language models: all of them active on every token, a gate mixes their logits.",
        epilog=f"`megafuser COMMAND --help` explains a command.\n\n{LAUNCH}\n{EXIT_CODES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"megafuser {__version__}")
    parser.set_defaults(parser=parser, run=_no_command)
    subparsers = parser.add_subparsers(metavar="COMMAND", title="commands", parser_class=Parser)
    add_command(
        subparsers,
        "warmup",
        commands.warmup,
        summary="stage 1: train the gate, specialists frozen",
        description=_WARMUP,
        example="megafuser warmup --config config.yaml warmup.steps=20",
    )
    add_command(
        subparsers,
        "joint",
        commands.joint,
        summary="stage 2: train everything",
        description=_JOINT,
        example="megafuser joint --config config.yaml joint.lr=1e-5",
    )
    for stage in ("warmup", "joint"):
        subparsers.choices[stage].add_argument(
            "--time-limit",
            type=duration,
            metavar="HH:MM",
            help="stop before so much time is over, with everything saved, and exit with 75; also HH:MM:SS",
        )
    _add_plan(subparsers)
    _add_reshard(subparsers)
    _add_status(subparsers)
    report = add_command(
        subparsers,
        "report",
        commands.report,
        summary="compare the fused model with its specialists, domain by domain",
        description=_REPORT,
        example="megafuser report --checkpoint runs/ultrafuser-13b --config config.yaml --out report",
        usage="megafuser report --checkpoint DIR --config FILE --out DIR [options] [key=value ...]",
    )
    report.add_argument(
        "--checkpoint",
        metavar="DIR",
        required=True,
        help="a step's directory, a stage's (its latest) or a run's (the latest of its last stage)",
    )
    report.add_argument("--out", metavar="DIR", required=True, help="directory to write; refused where it exists")
    report.add_argument("--overwrite", action="store_true", help="replace an existing --out")
    report.add_argument(
        "--max-samples", metavar="N", type=positive, help="validation samples per domain at most (default: all)"
    )
    report.add_argument(
        "--training", action="store_true", help="also the run's learning rates and gradient norms, beside its curves"
    )
    report.add_argument("--tensor", metavar="N", type=positive, help="parallel.tensor, for this command")
    report.add_argument("--pipeline", metavar="N", type=positive, help="parallel.pipeline, for this command")
    add_generate(subparsers)
    add_serve(subparsers)
    add_evaluate(subparsers)
    return parser


def _add_plan(subparsers: "argparse._SubParsersAction[Parser]") -> None:
    plan = add_command(
        subparsers,
        "plan",
        commands.plan,
        summary="memory and time of a run, before anything is loaded",
        description=_PLAN,
        example="megafuser plan --config config.yaml --gpus 16 --gpu h100 memory.recompute=selective",
        usage="megafuser plan --config FILE [options] [key=value ...]",
    )
    plan.add_argument(
        "--gpus", metavar="N", type=positive, help="number of GPUs (default: parallel.tensor x parallel.pipeline)"
    )
    plan.add_argument("--gpu", metavar="NAME", default="h100", help="kind of GPU: h100 (default), h200, b200, ...")
    plan.add_argument("--gpu-memory", metavar="GIB", type=above_zero, help="memory of a GPU (default: the kind's)")
    plan.add_argument(
        "--mfu", metavar="F", type=share, default=0.4, help="share of the peak rate while computing (default: 0.4)"
    )
    plan.add_argument(
        "--sample-tokens",
        metavar="N",
        type=positive,
        help="tokens of a sample (default: from the training files, roughly, else an assumption)",
    )
    plan.add_argument("--json", metavar="FILE", help="file to write everything to, in bytes and seconds")


def _add_reshard(subparsers: "argparse._SubParsersAction[Parser]") -> None:
    reshard = add_command(
        subparsers,
        "reshard",
        commands.reshard,
        summary="make a checkpoint load at any tensor and pipeline size",
        description=_RESHARD,
        example="torchrun --nproc-per-node 4 -m megafuser reshard --checkpoint runs/x/joint/step_000500 --out new",
        usage="megafuser reshard --checkpoint DIR --out DIR [--overwrite] [key=value ...]",
        has_config=False,
    )
    reshard.add_argument("--checkpoint", metavar="DIR", required=True, help="a joint step's directory, or as in report")
    reshard.add_argument("--out", metavar="DIR", required=True, help="directory to write; refused where it exists")
    reshard.add_argument(
        "--overwrite", action="store_true", help="replace an existing --out, which may be the checkpoint itself"
    )


def _add_status(subparsers: "argparse._SubParsersAction[Parser]") -> None:
    status = subparsers.add_parser(
        "status",
        help="where a run is, how fast, when it ends",
        usage="megafuser status RUN_DIR [--json]",
        description=_STATUS,
        epilog=f"Example:\n  megafuser status runs/ultrafuser-13b\n\n{EXIT_CODES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    status.add_argument("run_dir", metavar="RUN_DIR", help="the run's directory, run_dir of its configuration")
    status.add_argument("--json", action="store_true", help="everything as JSON, in seconds")
    status.set_defaults(run=commands.status, parser=status)


def parse(parser: argparse.ArgumentParser, argv: Sequence[str]) -> argparse.Namespace:
    """Parses a command line; what is no option is an override, wherever it stands.

    Raises:
        UserError: an unknown command or option, a missing or wrong value.
    """
    arguments, rest = parser.parse_known_args(argv)
    for argument in rest:
        if argument.startswith("-"):
            options = [option for action in arguments.parser._actions for option in action.option_strings]
            close = difflib.get_close_matches(argument.split("=")[0], options, n=1)
            nearest = f", the nearest valid one is {close[0]}" if close else ""
            arguments.parser.error(f"unknown option {argument}{nearest}")
    arguments.overrides = rest
    return arguments


def _no_command(arguments: argparse.Namespace) -> NoReturn:
    raise UserError(
        "give a command: warmup, joint, plan, reshard, status, report, generate, serve or evaluate; "
        "see megafuser --help"
    )
