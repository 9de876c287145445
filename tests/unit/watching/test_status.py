"""`megafuser status` on directories of runs in every state, made up to the second."""

import json
import math
import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from megafuser.errors import UserError
from megafuser.watching.status import Status, read_status
from megafuser.watching.status_text import duration, status_text

START = 1_800_000_000.0


def line(step: int, split: str = "train", stage: str = "joint", **more: Any) -> dict[str, Any]:
    timing = {"step_seconds": 2.0 + (step % 3), "tokens_per_second": 1000.0 + step} if split == "train" else {}
    losses = {"loss": 3.0 - step / 100, "loss/text": 2.0, "loss/code": 4.0, "gate/text/a": 0.9, "gate/text/b": 0.1}
    return {"stage": stage, "split": split, "step": step, **losses, **timing, **more}


def event(kind: str, seconds: float, stage: str = "joint", message: str = "", **more: Any) -> dict[str, Any]:
    return {"time": START + seconds, "event": kind, "stage": stage, "message": message, **more}


def make_run(
    root: Path, lines: list[dict[str, Any]], happened: list[dict[str, Any]], written: float, **settings: Any
) -> Path:
    """A run's directory whose metrics were written `written` seconds after the start; `settings` are configured."""
    specialist = {"checkpoint": "x", "template": "plain"}
    domain = {"train": ["t.jsonl"], "valid": ["v.jsonl"]}
    config = {
        "run_dir": str(root),
        "specialists": [{"name": name, **specialist} for name in ("a", "b")],
        "data": {"sequence_length": 128, "domains": {"text": domain, "code": domain}},
        "warmup": {"steps": 40},
        "joint": {"steps": 100},
        **settings,
    }
    root.mkdir()
    (root / "config.yaml").write_text(yaml.safe_dump(config))
    for name, entries in (("metrics.jsonl", lines), ("events.jsonl", happened)):
        if entries:
            (root / name).write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    if lines:
        os.utime(root / "metrics.jsonl", (START + written, START + written))
    return root


def add_checkpoint(run: Path, stage: str, step: int, seconds: float) -> Path:
    directory = run / stage / f"step_{step:06d}"
    directory.mkdir(parents=True)
    (directory / "manifest.json").write_text("{}")
    os.utime(directory / "manifest.json", (START + seconds, START + seconds))
    (run / stage / "latest").write_text(directory.name + "\n")
    return directory


@pytest.fixture
def running(tmp_path: Path) -> Path:
    """Sixty joint steps at 5 seconds each with what is between them, the last 40 since a restart."""
    lines = [line(40, stage="warmup"), *(line(step) for step in range(1, 61)), line(60, "valid")]
    lines[11]["loss_spike"] = 1
    happened = [
        event("started", -500, "warmup", step=0),
        event("finished", -300, "warmup"),
        event("started", 0, step=0),
        event("warning", 10, message="loss spike at joint step 11: loss 9.0"),
        event("failed", 200, message="OSError: no space"),
        event("started", 300, step=20),
    ]
    run = make_run(tmp_path / "run", lines, happened, written=500)
    add_checkpoint(run, "joint", 50, 450)
    return run


def at(run: Path, seconds: float) -> Status:
    return read_status(run, START + seconds)


def test_a_running_run(running: Path) -> None:
    status = at(running, 510)
    assert (status.state, status.stage, status.step, status.steps) == ("running", "joint", 60, 100)
    # the last 50 steps: 11 to 60, of 2, 3, and 4 seconds
    assert status.step_seconds == 3.0
    assert status.tokens_per_second == pytest.approx(1035.5)
    # 40 steps in 200 seconds since the restart; 40 to go
    assert status.pace == pytest.approx(5.0)
    assert status.remaining == pytest.approx(200.0)
    assert status.ends_at == pytest.approx(START + 700)
    assert status.last_line_age == pytest.approx(10.0)
    assert status.train == line(60) and status.valid == line(60, "valid")
    assert status.checkpoint is not None
    assert (status.checkpoint.step, status.checkpoint.age) == (50, pytest.approx(60.0))
    assert (status.starts, status.loss_spikes, status.warning_count) == (2, 1, 2)
    assert [entry["event"] for entry in status.warnings] == ["warning", "failed"]
    assert status.later_stages == {}


