"""Exit codes of what is stopped early, rank by rank."""

import os
import subprocess
import sys

import pytest

PROGRAM = """
import os, signal, sys, threading
from megafuser.cli import main
from megafuser.errors import StoppedEarly

def stop():
    again = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGTERM))
    again.daemon = True
    again.start()
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
    program = PROGRAM.replace("    again.start()\n", "")
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 75, done.stderr
