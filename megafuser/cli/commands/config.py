"""`megafuser config`: a configuration as a run would have it.

It only prints: the sections are in `config.schema`, reading them is `config.load`.
"""

import argparse

from megafuser.cli.shared_arguments import ONE_PROCESS, Parser, add_command

_DESCRIPTION = """\
Prints the configuration as a run would have it, in YAML: with the overrides, and with every key that the file leaves to
its default. What is printed is a configuration, too.
"""


def add(subparsers: "argparse._SubParsersAction[Parser]") -> None:
    """`megafuser config`."""
    config = add_command(
        subparsers,
        "config",
        _run,
        summary="print the configuration, with overrides and defaults",
        description=_DESCRIPTION,
        example="megafuser config --config config.yaml --changed warmup.steps=20",
        usage="megafuser config --config FILE [--changed] [key=value ...]",
        launch=ONE_PROCESS,
    )
    config.add_argument("--changed", action="store_true", help="only what differs from the defaults")


def _run(arguments: argparse.Namespace) -> int:
    from megafuser.config.load import load_config, to_yaml

    print(to_yaml(load_config(arguments.config, arguments.overrides), changed=arguments.changed), end="")
    return 0
