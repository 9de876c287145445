"""When a stage stops: signals, once and twice, and the time that is left for a save."""

import signal
import subprocess
import sys

import pytest
import torch

from megafuser.training import stop as module
from megafuser.training.stop import Stop

PROGRAM = """
import os, signal, sys, time, torch, torch.distributed as dist
from megafuser.training.stop import Stop
dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
with Stop(torch.device("cpu")) as stop:
    print(stop.agreed(), flush=True)
    os.kill(os.getpid(), signal.SIGUSR1)
    if sys.argv[1] == "later":
        time.sleep(1.0)
    os.kill(os.getpid(), signal.SIGTERM)
    print(stop.agreed(), flush=True)
os.kill(os.getpid(), signal.SIGTERM)
"""


@pytest.mark.parametrize(("when", "code"), [("at once", -signal.SIGTERM), ("later", 128 + signal.SIGTERM)])
def test_a_second_signal_ends_the_process_and_two_at_once_are_one(when: str, code: int) -> None:
    """Launchers pass on what their process group was sent too. Afterwards the signals are the system's again."""
    done = subprocess.run([sys.executable, "-c", PROGRAM, when], capture_output=True, text=True, timeout=300)
    assert done.returncode == code, done.stderr
    assert done.stdout.splitlines() == ["None", "SIGUSR1 was received"][: 2 if when == "at once" else 1]


WAITING = """
import datetime, os, signal, threading, torch, torch.distributed as dist
from megafuser.training.stop import Stop
with Stop(torch.device("cpu")):
    for after, number in ((0.2, signal.SIGUSR1), (1.2, signal.SIGTERM)):
        threading.Timer(after, os.kill, (os.getpid(), number)).start()
    dist.HashStore().wait(["what nobody posts"], datetime.timedelta(seconds=20))
"""


def test_a_second_signal_ends_a_process_that_waits_for_another() -> None:
    """A collective gives no handler a turn."""
    done = subprocess.run([sys.executable, "-c", WAITING], capture_output=True, text=True, timeout=300)
    assert done.returncode == 128 + signal.SIGTERM, done.stderr


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(module.dist, "get_world_size", lambda: 1)
    return now


def test_there_is_time_for_one_more_step_and_a_save(clock: list[float]) -> None:
    stop = Stop(torch.device("cpu"), time_limit=1000.0)
    steps = 0
    while stop.after_step(save_seconds=40.0) is None:
        clock[0] += 20.0
        steps += 1
    assert 1000 - 1.5 * (20 + 40) - 20 <= clock[0] - 100 <= 1000 - 20 - 40
    assert steps == 46


def test_before_a_save_was_measured_a_share_of_the_limit_is_kept(clock: list[float]) -> None:
    stop = Stop(torch.device("cpu"), time_limit=1000.0)
    clock[0] += 849
    assert stop.agreed() is None
    clock[0] += 2
    assert stop.agreed() == "the time limit is near"
    assert Stop(torch.device("cpu"), time_limit=1e6, started=clock[0] - 1e6 + 460).agreed() is None
    assert Stop(torch.device("cpu"), time_limit=1e6, started=clock[0] - 1e6 + 440).agreed() is not None


def test_what_came_before_the_first_step_is_no_step(clock: list[float]) -> None:
    """Half of the time went into loading: that leaves less, but no step takes so long."""
    stop = Stop(torch.device("cpu"), time_limit=1000.0)
    clock[0] += 500
    assert stop.agreed() is None
    clock[0] += 20
    assert stop.after_step(save_seconds=40.0) is None
    clock[0] += 380
    assert stop.agreed(save_seconds=40.0) is None
    assert stop.after_step(save_seconds=40.0) is None, "and so it is where nothing was done since the last step"
    clock[0] += 15
    assert stop.agreed(save_seconds=40.0) is not None


def test_without_a_limit_there_is_no_end(clock: list[float]) -> None:
    stop = Stop(torch.device("cpu"))
    clock[0] += 1e9
    assert stop.after_step(save_seconds=1e9) is None
