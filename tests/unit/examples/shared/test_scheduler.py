"""The examples' scheduler: order, what is not done twice, failures, and a run that is killed."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from examples.shared.files import kept_beside
from examples.shared.scheduler import Job, Scheduler, critical_paths
from tests.parallel.launch import ROOT


def job(out: Path, name: str, *needs: str, code: str = "") -> Any:
    """A job that notes its name in ran.txt and leaves a file."""
    note = f"open({str(out / 'ran.txt')!r}, 'a').write({name!r} + '\\n')"
    leave = f"open({str(out / name)!r}, 'w').close()"
    command = (sys.executable, "-c", f"{note}\n{code}\n{leave}")
    return Job(name, command, out / name, needs, 1.0)


def ran(out: Path) -> list[str]:
    return (out / "ran.txt").read_text("utf-8").split()


def run(out: Path, jobs: list[Any], workers: int = 2) -> None:
    Scheduler(out, workers).run(jobs)


def test_jobs_run_after_what_they_need_and_only_once(tmp_path: Path) -> None:
    jobs = [job(tmp_path, "last", "left", "right"), job(tmp_path, "left", "first"), job(tmp_path, "right", "first")]
    jobs.append(job(tmp_path, "first", code="import time\nwhile time.process_time() < 0.3: pass\ntime.sleep(0.3)"))
    run(tmp_path, jobs)
    assert ran(tmp_path)[0] == "first" and ran(tmp_path)[-1] == "last" and len(ran(tmp_path)) == 4
    durations = json.loads((tmp_path / "durations.json").read_text("utf-8"))
    assert set(durations) == {"first", "left", "right", "last"}
    # the clock went on while it slept, its processor time did not
    assert 0.3 <= durations["first"]["processor_seconds"] <= durations["first"]["seconds"] - 0.25
    run(tmp_path, jobs)
    assert len(ran(tmp_path)) == 4


def test_the_time_of_a_job_is_that_of_all_its_starts(tmp_path: Path) -> None:
    busy = "import time\nstart = time.process_time()\nwhile time.process_time() < start + 0.4: pass"
    fails = f"{busy}\nif not __import__('os').path.exists({str(tmp_path / 'go')!r}): 1 / 0"
    jobs = [job(tmp_path, "first", code=fails)]
    with pytest.raises(SystemExit):
        run(tmp_path, jobs)
    assert json.loads((tmp_path / "durations.json").read_text("utf-8")) == {}
    (tmp_path / "go").touch()
    run(tmp_path, jobs)
    both = json.loads((tmp_path / "durations.json").read_text("utf-8"))["first"]
    assert both["seconds"] >= 0.8 and both["processor_seconds"] >= 0.8
    assert [path.name for path in (tmp_path / "done").iterdir()] == ["first.json"]
    # made anew, it is counted anew
    (tmp_path / "first").unlink()
    run(tmp_path, jobs)
    once = json.loads((tmp_path / "durations.json").read_text("utf-8"))["first"]
    assert once["processor_seconds"] < both["processor_seconds"]


def test_what_was_made_from_a_lost_output_is_made_anew(tmp_path: Path) -> None:
    # a command that keeps what is there, as the example's do, must not find what was made from the old one
    keeps = f"assert not __import__('os').path.exists({str(tmp_path / 'last')!r})"
    jobs = [job(tmp_path, "first"), job(tmp_path, "other"), job(tmp_path, "last", "first", code=keeps)]
    run(tmp_path, jobs, workers=1)
    (tmp_path / "first").unlink()
    run(tmp_path, jobs, workers=1)
    assert sorted(ran(tmp_path)) == ["first", "first", "last", "last", "other"]


def test_what_was_begun_from_a_lost_output_begins_anew(tmp_path: Path) -> None:
    """One job was killed between its output and its mark; one that needs it was begun too."""
    keeps = f"import os\nassert not os.path.exists({str(tmp_path / 'begun')!r})"
    begun = job(tmp_path, "begun", "first", code=keeps)
    left = tmp_path / "left"
    last = dataclasses.replace(job(tmp_path, "last", "begun"), leaves=(left, tmp_path / "last"))
    jobs = [job(tmp_path, "first"), begun, last]
    run(tmp_path, jobs)
    for name in ("begun", "last"):
        (tmp_path / "done" / f"{name}.json").unlink()
    (tmp_path / "done" / "begun.spent").write_text(json.dumps({"seconds": 900.0, "processor_seconds": 900.0}))
    left.mkdir()
    kept = kept_beside(tmp_path / "begun")
    kept.touch()
    (tmp_path / "first").unlink()
    run(tmp_path, jobs)
    assert ran(tmp_path) == ["first", "begun", "last"] * 2 and not left.exists() and not kept.exists()
    # the time of what was thrown away is not counted
    assert json.loads((tmp_path / "durations.json").read_text("utf-8"))["begun"]["seconds"] < 900


def test_what_was_begun_is_gone_on_with_as_long_as_what_it_was_made_from_is_there(tmp_path: Path) -> None:
    """Also where jobs that it takes nothing from are done again, or are new to the run."""
    goes_on = f"assert open({str(tmp_path / 'begun')!r}).read() == 'half'"
    begun = job(tmp_path, "begun", "first", code=goes_on)
    jobs = [job(tmp_path, "first"), job(tmp_path, "check", "first")]
    run(tmp_path, jobs)
    (tmp_path / "begun").write_text("half", "utf-8")
    (tmp_path / "check").unlink()
    jobs.append(dataclasses.replace(begun, needs=("first", "new"), after=("check",)))
    run(tmp_path, [*jobs, job(tmp_path, "new")], workers=1)
    assert sorted(ran(tmp_path)[2:]) == ["begun", "check", "new"] and ran(tmp_path)[-1] == "begun"
    # nor is it done again
    (tmp_path / "check").unlink()
    run(tmp_path, [*jobs, job(tmp_path, "new")], workers=1)
    assert ran(tmp_path)[5:] == ["check"]


def test_half_of_an_output_that_was_lost_is_not_done(tmp_path: Path) -> None:
    half = f"open({str(tmp_path / 'first')!r}, 'w').close()\nif os.path.exists({str(tmp_path / 'killed')!r}): 1 / 0"
    jobs = [job(tmp_path, "first", code=f"import os\n{half}")]
    run(tmp_path, jobs)
    (tmp_path / "first").unlink()
    (tmp_path / "killed").touch()
    with pytest.raises(SystemExit):
        run(tmp_path, jobs)
    assert (tmp_path / "first").exists()
    (tmp_path / "killed").unlink()
    run(tmp_path, jobs)
    assert ran(tmp_path) == ["first"] * 3


def test_a_failure_ends_the_run_and_shows_the_log(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    jobs = [job(tmp_path, "good"), job(tmp_path, "bad", "good", code="raise ValueError('the reason')")]
    with pytest.raises(SystemExit) as ended:
        run(tmp_path, jobs)
    assert ended.value.code == 1
    shown = capsys.readouterr().out
    assert "the reason" in shown and f"job bad ended with 1; see its log {tmp_path / 'logs' / 'bad.log'}" in shown
    with pytest.raises(SystemExit):
        run(tmp_path, jobs)
    assert ran(tmp_path) == ["good", "bad", "bad"]


def test_a_failure_keeps_nothing_waiting_but_what_needs_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = job(tmp_path, "bad", code=f"if not __import__('os').path.exists({str(tmp_path / 'go')!r}): 1 / 0")
    others = [job(tmp_path, "needs-bad", "bad"), job(tmp_path, "last", "needs-bad", "other")]
    jobs = [bad, *others, job(tmp_path, "slow", code="__import__('time').sleep(1)"), job(tmp_path, "other", "slow")]
    with pytest.raises(SystemExit) as ended:
        run(tmp_path, jobs)
    assert ended.value.code == 1
    assert sorted(ran(tmp_path)) == ["bad", "other", "slow"]
    assert "failed: bad; not begun, since they need these: 2" in capsys.readouterr().out
    (tmp_path / "go").touch()
    run(tmp_path, jobs)
    assert ran(tmp_path)[3:] == ["bad", "needs-bad", "last"]


def test_a_job_that_depends_on_the_jobs_of_a_run_is_done_in_every_run(tmp_path: Path) -> None:
    tables = dataclasses.replace(job(tmp_path, "tables", "first"), always=True)
    for _ in range(2):
        run(tmp_path, [job(tmp_path, "first"), tables])
    assert ran(tmp_path) == ["first", "tables", "tables"]


def test_a_command_that_leaves_nothing_is_a_failure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nothing = Job("empty", (sys.executable, "-c", ""), tmp_path / "missing")
    with pytest.raises(SystemExit):
        run(tmp_path, [nothing])
    assert "job empty left no" in capsys.readouterr().out


def test_jobs_that_cannot_be_ordered_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="circle: a, b"):
        critical_paths([job(tmp_path, "a", "b"), job(tmp_path, "b", "a")])
    with pytest.raises(ValueError, match="a needs c"):
        critical_paths([job(tmp_path, "a", "c")])
    later = dataclasses.replace(job(tmp_path, "c"), after=("b",))
    ranks = critical_paths([job(tmp_path, "a"), job(tmp_path, "b", "a"), later, job(tmp_path, "d")])
    assert ranks == {"a": 3.0, "b": 2.0, "c": 1.0, "d": 1.0}


DRIVER = """
import sys
from pathlib import Path
from examples.shared.scheduler import Job, Scheduler
out = Path({out!r})
note = "open(" + repr(str(out / "ran.txt")) + ", 'a').write(NAME + chr(10))\\n"
busy = "import os, time\\nwhile time.process_time() < 0.3: pass\\n"
asleep = "open(" + repr(str(out / "asleep")) + ", 'w').close(); time.sleep(600)\\n"
slow = busy + "if not os.path.exists(" + repr(str(out / "go")) + "): " + asleep
def job(name, code, *needs):
    leave = "open(" + repr(str(out / name)) + ", 'w').close()"
    return Job(name, (sys.executable, "-c", note.replace("NAME", repr(name)) + code + leave), out / name, needs)
