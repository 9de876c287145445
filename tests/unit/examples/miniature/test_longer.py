"""The experiment with longer trainings takes of a run's jobs what its tables need, and nothing else."""

import sys
from pathlib import Path
from types import ModuleType
from unittest.mock import MagicMock

import pytest

from examples.miniature import longer, run
from examples.miniature.jobs import Jobs
from examples.miniature.longer import NAME, SETTINGS, needed
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


@pytest.mark.parametrize(("worst", "ends"), [(1e-6, False), (1e-3, True), (float("nan"), True)])
def test_implementations_that_disagree_do_not_reach_the_document(
    worst: float, ends: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    document = tmp_path / "document.md"
    document.write_text(f"<!-- {NAME}:begin -->\nbefore\n<!-- {NAME}:end -->\n", "utf-8")
    checked = {"worst": worst, "bound": 1e-4, "same_data": {}, "flat": {}}
    monkeypatch.setattr(longer, "Scheduler", MagicMock())
    monkeypatch.setattr(longer, "Seed", MagicMock())
    monkeypatch.setattr(longer, "agreement", lambda *_: checked)
    monkeypatch.setattr(longer, "tables", lambda _, own: [f"worst: {own['worst']}"])
    monkeypatch.setattr(sys, "argv", ["program", "--out", str(tmp_path / "out"), "--into", str(document)])
    if ends:
        with pytest.raises(SystemExit, match="two implementations differ by"):
            longer.main()
    else:
        longer.main()
    assert (tmp_path / "out" / "table.md").read_text("utf-8") == f"worst: {worst}"
    assert ("before" in document.read_text("utf-8")) == ends


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
