"""`megafuser report`: the fused model against its specialists, domain by domain.

Arguments, help, and which configuration is meant: the work is `report.command`.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from megafuser.cli.model_arguments import add_checkpoint_arguments
from megafuser.cli.shared_arguments import BAD_INPUT, DONE, MODEL_OVERRIDES, NOT_SAVED, Parser, add_command, positive
from megafuser.errors import UserError, explained_paths
from megafuser.runtime.logs import configure_logs
from megafuser.runtime.world import detect_world

if TYPE_CHECKING:
    from megafuser.config.schema import RunConfig
    from megafuser.inference.spread import Layout

_DESCRIPTION = """\
Measures a checkpoint on the validation samples: per domain the cross-entropy of each specialist alone, of their
uniform mixture, of the fused model and of the best specialist at each token, with confidence intervals; the gate's
mean weights, its entropy and what is wrong with it; calibration; the tokens where fusion helps and hurts most. A
verdict, go, no-go or unclear, with its reasons, ends the output.

Writes OUT/report.json and OUT/report.html, a page of its own with plots and texts coloured by the gate.
"""


def add(subparsers: "argparse._SubParsersAction[Parser]") -> None:
    """`megafuser report`."""
    report = add_command(
        subparsers,
        "report",
        _run,
        summary="compare the fused model with its specialists, domain by domain",
        description=_DESCRIPTION,
        example="megafuser report --checkpoint runs/ultrafuser-13b --out report",
        usage="megafuser report --checkpoint DIR --out DIR [--config FILE] [options] [key=value ...]",
        has_config=False,
        overrides=MODEL_OVERRIDES,
        exits=(DONE, BAD_INPUT, NOT_SAVED),
    )
    add_checkpoint_arguments(report, copies=True)
    report.add_argument(
        "--config",
        metavar="FILE",
        help="a configuration (YAML) in place of the checkpoint's own, such as one with other validation data",
    )
    report.add_argument("--out", metavar="DIR", required=True, help="directory to write; refused where it exists")
    report.add_argument("--overwrite", action="store_true", help="replace an existing --out")
    report.add_argument(
        "--max-samples", metavar="N", type=positive, help="validation samples per domain at most (default: all)"
    )
    report.add_argument(
        "--training", action="store_true", help="also the run's learning rates and gradient norms, beside its curves"
    )


def _run(arguments: argparse.Namespace) -> int:
    config, checkpoint = _config(arguments)
    with explained_paths():
        is_there = Path(arguments.out).exists()
    if is_there and not arguments.overwrite:
        raise UserError(f"--out {arguments.out} exists; choose another directory or give --overwrite")
    configure_logs(detect_world().rank)
    from megafuser.report.command import run_report

    return run_report(
        config,
        str(checkpoint),
        arguments.out,
        arguments.max_samples,
        overwrite=arguments.overwrite,
        training=arguments.training,
        layout=_layout(arguments),
        other_templates=arguments.config is not None,
    )


def _config(arguments: argparse.Namespace) -> "tuple[RunConfig, Path]":
    """The configuration that the user gives, else the checkpoint's own; and the checkpoint, found once."""
    from megafuser.checkpoint.specialist_sources import read_run_checkpoint
    from megafuser.config.run_directory import reading_config_file, report_config, resolve_checkpoint

    if arguments.config is None:
        directory, _ = read_run_checkpoint(arguments.checkpoint)
        return report_config(directory, arguments.overrides), directory
    config = reading_config_file(arguments.config, arguments.overrides)
    return config, resolve_checkpoint(arguments.checkpoint)


def _layout(arguments: argparse.Namespace) -> "Layout | None":
    """What the options say of the layout; None where the configuration's is to be kept, since an override sets it.

    Raises:
        UserError: an option and an override say it both.
    """
    from megafuser.inference.spread import Layout

    keys = ("parallel", "parallel.tensor", "parallel.pipeline", "parallel.virtual_pipeline")
    for override in arguments.overrides:
        if override.partition("=")[0].strip() in keys:
            if arguments.tensor is None and arguments.pipeline is None:
                return None
            raise UserError(f"override {override!r} and --tensor or --pipeline both say the layout; leave one out")
    return Layout(arguments.tensor, arguments.pipeline)
