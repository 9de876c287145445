"""Exit codes of what is stopped early, rank by rank."""

import os
import subprocess
import sys

import pytest

from megafuser.cli import main
from megafuser.errors import NotSavedError

PROGRAM = """
import os, signal, sys, time
from megafuser.cli import main
from megafuser.errors import StoppedEarly

def asked_again(seconds, sleep=time.sleep):
    os.kill(os.getpid(), signal.SIGTERM)
    sleep(seconds)

def stop():
    time.sleep = asked_again
    raise StoppedEarly("asked to")

main._OTHERS_LEAVE_WITHIN = 1.0
sys.exit(main.run_guarded(stop))
"""


@pytest.mark.parametrize(("rank", "code"), [(0, 75), (1, 0)])
def test_rank_zero_leaves_last_with_75_though_it_is_asked_again(rank: int, code: int) -> None:
    """As at the end of a grace time; any other code would keep the job from the queue."""
    place = {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank)}
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=os.environ | place, capture_output=True, text=True)
    assert done.returncode == code, done.stderr


def test_a_process_alone_leaves_with_75() -> None:
    program = PROGRAM.replace("    time.sleep = asked_again\n", "")
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 75, done.stderr


@pytest.mark.parametrize(("rank", "code"), [(1, 0), (3, 0)])
def test_under_srun_the_others_do_not_wait_for_their_interpreters_end(rank: int, code: int) -> None:
    """It may take longer than rank 0 waits; srun would then end them, and 143 hide rank 0's 75."""
    said = '    print("said")\n    logging.warning("logged")\n    raise StoppedEarly'
    program = "import atexit, logging\nlogging.basicConfig()\n" + PROGRAM.replace("    raise StoppedEarly", said)
    # the end of the interpreter's own is a signal that comes before it is over
    program = program.replace("time.sleep = asked_again", "atexit.register(os.kill, os.getpid(), signal.SIGTERM)")
    place = {"SLURM_PROCID": str(rank), "SLURM_NTASKS": "4", "SLURM_LOCALID": str(rank % 2), "SLURM_STEP_ID": "0"}
    inherited = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    done = subprocess.run([sys.executable, "-c", program], env=inherited | place, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (code, "said\n"), done.stderr
    assert "logged" in done.stderr


@pytest.mark.parametrize(("rank", "waited"), [(0, main._OTHERS_LEAVE_WITHIN), (1, main._RANK_ZERO_SPEAKS_WITHIN)])
def test_rank_zero_leaves_last_where_it_could_not_save(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], rank: int, waited: float
) -> None:
    """The others, which only followed it, leave with 0."""

    def full() -> int:
        raise NotSavedError("out cannot be written; make room")

    pauses: list[float] = []
    for name, value in {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank)}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(main.time, "sleep", pauses.append)
    assert main.run_guarded(full) == 75
    assert pauses == [waited]
    assert capsys.readouterr().err.endswith("out cannot be written; make room\n")


def test_a_text_that_a_library_leaves_with_is_no_success(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run_guarded(lambda: sys.exit("a program is missing")) == 1
    assert capsys.readouterr().err == "megafuser: error: a program is missing\n"
    assert main.run_guarded(sys.exit) == 1
    assert capsys.readouterr().err == "megafuser: error: a library ended the command; see what it said above\n"
    assert [main.run_guarded(lambda code=code: sys.exit(code)) for code in (0, 3)] == [0, 3]
