"""Starts several ranks on this machine: with torchrun, as a user would, or as forks of a process that is ready."""

import atexit
import contextlib
import functools
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.ports import free_ports

ROOT = Path(__file__).parents[2]
_IMPORTED_WITHIN = 300.0
_KILLED_WITHIN = 60.0


@dataclass(frozen=True)
class Said:
    """What a rank has printed on standard output and standard error."""

    out: str
    err: str


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


def run_commands(
    processes: int, commands: Sequence[Sequence[str]], timeout: float = 600, *, fails: bool = False
) -> list[Said]:
    """Runs megafuser commands one after the other in the same ranks; fails with what they printed if one does.

    Where one is meant to fail, the test fails if none does.
    """
    ports = ",".join(free_ports(len(commands)))
    words = [word for command in commands for word in ("--", *command)][1:]
    return run_ranks(processes, "tests.parallel.run_stages", [ports, *words], timeout, fails=fails)


def run_ranks(
    processes: int,
    module: str,
    arguments: Sequence[str],
    timeout: float = 600,
    *,
    fails: bool = False,
    install: str | None = None,
) -> list[Said]:
    """Runs a module on that many ranks without torchrun, see `forked`; fails with what they said.

    The module sets `MASTER_PORT` itself, anew each time that it makes process groups. Where another one is to be
    installed, it was before the ranks' process had imported anything of megatron-core.
    """
    environment = os.environ | {"MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    with tempfile.TemporaryDirectory() as directory:
        code = _forks(install).run(
            timeout,
            world=processes,
            directory=directory,
            environment=environment,
            module=module,
            arguments=[str(argument) for argument in arguments],
        )
        said = {path.name: path.read_text("utf-8", errors="replace") for path in sorted(Path(directory).iterdir())}
    if code is None or (code != 0) != fails:
        end = f"not ended after {timeout} s" if code is None else f"ended with {code}"
        pytest.fail("\n".join([end, *(f"{name}:\n{text[-6000:]}" for name, text in said.items() if text)]))
    return [Said(said[f"{rank}.out"], said[f"{rank}.err"]) for rank in range(processes)]


class _Forks:
    """A process that forks ranks, see `forked`; it ends with this one."""

    def __init__(self, install: str | None) -> None:
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        self._owner = os.getpid()
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "tests.parallel.forked", *([install] if install else [])],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,  # an answer that lies in a buffer would not be seen by `select`
            start_new_session=True,
        )
        atexit.register(self._end)

    def run(self, timeout: float, **request: Any) -> int | None:
        """The exit code of what `forked.start` is to do; None where it had to be killed."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request).encode() + b"\n")
        try:
            leader = self._answer(_IMPORTED_WITHIN)
        except TimeoutError:
            # its answer would be taken for that to the next request
            self._process.kill()
            _forks.cache_clear()
            raise
        code = None
        try:
            with contextlib.suppress(TimeoutError):
                code = self._answer(timeout)
        finally:
            # also what its ranks have left behind
            with contextlib.suppress(ProcessLookupError):
                os.killpg(leader, signal.SIGKILL)
            if code is None:
                self._answer(_KILLED_WITHIN)
        return code

    def _answer(self, seconds: float) -> int:
        answers = self._process.stdout
        assert answers is not None
        if not select.select([answers], [], [], seconds)[0]:
            raise TimeoutError
        line = answers.readline()
        assert line, "the process that forks ranks has ended; see what it has said on standard error"
        return int(line)

    def _end(self) -> None:
        if os.getpid() != self._owner:
            return
        with contextlib.suppress(OSError):
            assert self._process.stdin is not None
            self._process.stdin.write(b"\n")
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


@functools.cache
def _forks(install: str | None) -> _Forks:
    """One for all tests: importing torch and megatron-core takes longer than most ranks run."""
    return _Forks(install)
