"""The job scripts as texts: what Slurm reads of them, and whether their README says everything that they read."""

import re
import subprocess
from pathlib import Path

import pytest

from tests.parallel.launch import ROOT

SLURM = ROOT / "slurm"
STAGES = ("warmup.sh", "joint.sh")
JOBS = (*STAGES, "report.sh", "evaluate.sh")
README = SLURM / "README.md"


def options(name: str) -> dict[str, str]:
    """The `#SBATCH` lines of a script; Slurm reads those before the first command."""
    found = {}
    for line in (SLURM / name).read_text().splitlines():
        if line.startswith("#SBATCH "):
            option, _, value = line.removeprefix("#SBATCH --").partition("=")
            assert option not in found
            found[option] = value
        elif line and not line.startswith("#"):
            break
    return found


@pytest.mark.parametrize("path", sorted(SLURM.glob("*.sh")), ids=lambda path: path.name)
def test_bash_can_read_it_and_it_carries_its_run_bit(path: Path) -> None:
    subprocess.run(["bash", "-n", str(path)], check=True)
    assert path.stat().st_mode & 0o111 == 0o111
    assert path.read_text().startswith("#!/usr/bin/env bash\n")


@pytest.mark.parametrize("name", STAGES)
def test_stages_ask_for_what_the_recipe_needs(name: str) -> None:
    """Two nodes of eight GPUs, a task each; time to save; a log that restarts append to."""
    wanted = {
        "job-name": f"megafuser-{name.removesuffix('.sh')}",
        "nodes": "2",
        "ntasks-per-node": "8",
        "gpus-per-node": "8",
        "exclusive": "",
        "mem": "0",
        "requeue": "",
        "open-mode": "append",
        "signal": "TERM@300",
        "output": "logs/%x-%j.out",
    }
    assert wanted.items() <= options(name).items()


def test_joint_is_cancelled_where_what_it_waits_for_failed() -> None:
    assert options("joint.sh")["kill-on-invalid-dep"] == "yes"


@pytest.mark.parametrize("name", ["report.sh", "serve.sh"])
def test_a_report_is_not_put_back_into_the_queue(name: str) -> None:
    """It keeps no state, and refuses its own output of before; a server would listen on another node.

    Without the option Slurm's own default, JobRequeue=1, puts it back after a node's death or a preemption.
    """
    found = options(name)
    assert found["no-requeue"] == "" and "requeue" not in found and found["ntasks-per-node"] == "8"


@pytest.mark.parametrize("name", JOBS)
def test_outside_of_a_job_it_says_how_to_submit_it(name: str) -> None:
    done = subprocess.run(["bash", str(SLURM / name)], env={"PATH": "/usr/bin:/bin"}, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == f"megafuser: error: this is a job script; submit it: sbatch slurm/{name}\n"


def test_the_readme_has_every_variable_and_no_other() -> None:
    programs = [*SLURM.glob("*.sh"), *(ROOT / "megafuser" / "preflight").glob("*.py")]
    used = {name for path in programs for name in re.findall(r"MEGAFUSER_[A-Z_]+[A-Z]", path.read_text())}
    table = [line for line in README.read_text().splitlines() if line.startswith("| `MEGAFUSER_")]
    documented = [re.findall(r"MEGAFUSER_[A-Z_]+[A-Z]", line.split("|")[1]) for line in table]
    assert sorted(name for names in documented for name in names) == sorted(used)
    assert set(re.findall(r"MEGAFUSER_[A-Z_]+[A-Z]", README.read_text())) == used


def test_the_directory_of_the_logs_is_in_the_repository() -> None:
    """Without it Slurm ends the job without a word."""
    listed = subprocess.run(["git", "check-ignore", "-v", "logs/.gitkeep"], cwd=ROOT, capture_output=True, text=True)
    assert (ROOT / "logs" / ".gitkeep").is_file()
    assert listed.returncode == 1 or ":!" in listed.stdout, listed.stdout


def test_both_readmes_chain_the_stages_alike() -> None:
    chain = "sbatch --dependency=afterok:$(sbatch --parsable slurm/warmup.sh) --kill-on-invalid-dep=yes slurm/joint.sh"
    for path in (README, ROOT / "README.md"):
        assert chain in path.read_text()