def test_in_words(running: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = status_text(at(running, 510)).splitlines()
    assert said[0] == f"{running}: joint, step 60 of 100 (60.0%), running"
    rows = {row[2:14].strip(): row[15:] for row in said[1:] if row[2:14].strip()}
    assert rows["speed"] == "3.00 s/step, 1,036 tokens/s"
    assert ", in 0:03:20 (5.00 s a step with validations and checkpoints)" in rows["ends"]
    assert rows["train"] == "step 60, 10.0 s ago: loss 2.4000 (text 2.0000, code 4.0000)"
    assert rows["validation"] == "step 60: loss 2.4000 (text 2.0000, code 4.0000)"
    assert rows["gate"] == "text: a 0.90, b 0.10"
    assert rows["checkpoint"] == f"{running}/joint/step_000050, 0:01:00 old"
    assert rows["spikes"] == "1 steps with a loss far above those before them"
    assert said[-1].endswith("  joint: OSError: no space")


def test_a_skipped_step_has_no_loss_to_show(running: Path) -> None:
    skipped = {key: value for key, value in line(61).items() if not key.startswith("loss")} | {"skipped": 1}
    with (running / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(skipped) + "\n")
    os.utime(running / "metrics.jsonl", (START + 500, START + 500))
    assert "step 61, 10.0 s ago: skipped, since its loss was not finite" in status_text(at(running, 510))


def test_json_has_no_nan(running: Path) -> None:
    """Which runs of older versions have in their metrics."""
    with (running / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(line(61) | {"loss": math.nan}) + "\n")
    os.utime(running / "metrics.jsonl", (START + 500, START + 500))
    assert json.loads(at(running, 510).to_json(), parse_constant=pytest.fail)["train"]["loss"] is None


def test_json_has_every_field(running: Path) -> None:
    found = json.loads(at(running, 510).to_json())
    assert found.keys() == {field for field in Status.__dataclass_fields__}
    assert found["checkpoint"]["step"] == 50 and found["train"]["loss"] == 2.4


@pytest.mark.parametrize(("seconds", "state"), [(799, "running"), (801, "stalled")])
def test_no_new_line_for_long(running: Path, seconds: float, state: str) -> None:
    """Steps take 3 seconds, so it is the 5 minutes that count."""
    status = at(running, seconds)
    assert status.state == state
    assert (status.ends_at is None) == (state == "stalled")
    if state == "stalled":
        assert "stalled: no new line for 0:05:01, where a step takes 3.0 s; look" in status_text(status)


def test_slow_steps_are_given_their_time(tmp_path: Path) -> None:
    lines = [line(step, step_seconds=60.0) for step in range(1, 5)]
    run = make_run(tmp_path / "run", lines, [event("started", 0, step=0)], written=240)
    assert at(run, 240 + 19 * 60).state == "running"
    assert at(run, 240 + 21 * 60).state == "stalled"


@pytest.mark.parametrize(("kind", "state"), [("stopped", "stopped"), ("failed", "failed")])
def test_a_run_that_ended_early_says_why(running: Path, kind: str, state: str) -> None:
    with (running / "events.jsonl").open("a") as file:
        file.write(json.dumps(event(kind, 505, message="saved; run it again to go on")) + "\n")
    status = at(running, 10_000)
    assert (status.state, status.remaining) == (state, None)
    assert status_text(status).splitlines()[0].endswith(f"{state}: saved; run it again to go on")


def test_a_warning_after_an_early_end_is_of_the_next_start(running: Path) -> None:
    with (running / "events.jsonl").open("a") as file:
        for entry in (event("stopped", 505), event("started", 520, step=60)):
            file.write(json.dumps(entry) + "\n")
    assert at(running, 530).state == "starting"
    assert at(running, 900).state == "stalled"


def test_a_finished_run_stays_finished(tmp_path: Path) -> None:
    lines = [line(step) for step in (99, 100)]
    happened = [event("started", 0, step=98), event("finished", 20)]
    run = make_run(tmp_path / "run", lines, happened, written=10)
    assert at(run, 25).state == at(run, 1e6).state == "finished"
    assert at(run, 25).ends_at is None


def test_a_run_whose_last_state_is_not_saved_is_not_finished(tmp_path: Path) -> None:
    """A large checkpoint takes longer than the 5 minutes, and whoever exported now would get the one before."""
    run = make_run(tmp_path / "run", [line(99), line(100)], [event("started", 0, step=98)], written=10)
    add_checkpoint(run, "joint", 50, 0)
    assert (at(run, 100).state, at(run, 400).state) == ("running", "stalled")
    add_checkpoint(run, "joint", 100, 390)
    assert at(run, 400).state == "finished"


def test_a_stage_that_ended_by_patience_waits_for_no_more_steps(tmp_path: Path) -> None:
    """Two validations no better than the first, in step 20; the last checkpoint is written until 110 s."""
    losses = {20: 2.0, 40: 2.5, 60: 2.0}
    lines = [line(step) for step in range(1, 61)]
    lines += [line(step, "valid", loss=loss) for step, loss in losses.items()]
    happened = [event("started", 0, step=0)]
    run = make_run(tmp_path / "run", lines, happened, written=100, evaluation={"interval": 20, "patience": 2})
    status = at(run, 105)
    assert (status.state, status.early, status.step, status.steps) == ("running", True, 60, 100)
    assert (status.remaining, status.ends_at) == (0.0, START + 100)
    with (run / "events.jsonl").open("a") as file:
        file.write(json.dumps(event("finished", 110)) + "\n")
    status = at(run, 1e6)
    assert (status.state, status.early, status.remaining, status.ends_at) == ("finished", True, None, None)
    why = "the best validation loss is 2.0000, of step 20, and the 2 validations since then were no better"
    headline = status_text(status).splitlines()[0]
    assert headline == f"{run}: joint, step 60 of 100 (60.0%), finished: stopped early: {why}"
    # a copy of the run without its events says the same
    (run / "events.jsonl").unlink()
    assert (at(run, 1e6).state, at(run, 1e6).early) == ("finished", True)


@pytest.mark.parametrize(("patience", "after"), [(3, 0), (2, 1), (None, 0)])
def test_patience_that_lasts_ends_nothing(tmp_path: Path, patience: int | None, after: int) -> None:
    """It is larger, or the stage went on with more of it before; then the end is one at the latest."""
    losses = {20: 2.0, 40: 2.5, 60: 2.0}
    lines = [line(step) for step in range(1, 61 + after)]
    lines += [line(step, "valid", loss=loss) for step, loss in losses.items()]
    happened = [event("started", 0, step=0)]
    run = make_run(tmp_path / "run", lines, happened, written=100, evaluation={"interval": 20, "patience": patience})
    status = at(run, 105)
    assert (status.state, status.early, status.said, status.patience) == ("running", False, None, patience)
    assert status.remaining == pytest.approx((40 - after) * status.pace)
    assert ("at the latest" in status_text(status)) == (patience is not None)
    assert at(run, 1e6).state == "stalled"


def test_a_stage_that_failed_after_its_patience_ran_out_has_failed(tmp_path: Path) -> None:
    lines = [*(line(step) for step in (1, 2)), line(1, "valid"), line(2, "valid", loss=9.0)]
    happened = [event("started", 0, step=0), event("failed", 20, message="OSError: no space")]
    run = make_run(tmp_path / "run", lines, happened, written=10, evaluation={"interval": 1, "patience": 1})
    status = at(run, 25)
    assert (status.state, status.early, status.said) == ("failed", False, "OSError: no space")


def test_a_copy_without_events_is_read_from_its_metrics(tmp_path: Path) -> None:
    lines = [line(step, stage="warmup") for step in range(1, 21)]
    status = at(make_run(tmp_path / "run", lines, [], written=100), 110)
    assert (status.state, status.stage, status.step, status.steps) == ("running", "warmup", 20, 40)
    assert status.pace == status.step_seconds == 3.0 and status.remaining == 60.0
    assert status.later_stages == {"joint": 100}
    assert "; then joint, 100 steps" in status_text(status)
    assert "checkpoint   none yet" in status_text(status)


def test_a_run_that_has_not_begun(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", [], [], written=0)
    assert status_text(at(run, 0)) == f"{run}: not started"
    (run / "events.jsonl").write_text(json.dumps(event("started", 0, "warmup", step=0)) + "\n")
    status = at(run, 5)
    assert (status.state, status.stage, status.step, status.train) == ("starting", "warmup", 0, None)
    assert "warmup, step 0 of 40 (0.0%), starting" in status_text(status)


def test_a_line_that_is_being_written_is_not_read(running: Path) -> None:
    with (running / "metrics.jsonl").open("a") as file:
        file.write('{"stage": "joint", "split": "train", "step": 61, "lo')
    os.utime(running / "metrics.jsonl", (START + 500, START + 500))
    assert at(running, 510).step == 60


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no run directory at .*absent: no such directory; give"):
        read_status(tmp_path / "absent")
    with pytest.raises(UserError, match="is not a run directory: it has neither"):
        read_status(tmp_path)


def test_durations() -> None:
    assert [duration(seconds) for seconds in (3.21, 75, 90000)] == ["3.2 s", "0:01:15", "1 day, 1:00:00"]


def test_a_stage_that_ended_early_and_is_started_again_goes_on(tmp_path: Path) -> None:
    """For other samples, whose losses cannot be compared; whose end was the same has nothing to start."""
    lines = [*(line(step) for step in (1, 2)), line(1, "valid"), line(2, "valid", loss=9.0)]
    happened = [event("started", 0, step=0), event("finished", 20), event("started", 30, step=2)]
    run = make_run(tmp_path / "run", lines, happened, written=10, evaluation={"interval": 1, "patience": 1})
    add_checkpoint(run, "joint", 2, 15)
    status = at(run, 35)
    assert (status.state, status.early) == ("starting", False)
    assert (at(run, 1e6).state, at(run, 1e6).early) == ("stalled", False)
