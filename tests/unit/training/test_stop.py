"""When a stage stops: signals, once and twice, and the time that is left for a save."""

import os
import signal
import subprocess
import sys

import pytest
import torch

from megafuser.training import stop as module
from megafuser.training.stop import ExitTime, Stop

PROGRAM = """
import os, signal, sys, time, torch, torch.distributed as dist
from megafuser.training.stop import Stop
dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
with Stop(torch.device("cpu")) as stop:
    stop.meet()
    print(stop.agreed(), flush=True)
    os.kill(os.getpid(), signal.SIGUSR1)
    if sys.argv[1] == "later":
        time.sleep(2.0)
    os.kill(os.getpid(), signal.SIGTERM)
    if sys.argv[1] == "later":
        time.sleep(100.0)
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
import datetime, os, signal, sys, threading, torch, torch.distributed as dist
from megafuser.training.stop import Stop
with Stop(torch.device("cpu")) as stop:
    if sys.argv[1] == "met":
        stop.meet()
    for after, number in ((0.2, signal.SIGUSR1), (2.2, signal.SIGTERM)):
        threading.Timer(after, os.kill, (os.getpid(), number)).start()
    dist.HashStore().wait(["what nobody posts"], datetime.timedelta(seconds=100))
"""


def test_a_second_signal_ends_a_process_that_waits_for_another() -> None:
    """A collective gives no handler a turn."""
    done = subprocess.run([sys.executable, "-c", WAITING, "met"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 128 + signal.SIGTERM, done.stderr


@pytest.mark.parametrize(("rank", "code"), [("0", 75), ("1", 0)])
def test_before_the_ranks_have_met_the_first_signal_ends_the_process(rank: str, code: int) -> None:
    """It may wait for one that has left already, and under srun only rank 0 may say 75."""
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    command = [sys.executable, "-c", WAITING, "not yet"]
    done = subprocess.run(command, env=os.environ | place, capture_output=True, text=True, timeout=300)
    assert done.returncode == code, done.stderr


MEASURED = ExitTime(40.0, of_its_kind=True)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(module.dist, "get_world_size", lambda: 1)
    return now


def test_there_is_time_for_one_more_step_and_a_save(clock: list[float]) -> None:
    stop = Stop(torch.device("cpu"), time_limit=1000.0)
    steps = 0
    while stop.after_step(save=MEASURED) is None:
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


def test_a_save_by_rank_says_only_what_leaving_takes_at_least(clock: list[float]) -> None:
    """Its 40 seconds are not less than the 100 that are assumed; 400 are more."""
    for seconds, enough in ((40.0, 150), (400.0, 600)):
        stop = Stop(torch.device("cpu"), time_limit=1000.0, started=clock[0] - 1000 + enough + 1)
        assert stop.agreed(save=ExitTime(seconds, of_its_kind=False)) is None
        clock[0] += 2
        assert stop.agreed(save=ExitTime(seconds, of_its_kind=False)) is not None


def test_what_came_before_the_first_step_is_no_step(clock: list[float]) -> None:
    """Half of the time went into loading: that leaves less, but no step takes so long."""
    stop = Stop(torch.device("cpu"), time_limit=1000.0)
    clock[0] += 500
    assert stop.agreed() is None
    clock[0] += 20
    assert stop.after_step(save=MEASURED) is None
    clock[0] += 380
    assert stop.agreed(save=MEASURED) is None
    assert stop.after_step(save=MEASURED) is None, "and so it is where nothing was done since the last step"
    clock[0] += 15
    assert stop.agreed(save=MEASURED) is not None


def test_without_a_limit_there_is_no_end(clock: list[float]) -> None:
    stop = Stop(torch.device("cpu"))
    clock[0] += 1e9
    assert stop.after_step(save=ExitTime(1e9, of_its_kind=True)) is None
