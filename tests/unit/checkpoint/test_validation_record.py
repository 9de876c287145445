"""What is the best validation so far, and how long ago it was."""

import math
from collections.abc import Sequence

import pytest

from megafuser.checkpoint.validation_record import ValidationRecord


def record_of(losses: Sequence[float]) -> ValidationRecord:
    record = ValidationRecord()
    for step, loss in enumerate(losses, start=1):
        record = record.after(step, loss)
    return record


@pytest.mark.parametrize(
    ("losses", "best", "since"),
    [
        ([3.0], 1, 0),
        ([3.0, 2.0, 1.0], 3, 0),
        ([3.0, 2.0, 2.5, 2.0], 2, 2),
        ([3.0, math.nan, 2.0, math.nan], 3, 1),
        ([math.nan, 2.0], 2, 0),
    ],
)
def test_the_record(losses: list[float], best: int, since: int) -> None:
    record = record_of(losses)
    assert (record.best_step, record.since, record.step) == (best, since, len(losses))
    assert record.loss == (losses[-1] if math.isfinite(losses[-1]) else None)
    assert record.has_run_out(since + 1) is False and record.has_run_out(None) is False
    assert record.has_run_out(max(since, 1)) is (since > 0)


def test_of_other_samples_it_begins_anew() -> None:
    record = record_of([3.0, 4.0])  # of a release that did not say of how many
    same = record.after(3, 5.0, 8)
    assert (same.best_step, same.since, same.samples) == (1, 2, 8)
    assert same.after(4, 5.0, 8).since == 3
    for loss, since in ((5.0, 0), (math.nan, 1)):
        other = same.after(4, loss, 9)
        assert (other.best_loss, other.since, other.samples) == (None if since else 5.0, since, 9)
    assert same.after(4, 6.0).since == 3


@pytest.mark.parametrize(
    ("losses", "said"),
    [
        ([], "not validated yet"),
        ([math.nan, math.nan], "no validation loss was finite"),
        ([3.0], "the best validation loss is 3.0000, of step 1"),
        ([3.0, 4.0], "the best validation loss is 3.0000, of step 1, and the one since then was no better"),
        ([3.0, 4, 5], "the best validation loss is 3.0000, of step 1, and the 2 validations since then were no better"),
    ],
)
def test_in_words(losses: list[float], said: str) -> None:
    assert str(record_of(losses)) == said
