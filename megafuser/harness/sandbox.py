"""Runs programs that a model has written: in a process of their own, within `Limits`, and where it can be, isolated.

What that process does to itself before the program begins is `sandbox_child`.
"""

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from megafuser.errors import UserError
from megafuser.harness import sandbox_child

_MIB = 1 << 20


@dataclass(frozen=True)
class Limits:
    """What a program may use.

    Attributes:
        seconds: of wall-clock time.
        cpu_seconds: of processor time, each process.
        memory_bytes: address space, each process.
        file_bytes: largest file, and all files together where the program is isolated.
        processes: most at once, threads included.
        output_bytes: of standard output and error together; more ends it.
    """

    seconds: float = 15.0
    cpu_seconds: int = 10
    memory_bytes: int = 512 * _MIB
    file_bytes: int = 16 * _MIB
    processes: int = 16
    output_bytes: int = 1 * _MIB


@dataclass(frozen=True)
class Outcome:
    """How a program ended.

    Attributes:
        code: exit code, 128 + the signal's number where one ended it; None: it was ended for its time or its output.
        reason: `exit`, `time` or `output`.
        output: what it wrote to standard output and error, up to the limit.
    """

    code: int | None
    reason: str
    output: bytes


class Sandbox:
    """Runs programs; each starts from nothing.

    Without isolation a program runs under limits, without environment, but as the user: it can read and write the
    user's files and use the network. That is not a security boundary.
    """

    def __init__(self, limits: Limits | None = None, *, isolated: bool = True) -> None:
        """Settles the limits; see `check`."""
        self.limits = limits or Limits()
        self.isolated = isolated
        # Python itself, and not the virtual environment: its packages are none of the program's business
        self._python = os.path.realpath(sys.executable)
        self._prefixes = sorted({os.path.realpath(sys.base_prefix), os.path.realpath(sys.base_exec_prefix)})

    def check(self) -> None:
        """Sees whether programs can be run here.

        Raises:
            UserError: says why not.
        """
        if not sys.platform.startswith("linux"):
            raise UserError("generated code is run in Linux namespaces only; evaluate on Linux")
        outcome = self.run("print(6 * 7)")
        if outcome.output.strip() == b"42":
            return
        why = outcome.output.decode(errors="replace").strip().replace("\n", " ")[-300:]
        if not why:
            is_late = outcome.reason == "time"
            why = f"it did not end within {self.limits.seconds:g} s" if is_late else f"exit code {outcome.code}"
        if not self.isolated:
            raise UserError(f"generated code cannot be run here: {why}; leave tasks with code out")
        raise UserError(
            f"generated code cannot be isolated here: {why}; allow user namespaces (sysctl user.max_user_namespaces), "
            "or give --no-network-isolation where the machine may be harmed"
        )

    def run(self, program: str) -> Outcome:
        """Runs a program to its end, or to a limit."""
        with tempfile.TemporaryDirectory(prefix="megafuser-code-") as directory:
            # bytes that are no UTF-8 would end the harness instead of the program
            return self._run(program.encode("utf-8", errors="replace"), directory)

    def _run(self, program: bytes, directory: str) -> Outcome:
        limits = self.limits
        settings = json.dumps(
            {
                "parent": os.getpid(),
                "isolated": self.isolated,
                "root": os.getuid() == 0,
                "directory": directory,
                "directory_bytes": limits.file_bytes,
                "prefixes": self._prefixes,
                "python": self._python,
                "limits": {
                    "RLIMIT_CPU": limits.cpu_seconds,
                    "RLIMIT_AS": limits.memory_bytes,
                    "RLIMIT_FSIZE": limits.file_bytes,
                    "RLIMIT_NOFILE": 64,
                    "RLIMIT_CORE": 0,
                    "RLIMIT_NPROC": limits.processes,
                },
            }
        ).encode()
        process = subprocess.Popen(
            [self._python, "-I", "-S", str(Path(sandbox_child.__file__).resolve())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={},
            cwd=directory,
            start_new_session=True,
        )
        assert process.stdin is not None and process.stdout is not None
        try:
            # what has ended before it was told anything has said why
            with contextlib.suppress(BrokenPipeError), process.stdin as pipe:
                pipe.write(b"%d\n%s%s" % (len(settings), settings, program))
            reason, output = _read(process.stdout, limits)
            if reason == "exit":
                process.wait(timeout=limits.seconds)
        except subprocess.TimeoutExpired:
            reason, output = "time", b""
        finally:
            # the namespace's first process goes with its parent, and everything with that
            _kill_group(process.pid)
            process.stdout.close()
            process.wait()
        return Outcome(process.returncode if reason == "exit" else None, reason, output)


def _read(pipe: IO[bytes], limits: Limits) -> tuple[str, bytes]:
    """Reads to the end or to a limit; says which."""
    deadline = time.monotonic() + limits.seconds
    output = bytearray()
    with selectors.DefaultSelector() as selector:
        selector.register(pipe, selectors.EVENT_READ)
        while True:
            left = deadline - time.monotonic()
            if left <= 0 or not selector.select(left):
                return "time", bytes(output)
            part = os.read(pipe.fileno(), 1 << 16)
            if not part:
                return "exit", bytes(output)
            output += part
            if len(output) > limits.output_bytes:
                return "output", bytes(output[: limits.output_bytes])


def _kill_group(group: int) -> None:
    try:
        os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:
        return
