"""What the scripts do around a command: another `python` on the submitting shell's PATH plays megafuser."""

from pathlib import Path

import pytest

from tests.slurm.cluster import SMALL, Cluster, errors_of, log_of, script

pytestmark = pytest.mark.slow

# Rank 0 leaves with $CODE_OF_STAGE or, at a signal, with 75; the others with 0, as megafuser's do. Rank 0 is the last,
# since srun ends the others where it fails.
STAND_IN = """\
#!/usr/bin/env bash
leave() { # with a code, when all have written so many lines of a kind
    ((SLURM_PROCID)) && exit
    until (($(grep -c ": $2" "$RECORD") >= SLURM_NTASKS * (1 + ${SLURM_RESTART_COUNT:-0}))); do sleep 0.1; done
    sleep 2
    exit "$1"
}
echo "$SLURM_PROCID: $*" >> "$RECORD"
[[ $2 == megafuser.preflight ]] && leave "${CODE_OF_PREFLIGHT:-0}" "-m $2"
if [[ -n ${WAITS:-} ]]; then
    trap 'exit $((SLURM_PROCID ? 0 : 75))' TERM
    echo "$SLURM_PROCID: waiting" >> "$RECORD"
    for _ in {1..600}; do sleep 0.1; done
fi
wanted='^(MASTER|OMP_NUM|CUDA_DEVICE|NCCL|RANK|PYTHONPATH|SLURM_LOCALID)'
env | grep -E "$wanted" | sed "s/^/$SLURM_PROCID: /" >> "$RECORD"
leave "${CODE_OF_STAGE:-0}" SLURM_LOCALID=
"""


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A working directory, with a stand-in for python in `bin`."""
    for name in ("logs", "bin"):
        (tmp_path / name).mkdir()
    (tmp_path / "bin" / "python").write_text(STAND_IN)
    (tmp_path / "bin" / "python").chmod(0o755)
    return tmp_path


def submit(cluster: Cluster, directory: Path, *arguments: object, **environment: str) -> int:
    """Submits with the stand-in first on PATH; what it is called with goes to `record`."""
    path = f"{directory / 'bin'}:{cluster.shell()['PATH']}"
    return cluster.submit(directory, *SMALL, *arguments, PATH=path, RECORD=str(directory / "record"), **environment)


def calls(directory: Path, rank: int = 0) -> list[str]:
    """What a rank was called with, start by start."""
    lines = (directory / "record").read_text().splitlines()
    return [line.partition(": ")[2] for line in lines if line.startswith(f"{rank}: -m")]


def test_requeues_itself_so_many_times_and_no_more(cluster: Cluster, directory: Path) -> None:
    number = submit(
        cluster, directory, script("warmup.sh"), "--config", "a b.yaml", "warmup.steps=3",
        CODE_OF_STAGE="75", MEGAFUSER_MAX_REQUEUES="2",
    )  # fmt: skip
    job = cluster.wait(number)
    assert (job.state, job.code, job.restarts) == ("FAILED", 75, 2)
    once = [f"-m {module} warmup --config a b.yaml warmup.steps=3" for module in ("megafuser.preflight", "megafuser")]
    assert calls(directory) == calls(directory, rank=3) == 3 * once
    log = log_of(directory, number)
    assert [f"requeueing, {n} of at most 2" in log for n in (1, 2, 3)] == [True, True, False]
    end = "stopped early, and all 2 requeues are used up; submit the same command again to go on"
    assert errors_of(directory, number) == [f"megafuser: error: {end}, or with a larger MEGAFUSER_MAX_REQUEUES"]


@pytest.mark.parametrize(
    ("codes", "runs"),
    [
        ({"CODE_OF_PREFLIGHT": "2"}, ["megafuser.preflight"]),
        ({"CODE_OF_PREFLIGHT": "1"}, ["megafuser.preflight"]),
        ({"CODE_OF_STAGE": "1"}, ["megafuser.preflight", "megafuser"]),
        ({"CODE_OF_STAGE": "2", "MEGAFUSER_PREFLIGHT": "off"}, ["megafuser"]),
    ],
)
def test_what_is_wrong_stays_wrong(cluster: Cluster, directory: Path, codes: dict[str, str], runs: list[str]) -> None:
    """No requeue, and the job has the command's own exit code."""
    number = submit(cluster, directory, script("joint.sh"), MEGAFUSER_CONFIG="mine.yaml", **codes)
    job = cluster.wait(number)
    wanted = next(int(code) for name, code in codes.items() if name.startswith("CODE"))
    assert (job.state, job.code, job.restarts) == ("FAILED", wanted, 0)
    assert calls(directory) == [f"-m {module} joint --config mine.yaml" for module in runs]


