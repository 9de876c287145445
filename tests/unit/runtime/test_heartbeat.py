"""What signs of life tell, and what they do not."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from megafuser.runtime.heartbeat import Watcher
from tests.ports import free_ports


def sign(count: int, step: int = 0, marks: int | None = None, **more: object) -> dict[str, object]:
    return {"count": count, "step": step, "marks": step if marks is None else marks, "host": f"node{count % 2}", **more}


def test_a_rank_that_goes_silent_is_lost_and_the_others_are_not() -> None:
    watcher = Watcher(silent_seconds=60, stuck_seconds=1800)
    for second in range(0, 300, 10):
        watcher.take(1, sign(second, step=second), second)
        watcher.take(2, sign(min(second, 100), step=min(second, 100)), second)
        expected = second > 160
        verdict = watcher.verdict(second)
        assert (verdict is not None) == expected
        if verdict is not None:
            assert verdict.startswith("rank 2 on node0 gave no sign for 60 s, after step 100")
            assert "--exclude=node0)" in verdict


def test_ranks_that_give_signs_but_do_not_get_on_are_stuck_and_those_behind_are_named() -> None:
    watcher = Watcher(silent_seconds=60, stuck_seconds=600)
    for second in range(0, 2000, 10):
        watcher.take(1, sign(second, step=7), second)
        watcher.take(2, sign(second, step=6), second)
        verdict = watcher.verdict(second)
        assert (verdict is not None) == (second > 600)
    assert verdict == (
        "nothing has gone on for 10 min; rank 2 on node0 stand after step 6; exclude the node (sbatch --exclude=node0) "
        "and run the same command again, or raise faults.stuck_minutes where a step takes so long"
    )


def test_who_watches_may_be_the_one_that_is_stuck() -> None:
    """Rank 0 judges itself as well, but not once nobody waits for it any more."""
    watcher = Watcher(silent_seconds=60, stuck_seconds=600, own=0)
    for second in (0, 10, 700):
        watcher.take(0, sign(second, step=6), second)
        watcher.take(1, sign(second, step=6, marks=7), second)
    assert str(watcher.verdict(700)).startswith("nothing has gone on for 10 min; rank 0 on node0 stand after step 6; ")
    watcher.take(1, sign(701, done=True), 701)
    assert watcher.verdict(702) is None


def test_who_sees_one_rank_alone_names_it() -> None:
    watcher = Watcher(silent_seconds=60, stuck_seconds=600)
    for second in (0, 700):
        watcher.take(0, sign(second, step=6), second)
    assert "; rank 0 on node0 stand after step 6" in str(watcher.verdict(700))


def test_a_validation_after_a_step_is_getting_on() -> None:
    watcher = Watcher(silent_seconds=60, stuck_seconds=600)
    for second in range(0, 2000, 10):
        watcher.take(1, sign(second, step=7, marks=second // 500), second)
        assert watcher.verdict(second) is None


def test_who_is_done_is_not_missed() -> None:
    watcher = Watcher(silent_seconds=60, stuck_seconds=600)
    watcher.take(1, sign(1), 0)
    watcher.take(1, sign(2, done=True), 10)
    assert watcher.verdict(10000) is None


def test_nobody_is_lost_before_the_first_sign() -> None:
    assert Watcher(silent_seconds=60, stuck_seconds=600).verdict(10000) is None


PROGRAM = """
import os, sys, time, torch.distributed as dist
from megafuser.errors import StoppedEarly, UserError
from megafuser.runtime import heartbeat
port, how = sys.argv[1:]
# rank 1 is a fork: importing takes longer than all the rest
rank = 0 if os.fork() else 1
if rank == 1:
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
heartbeat._TELLING_SECONDS = 3.0
dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
errors = {"fails": ArithmeticError, "stops": StoppedEarly}
def lost(found):
    if how == "disk is full":
        raise OSError(28, "No space left on device")
    if how == "disk hangs":
        time.sleep(100)
silent, stuck = (3.0, 5.0) if how == "rank 0 hangs" else (2.0, 600.0)
beat = heartbeat.Heartbeat(silent, stuck, lost=lost)
dist.barrier()
try:
    with beat:
        beat.mark(3)
        dist.barrier()
        if how == "rank 0 hangs":
            if rank == 1:
                beat.mark()
            time.sleep(60)
        if rank == 1:
            told = beat._count
            while beat._count < told + 2:  # one sign at least was begun after step 3
                time.sleep(0.01)
            raise errors.get(how, ArithmeticError)
        time.sleep(5 if how == "stops" else 60)
        print("not missed", flush=True)
except (ArithmeticError, StoppedEarly):
    # as where the process group's end waits for the others
    time.sleep(60)
"""


@contextlib.contextmanager
def two_ranks(how: str) -> Iterator["subprocess.Popen[str]"]:
    """Rank 0 of the program; rank 1, which it forks, is ended with the block."""
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *free_ports(1), how],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as rank_0:
        try:
            yield rank_0
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(rank_0.pid, signal.SIGKILL)


@pytest.mark.parametrize("how", ["fails", "disk is full", "disk hangs", "stops"])
def test_who_fails_alone_is_named_and_who_stops_is_not(how: str) -> None:
    """Whatever becomes of the run's own record of it."""
    with two_ranks(how) as rank_0:
        said, errors = rank_0.communicate(timeout=300)
        if how == "stops":
            assert (rank_0.returncode, said) == (0, "not missed\n"), errors
        else:
            assert (rank_0.returncode, said) == (1, ""), errors
            assert "gave no sign for 2 s, after step 3" in errors and "rank 1 on" in errors


def test_rank_0_names_itself_where_it_is_the_one_that_hangs() -> None:
    """The others, who see rank 0 alone, let it speak first: it is the one that writes the run's events."""
    with two_ranks("rank 0 hangs") as rank_0:
        _, errors = rank_0.communicate(timeout=300)
        assert rank_0.returncode == 1
        assert "nothing has gone on for 0 min; rank 0 on" in errors and "stand after step 3" in errors
