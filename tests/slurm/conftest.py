"""One cluster for all tests here, and one small case on which both stages have run undisturbed."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.fused_case import make_case, write_config
from tests.slurm.cluster import SMALL, Cluster, log_of, script

WARMUP_STEPS, JOINT_STEPS, INTERVAL = 4, 30, 8
_DAEMONS = ("munged", "slurmctld", "slurmd", "sbatch")


@dataclass(frozen=True)
class Case:
    """A working directory with `logs/`, a configuration, and a finished run.

    Attributes:
        directory: the working directory.
        config: the configuration.
        run: the undisturbed run.
        warmup: number of its warm-up's job.
        joint: number of the job that waited for it.
    """

    directory: Path
    config: Path
    run: Path
    warmup: int
    joint: int


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    _install()
    lab = Path(tempfile.mkdtemp(prefix="megafuser-slurm-", dir="/tmp")) / "lab"
    lab.parent.chmod(0o755)  # munged wants everybody to find its socket
    running = Cluster(lab)
    try:
        yield running
    finally:
        running.stop()
        lab.parent.rmdir()


@pytest.fixture(autouse=True)
def nothing_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """A test that failed leaves no job for which all others would wait in vain."""
    yield
    if "cluster" in request.fixturenames:
        request.getfixturevalue("cluster").clear()


@pytest.fixture(scope="session")
def case(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Case:
    """The chain of the README: the second stage waits for the first."""
    directory = tmp_path_factory.mktemp("work dir")  # with a space
    (directory / "logs").mkdir()
    values = make_case(directory, train=12, valid=2)
    stage = {"samples_per_domain": 2, "lr": 1e-3}
    values |= {
        "device": "cpu",
        "parallel": {"tensor": 2, "pipeline": 1, "sequence": True},
        "warmup": stage | {"steps": WARMUP_STEPS},
        "joint": stage | {"steps": JOINT_STEPS},
        "evaluation": {"interval": 10, "samples_per_domain": 2},
        "checkpoint": {"interval": INTERVAL, "keep": 2},
    }
    config = write_config(directory / "config.yaml", values)
    warmup = cluster.submit(directory, *SMALL, script("warmup.sh"), "--config", config)
    joint = cluster.submit(
        directory, *SMALL, f"--dependency=afterok:{warmup}", "--kill-on-invalid-dep=yes", script("joint.sh"),
        "--config", config,
    )  # fmt: skip
    for number in (warmup, joint):
        job = cluster.wait(number)
        assert (job.state, job.code) == ("COMPLETED", 0), log_of(directory, number)
    return Case(directory, config, directory / "run", warmup, joint)


@pytest.fixture
def started(case: Case, tmp_path: Path) -> Path:
    """A run of its own that has the warm-up, and no more."""
    run = tmp_path / "run"
    shutil.copytree(case.run / "warmup", run / "warmup")
    return run


def _install() -> None:
    if os.geteuid() != 0:
        pytest.skip("a Slurm cluster on this machine needs root")
    if all(shutil.which(name) for name in _DAEMONS):
        return
    if shutil.which("apt-get") is None:
        pytest.skip("Slurm is not installed, and there is no apt-get to install it with")
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    for arguments in (["update"], ["install", "-y", "--no-install-recommends", "slurm-wlm", "munge"]):
        done = subprocess.run(
            ["apt-get", "-q", *arguments], env=environment, capture_output=True, text=True, check=False
        )
        if done.returncode:
            pytest.skip(f"apt-get {arguments[0]} failed, so there is no Slurm: {done.stderr.strip()[-300:]}")
