"""`megafuser status`: where a run is, from its files alone.

Arguments and help only: the work is `watching.status` and `watching.status_text`.
"""

import argparse

from megafuser.cli.shared_arguments import ONE_PROCESS, Parser, add_command
from megafuser.errors import UserError

_DESCRIPTION = """\
Where a run is: stage and step, speed, when it ends, the last losses and gate weights, the last checkpoint, the last
warnings. Reads the run's files only, so it works beside a run, on another machine, and after the run's end.

A run is called stalled when its last line is older than 20 steps take, and than 5 minutes.
"""


def add(subparsers: "argparse._SubParsersAction[Parser]") -> None:
    """`megafuser status`."""
    status = add_command(
        subparsers,
        "status",
        _run,
        summary="where a run is, how fast, when it ends",
        description=_DESCRIPTION,
        example="megafuser status runs/ultrafuser-13b",
        usage="megafuser status RUN_DIR [--json]",
        has_config=False,
        overrides=None,
        launch=ONE_PROCESS,
    )
    status.add_argument("run_dir", metavar="RUN_DIR", help="the run's directory, run_dir of its configuration")
    status.add_argument("--json", action="store_true", help="everything as JSON, in seconds")


def _run(arguments: argparse.Namespace) -> int:
    from megafuser.watching.status import read_status
    from megafuser.watching.status_text import status_text

    if arguments.overrides:
        raise UserError(f"unknown argument {arguments.overrides[0]!r}; see megafuser status --help")
    found = read_status(arguments.run_dir)
    print(found.to_json() if arguments.json else status_text(found))
    return 0
