"""What becomes of a report's numbers where its files cannot be written: hours may have gone into them."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from megafuser.errors import NotSavedError, UserError
from megafuser.report import command
from megafuser.report.curves import read_curves

FILES = {"report.html": "<html>", "report.json": "{}"}
REPORT: Any = SimpleNamespace(stage="joint", step=2)


@pytest.fixture(autouse=True)
def told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "to_table", lambda _: "the table")
    monkeypatch.setattr(command, "to_text", lambda _: "the verdict")


def test_another_report_that_has_come_there_meanwhile_stays(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    command._write_and_say(REPORT, FILES, out, overwrite=False)
    (out / "report.json").write_text("theirs")
    capsys.readouterr()
    with pytest.raises(UserError, match="exists; choose another"):
        command._write_and_say(REPORT, FILES, out, overwrite=False)
    said = capsys.readouterr().out
    assert "the table" in said and "the verdict" in said and "report.html" not in said
    assert (out / "report.json").read_text() == "theirs"
    command._write_and_say(REPORT, FILES, out, overwrite=True)
    assert (out / "report.json").read_text() == "{}"


def test_a_disk_without_room_for_a_directory(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "mkdir", full)
    with pytest.raises(NotSavedError, match="No space left on device"):
        command._write_and_say(REPORT, FILES, tmp_path / "out", overwrite=False)
    assert "the table" in (said := capsys.readouterr().out) and "the verdict" in said


def test_metrics_that_cannot_be_read_cost_the_curves_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "metrics.jsonl").write_text("")

    def stale(*_: object, **__: object) -> str:
        raise OSError(116, "Stale file handle")

    monkeypatch.setattr(Path, "read_text", stale)
    assert read_curves(tmp_path / "metrics.jsonl") is None
    assert "metrics.jsonl cannot be read (Stale file handle); the report has no training curves" in caplog.text
