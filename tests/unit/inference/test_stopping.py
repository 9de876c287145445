"""Signals while an evaluation runs: in a step, outside of one, and where somebody swallows what is raised."""

import os
import signal

import pytest

from megafuser.inference.stopping import AskedToStop, Stopping


def ask(number: signal.Signals = signal.SIGTERM) -> None:
    os.kill(os.getpid(), number)


@pytest.fixture(autouse=True)
def handlers_are_given_back():
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)]
    yield
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)] == before


def test_a_step_is_not_left_in_its_middle() -> None:
    done = []
    with Stopping() as stopping, pytest.raises(AskedToStop, match="SIGTERM"):
        with stopping.step():
            done.append("first")
        with stopping.step():
            ask()
            ask()
            done.append("second")
        done.append("third")
    assert done == ["first", "second"]


def test_outside_of_steps_it_ends_at_once_and_no_task_catches_it() -> None:
    with Stopping(), pytest.raises(AskedToStop, match="SIGUSR1"):
        try:
            ask(signal.SIGUSR1)
        except Exception:
            pytest.fail("a task's own scoring would go on")
        pytest.fail("it went on")


def test_what_was_swallowed_ends_it_at_the_next_step() -> None:
    done = []
    with Stopping() as stopping, pytest.raises(AskedToStop):
        try:
            ask()
        except BaseException:
            done.append("swallowed")
        with stopping.step():
            done.append("step")
        done.append("more")
    assert done == ["swallowed", "step"]


def test_a_mistake_in_a_step_stays_one() -> None:
    with Stopping() as stopping, pytest.raises(ZeroDivisionError), stopping.step():
        raise ZeroDivisionError