def test_cancelled_is_not_requeued(cluster: Cluster, directory: Path) -> None:
    """Though the command saves and leaves with 75, as for every other signal."""
    number = submit(cluster, directory, script("joint.sh"), WAITS="1")
    record = directory / "record"
    cluster.until(lambda: record.exists() and record.read_text().count(": waiting\n") == 4, "the stage")
    cluster.run("scancel", str(number))
    job = cluster.wait(number)
    cluster.until(lambda: not _is_queued(cluster, number), "the job to leave the queue")
    assert (job.state, cluster.job(number).restarts) == ("CANCELLED", 0)
    assert len(calls(directory)) == 2


@pytest.mark.parametrize("name", ["report.sh", "serve.sh"])
def test_what_is_not_to_be_requeued_stays_away(cluster: Cluster, directory: Path, name: str) -> None:
    """Slurm by itself would start it again."""
    number = submit(cluster, directory, "--partition=low", script(name), WAITS="1", MEGAFUSER_API_KEY="a")
    record = directory / "record"
    cluster.until(lambda: record.exists() and "0: waiting\n" in record.read_text(), "the job")
    other = cluster.submit(directory, "--partition=high", "--nodes=2", "--exclusive", "--wrap=sleep 1")
    assert cluster.wait(other).state == "COMPLETED"
    cluster.until(lambda: cluster.job(number).state not in ("RUNNING", "COMPLETING"), "the job's end")
    assert (cluster.job(number).state, cluster.job(number).restarts) == ("PREEMPTED", 0)
    assert len(calls(directory)) == 1


def _is_queued(cluster: Cluster, number: int) -> bool:
    return cluster.job(number).state in ("PENDING", "RUNNING", "COMPLETING")


def test_what_the_ranks_find(cluster: Cluster, directory: Path) -> None:
    """A module, a virtual environment, the submitting shell's own settings and stale ranks of a launcher."""
    activate = directory / "env" / "bin" / "activate"
    activate.parent.mkdir(parents=True)
    activate.write_text('PATH=/from/venv:$PATH; export PATH; : "$NOT_SET"\n')
    number = submit(
        cluster, directory, "--cpus-per-task=3", script("warmup.sh"), RANK="7", WORLD_SIZE="8", NCCL_DEBUG="INFO",
        MASTER_ADDR="stale", MEGAFUSER_VENV=str(activate.parents[1]), MEGAFUSER_MODULES="cuda nccl/2",
        MEGAFUSER_SRUN_OPTIONS="--label --mpi=none", **{"BASH_FUNC_module%%": '() { echo "module $*"; }'},
    )  # fmt: skip
    environment = {name: value for name, value in cluster.shell().items() if name == "OMP_NUM_THREADS"}
    assert cluster.wait(number).code == 0, log_of(directory, number)
    record = (directory / "record").read_text().splitlines()
    seen = dict(
        line.partition(": ")[2].split("=", 1) for line in record if line.startswith("3: ") and " -m" not in line
    )
    root = str(script("warmup.sh").parents[1])
    assert seen == {
        "MASTER_ADDR": "node1",
        "MASTER_PORT": str(20000 + number % 12000),
        "CUDA_DEVICE_MAX_CONNECTIONS": "1",
        "NCCL_DEBUG": "INFO",
        "PYTHONPATH": root,
        "SLURM_LOCALID": "1",
        **environment,
    }
    assert "module load cuda nccl/2" in log_of(directory, number)
    assert calls(directory)[-1] == f"-m megafuser warmup --config {root}/examples/ultrafuser-13b/config.yaml"


@pytest.mark.parametrize(
    ("environment", "says"),
    [
        ({"MEGAFUSER_HOME": "/nowhere"}, "no slurm/launch.sh in /nowhere; set MEGAFUSER_HOME to the repository"),
        (
            {"MEGAFUSER_VENV": "/nowhere"},
            "MEGAFUSER_VENV=/nowhere has no bin/activate; set it to a virtual environment",
        ),
        ({"MEGAFUSER_MODULES": "cuda"}, "MEGAFUSER_MODULES is set, but this node has no module command; unset it"),
    ],
)
def test_settings_that_cannot_be(cluster: Cluster, directory: Path, environment: dict[str, str], says: str) -> None:
    number = submit(cluster, directory, script("warmup.sh"), **environment)
    assert cluster.wait(number).code == 2
    assert errors_of(directory, number) == [f"megafuser: error: {says}"]
    assert not (directory / "record").exists()


def test_a_copy_of_the_script_finds_the_repository(cluster: Cluster, directory: Path) -> None:
    """By MEGAFUSER_HOME, since its own path does not lead there."""
    copy = directory / "mine.sh"
    copy.write_text(script("warmup.sh").read_text())
    number = submit(cluster, directory, copy, MEGAFUSER_HOME=str(script("warmup.sh").parents[1]))
    assert cluster.wait(number).code == 0, log_of(directory, number)
    assert len(calls(directory)) == 2
