"""What standard error says: lines without carriage returns in a log, a bar on a terminal."""

import io
import logging
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import pytest

from megafuser.watching import progress
from megafuser.watching.progress import LogLines, ProgressBar, eta_text, start_progress

DOMAINS, SPECIALISTS = ["text", "code"], ["t", "c"]


def train_line(step: int, **more: Any) -> dict[str, Any]:
    gate = {"gate/text/t": 0.75, "gate/text/c": 0.25, "gate/code/t": 0.1, "gate/code/c": 0.9}
    losses = {"loss": 2.5, "loss/text": 2.25, "loss/code": 2.75}
    speed = {"tokens_per_second": 12345.6, "step_seconds": 1.5, "packing_efficiency": 0.97}
    return {"stage": "joint", "split": "train", "step": step, **losses, **gate, **speed, **more}


class Clock:
    """Time that passes when told to."""

    now = 1000.0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(LogLines, "_now", lambda self: clock.now)
    return clock


@pytest.fixture
def said() -> Iterator[list[str]]:
    """What is logged meanwhile; the program's own handlers may stand in the way of pytest's."""
    entries: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda entry: entries.append(entry.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("megafuser.watching.progress")
    logger.addHandler(handler)
    level, logger.level = logger.level, logging.INFO
    yield entries
    logger.removeHandler(handler)
    logger.level = level


def test_a_log_gets_a_line_for_the_first_step_the_last_and_after_a_time(clock: Clock, said: list[str]) -> None:
    lines = LogLines("joint", 100, 120, DOMAINS, SPECIALISTS, every=30.0)
    for step in range(101, 121):
        clock.now += 8.0
        lines.update(train_line(step))
    lines.close()
    assert [text.split(":")[0] for text in said] == [f"joint {step}/120" for step in (101, 105, 109, 113, 117, 120)]
    # 16 steps in 128 seconds since the start at step 100, three to go
    assert "ETA 0:00:24 (" in said[4]
    assert "ETA" not in said[5]


def test_a_line_says_losses_gate_and_speed(clock: Clock, said: list[str]) -> None:
    lines = LogLines("joint", 0, 2, DOMAINS, SPECIALISTS, every=0.0)
    clock.now += 3600
    lines.update(train_line(1, mfu=0.4321))
    lines.update({key: value for key, value in train_line(2).items() if "code" not in key})
    lines.validated({"stage": "joint", "split": "valid", "step": 2, "loss": 2.0, "loss/text": 1.5, "loss/code": 3.0})
    assert said[0].startswith(
        "joint 1/2: loss 2.500 (text 2.250, code 2.750), gate text 0.75/0.25, code 0.10/0.90, 12,346 tokens/s, "
        "1.50 s/step, MFU 43.2%, ETA 1:00:00 ("
    )
    assert said[1] == "joint 2/2: loss 2.500 (text 2.250), gate text 0.75/0.25, 12,346 tokens/s, 1.50 s/step"
    assert said[2] == "joint 2/2: validation loss 2.000 (text 1.500, code 3.000)"


def test_what_remains_is_told_with_the_time_of_day() -> None:
    assert eta_text(3 * 3600 + 61.4, datetime(2026, 3, 7, 23, 30)) == "3:01:01 (Sun 02:31)"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_bar_on_a_terminal_and_lines_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ("joint", 1, 3, DOMAINS, SPECIALISTS, 30.0)
    monkeypatch.setattr(progress.sys, "stderr", io.StringIO())
    assert isinstance(start_progress(*arguments), LogLines)
    assert progress.sys.stderr.getvalue() == ""
    monkeypatch.setattr(progress.sys, "stderr", Terminal())
    bar = start_progress(*arguments)
    assert isinstance(bar, ProgressBar)
    for step in (2, 3):
        bar.update(train_line(step))
    bar.validated({"stage": "joint", "step": 3, "loss": 2.0, "loss/text": 1.5})
    bar.close()
    shown = progress.sys.stderr.getvalue()
    assert "3/3" in shown and "\r" in shown
    assert "loss 2.500, 97 % packed, gate text 0.75/0.25, code 0.10/0.90" in shown
    assert "joint step 3: validation loss 2.000 (text 1.500)\n" in shown
