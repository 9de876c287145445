"""What every rank of a layout test runs: commands of megafuser one after the other, in one process.

Usage, see `launch.run_commands`: `-m tests.parallel.run_stages PORT,… COMMAND [ARGUMENT ...] [-- COMMAND …]`, with a
port of its own for every command: those of the last one's process groups may not be free yet. Starting a process takes
far longer than the tiny stages do, so they share one.
"""

import itertools
import os
import sys
from collections.abc import Sequence

from megafuser.cli.main import main


def run(ports: Sequence[str], commands: Sequence[Sequence[str]]) -> int:
    """Runs the commands until one fails."""
    for command, port in zip(commands, ports, strict=True):
        os.environ["MASTER_PORT"] = port
        if code := main(command):
            return code
    return 0


def commands_of(words: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    """The ports and the commands of a command line."""
    groups = itertools.groupby(words[1:], key=lambda word: word == "--")
    return words[0].split(","), [list(command) for is_separator, command in groups if not is_separator]


if __name__ == "__main__":
    sys.exit(run(*commands_of(sys.argv[1:])))
