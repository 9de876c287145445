"""What every rank of a layout test runs: commands of megafuser one after the other, in one process.

Usage, under torchrun: `-m tests.parallel.run_stages PORT COMMAND [ARGUMENT ...] [-- COMMAND [ARGUMENT ...]]`, with a
port of its own for every command but the first: `PORT,PORT,…`. Starting a process takes far longer than the tiny stages
do, so they share one.
"""

import itertools
import os
import sys
from collections.abc import Sequence

from megafuser.cli.main import main


def run(ports: Sequence[str], commands: Sequence[Sequence[str]]) -> int:
    """Runs the commands until one fails; the first meets through torchrun's own store, the others at `ports`.

    torchrun's store still holds the addresses of the first command's process groups, which a second rendezvous in the
    same processes would take for its own; users have one command per process.
    """
    for command, port in zip(commands, ["", *ports], strict=True):
        if port:
            os.environ.pop("TORCHELASTIC_USE_AGENT_STORE", None)
            os.environ["MASTER_PORT"] = port
        if code := main(command):
            return code
    return 0


if __name__ == "__main__":
    first, *words = sys.argv[1:]
    groups = itertools.groupby(words, key=lambda word: word == "--")
    commands = [list(words) for is_separator, words in groups if not is_separator]
    sys.exit(run(first.split(",") if first != "-" else [], commands))
