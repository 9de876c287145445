"""Starts several ranks on this machine with torchrun, as a user would."""

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pytest

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
    ports = ",".join(free_ports(len(commands)))
    words = [word for command in commands for word in ("--", *command)][1:]
    run_ranks(processes, "tests.parallel.run_stages", [ports, *words], timeout)


def run_ranks(processes: int, module: str, arguments: Sequence[str], timeout: float = 600) -> None:
    """Runs a module on that many ranks without torchrun, see `forked`; fails with their errors.

    The module sets `MASTER_PORT` itself, anew each time that it makes process groups.
    """
    environment = os.environ | {"MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    with tempfile.TemporaryDirectory() as directory:
        command = [sys.executable, "-W", "ignore", "-m", "tests.parallel.forked", str(processes), directory]
        ranks = subprocess.Popen(
            [*command, module, *arguments], cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True,
            start_new_session=True,
        )  # fmt: skip
        try:
            error = ranks.communicate(timeout=timeout)[1]
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(ranks.pid, signal.SIGKILL)
        if ranks.returncode:
            said = [f"{path.stem}:\n{path.read_text('utf-8')[-6000:]}" for path in sorted(Path(directory).iterdir())]
            pytest.fail("\n".join([error[-6000:], *(f"rank {text}" for text in said)]))


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
