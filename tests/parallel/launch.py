"""Starts several ranks on this machine with torchrun, as a user would."""

import os
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


def free_ports(count: int) -> list[str]:
    """Ports that nothing listens at right now."""
    probes = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [str(probe.getsockname()[1]) for probe in probes]
    for probe in probes:
        probe.close()
    return ports
