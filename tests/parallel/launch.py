"""Starts several ranks on this machine with torchrun, as a user would."""

import contextlib
import os
import random
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]


def torchrun(
    processes: int, module: str, arguments: Sequence[str], timeout: float, directory: Path = ROOT
) -> subprocess.CompletedProcess[str]:
    """Runs a module on that many ranks in a directory, one thread each; gives back what they printed."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes)]
    command += ["--master-addr", "127.0.0.1", "--master-port", free_ports(1)[0], "-m", module, *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        command, cwd=directory, env=environment, capture_output=True, text=True, timeout=timeout, check=False
    )


def run_commands(processes: int, commands: Sequence[Sequence[str]], timeout: float = 600) -> None:
    """Runs megafuser commands one after the other in the same ranks; fails with what they printed if one does."""
    ports = ",".join(free_ports(len(commands) - 1)) or "-"
    words = [word for command in commands for word in ("--", *command)][1:]
    done = torchrun(processes, "tests.parallel.run_stages", [ports, *words], timeout)
    # torchrun's own traceback comes last and says nothing
    tracebacks = [line for line in done.stderr.splitlines() if line.startswith(("[rank", "megafuser: error"))]
    assert done.returncode == 0, "\n".join(tracebacks) or done.stderr[-8000:]


def run_ranks(processes: int, module: str, arguments: Sequence[str], timeout: float = 600) -> None:
    """Runs a module on that many ranks without torchrun, which takes seconds to start; fails with their errors.

    The module sets `MASTER_PORT` itself, anew each time that it makes process groups.
    """
    environment = os.environ | {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", module, *arguments],
            cwd=ROOT,
            env=environment | {"RANK": str(rank), "PYTHONPATH": str(ROOT)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(processes)
    ]
    try:
        errors = [rank.communicate(timeout=timeout)[1] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    failed = [f"rank {index}:\n{error[-6000:]}" for index, error in enumerate(errors) if ranks[index].returncode]
    assert not failed, "\n".join(failed)


def free_ports(count: int) -> list[str]:
    """Ports that nothing listens at right now, and that nothing will be given.

    They lie below the range from which systems give ports to whoever asks for any: gloo asks for many, and took one
    that was meant for a later command.
    """
    ports: list[str] = []
    for port in random.sample(range(20000, 32000), 1000):
        if len(ports) == count:
            break
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            ports.append(str(port))
    return ports
