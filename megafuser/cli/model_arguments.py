"""What the commands have in common that open a checkpoint to use its model.

Opening it is `inference.open_model`.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from megafuser.cli.shared_arguments import CHECKPOINT, above_zero, positive

if TYPE_CHECKING:
    from megafuser.inference.open_model import Opening


def add_checkpoint_arguments(command: argparse.ArgumentParser, *, copies: bool = False) -> None:
    """Which checkpoint, and how its model is spread over the processes; see `megafuser.inference.spread`.

    Args:
        command: the command's parser.
        copies: whether the layout may be there several times, by data parallelism.
    """
    makes = "is the number of processes, or divides it" if copies else "is the number of processes"
    command.add_argument("--checkpoint", metavar="DIR", required=True, help=CHECKPOINT)
    command.add_argument(
        "--tensor",
        metavar="N",
        type=positive,
        help="tensor-parallel size; with --tensor or --pipeline alone the other one is what is left of the processes "
        f"(default: both as in training where their product {makes}, else the largest within a node that suits every "
        "specialist)",
    )
    command.add_argument(
        "--pipeline", metavar="N", type=positive, help="pipeline stages (default: what is left of the processes)"
    )


def add_model_arguments(command: argparse.ArgumentParser) -> None:
    """What every command has that opens a checkpoint to answer with it."""
    add_checkpoint_arguments(command)
    command.add_argument(
        "--cache-gib",
        metavar="GIB",
        type=above_zero,
        help="memory for keys and values on each rank (default: 1 on a CPU, on a GPU 80%% of what the weights leave)",
    )
    command.add_argument(
        "--max-running", metavar="N", type=positive, default=16, help="most sequences in a step (default: 16)"
    )
    command.add_argument(
        "--force",
        metavar="NAME",
        help="give all weight to this specialist, or the same to each with `uniform`, whatever the gate says",
    )


def opening(arguments: argparse.Namespace, checkpoint: Path) -> "Opening":
    """What these arguments say of the model.

    Args:
        arguments: the command's.
        checkpoint: what `--checkpoint` means, found once: a stage that goes on makes it mean another one.
    """
    from megafuser.inference.open_model import Opening

    return Opening(
        checkpoint=str(checkpoint),
        tensor=arguments.tensor,
        pipeline=arguments.pipeline,
        overrides=arguments.overrides,
        cache_gib=arguments.cache_gib,
        force=arguments.force,
    )