Scheduler(out, 1).run([job("first", ""), job("second", slow, "first"), job("third", "", "second")])
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_killed_run_goes_on_where_it_was(tmp_path: Path, number: int) -> None:
    driver = [sys.executable, "-c", DRIVER.format(out=str(tmp_path))]
    process = subprocess.Popen(driver, cwd=ROOT)
    deadline = time.monotonic() + 300
    while not (tmp_path / "asleep").exists():
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
    process.send_signal(number)
    code = process.wait(timeout=300)
    assert code == (75 if number == signal.SIGTERM else -signal.SIGKILL)
    # of a killed run it is not known
    kept = tmp_path / "done" / "second.spent"
    assert kept.exists() == (number == signal.SIGTERM)
    before = json.loads(kept.read_text("utf-8"))["processor_seconds"] if kept.exists() else 0.0
    assert not kept.exists() or before >= 0.3
    (tmp_path / "go").touch()
    # a job that outlived the killed run holds the lock: nothing runs beside it
    again = subprocess.Popen(driver, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    if number == signal.SIGKILL:
        assert again.stdout is not None
        assert again.stdout.readline() == "Waiting for an earlier run to end\n"
        assert ran(tmp_path) == ["first", "second"]
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            if str(tmp_path / "second") in _read(path):
                os.kill(int(path.parent.name), signal.SIGKILL)
    again.communicate(timeout=300)
    assert again.returncode == 0
    assert ran(tmp_path) == ["first", "second", "second", "third"]
    spent = json.loads((tmp_path / "durations.json").read_text("utf-8"))["second"]["processor_seconds"]
    assert spent >= before + 0.3


def _read(path: Path) -> str:
    try:
        command = path.read_bytes().split(b"\0")
    except OSError:
        return ""
    # the job itself, not the run that has its command in a longer one
    return command[2].decode() if len(command) > 2 and b"Scheduler" not in command[2] else ""
