"""The experiment with longer trainings takes of a run's jobs what its tables need, and nothing else."""

import sys
from pathlib import Path
from types import ModuleType
from unittest.mock import MagicMock

import pytest

from examples.miniature import longer, run
from examples.miniature.jobs import Jobs
from examples.miniature.longer import SETTINGS, needed
from examples.miniature.settings import FULL


def test_it_is_the_core_of_one_seed(tmp_path: Path) -> None:
    jobs = needed(Jobs(SETTINGS, tmp_path, tmp_path, merging=Path()).all(SETTINGS.seeds))
    names = {job.name for job in jobs}
    assert len(names) == len(jobs)
    assert {other for job in jobs for other in job.waits_for} <= names
    for domain in ("text", "code", "math"):
        assert {f"seed1-specialist-{domain}", f"seed1-evaluate-trained-on-{domain}"} <= names
    assert {"seed1-report-balanced-warmup", "seed1-report-balanced-joint"} <= names
    assert not [name for name in names if any(word in name for word in ("ties", "btx", "larger", "fine-tune", "gate"))]


def test_only_the_limit_is_another() -> None:
    assert SETTINGS.flat_most_tokens > FULL.flat_most_tokens
    assert vars(SETTINGS) | {"flat_most_tokens": FULL.flat_most_tokens, "seeds": FULL.seeds} == vars(FULL)


@pytest.mark.parametrize("module", [run, longer])
@pytest.mark.parametrize("jobs", ["0", "-1"])
def test_no_jobs_at_a_time_are_refused_before_anything_is_made(
    module: ModuleType, jobs: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "Scheduler", MagicMock())  # of what is not refused, nothing runs
    monkeypatch.setattr(sys, "argv", ["program", "--out", str(tmp_path / "out"), "--jobs", jobs])
    with pytest.raises(SystemExit) as ended:
        module.main()
    assert ended.value.code == 2 and f"--jobs must be at least 1, not {jobs}" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
