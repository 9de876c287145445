"""What all tests share."""

import gc
import os
import signal

import pytest

# Set by launchers; a test that is itself started by one must not take their ranks for its own.
_LAUNCHER_VARIABLES = (
    "RANK",
    "WORLD_SIZE",
    "LOCAL_RANK",
    "MASTER_ADDR",
    "MASTER_PORT",
    "SLURM_PROCID",
    "SLURM_STEP_ID",
)


@pytest.fixture(scope="session", autouse=True)
def no_launcher() -> None:
    for name in _LAUNCHER_VARIABLES:
        os.environ.pop(name, None)


@pytest.fixture(scope="session", autouse=True)
def interruptible() -> None:
    # A shell without job control starts what it puts in the background with SIGINT ignored, and children inherit that:
    # a program under test could not be interrupted.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_finish() -> None:
    """What was imported stays: a full collection would look at half a million objects of it."""
    gc.collect()
    gc.freeze()


_threads_left = 0


def pytest_runtest_logfinish() -> None:
    """Ends the threads of process groups that nobody has any more, each of which wakes a hundred times a second.

    Models and optimizers hold their groups in cycles, and a full collection by itself is rare: hundreds of such threads
    took a sixth of the processor time.
    """
    global _threads_left
    if len(os.listdir("/proc/self/task")) > _threads_left + 40:
        gc.collect()
        _threads_left = len(os.listdir("/proc/self/task"))
