"""The scripts with stand-ins for Slurm's commands: what they ask Slurm for, quickly and on any machine."""

import subprocess
from pathlib import Path

import pytest

from megafuser.harness.evaluation_directory import EvaluationDirectory
from tests.slurm.cluster import script

ROOT = str(script("launch.sh").parents[1])
STAND_INS = {
    "srun": 'printf "srun"; printf " <%s>" "$@"; echo; [[ " $* " == *" megafuser "* ]] && exit "${CODE:-0}" || exit 0',
    "scontrol": """if [[ $1$2$3 == ${BUSY:-never}* ]]; then
            echo x >>asked
            (($(wc -l <asked) <= ${BUSY_TIMES:-2})) && echo "Unable to contact slurm controller" >&2 && exit 1
        fi
        case $1$2 in
        showjob) if [[ $3 == --oneliner ]]; then echo "JobId=$4 JobState=$STATE Reason=None"
                 else printf "JobId=%s\\n   Command=%s\\n   WorkDir=/w\\n" "$3" "$COMMAND"; fi ;;
        showhostnames) printf "first\\nsecond\\n" ;;
        requeue*) echo "requeue $2"; exit "${REFUSES:-0}" ;;
        esac""",
    "sleep": "echo waits",
    "python": "exit 9",
}


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A submit directory, and in `bin` the commands that a job finds."""
    (tmp_path / "bin").mkdir()
    for name, text in STAND_INS.items():
        (tmp_path / "bin" / name).write_text(f"#!/usr/bin/env bash\n{text}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    return tmp_path


def start(directory: Path, *arguments: str, name: str = "joint.sh", **more: str) -> tuple[int, list[str], list[str]]:
    """Runs a copy of a script, as Slurm does; its exit code, its lines, and those of its errors."""
    copy = directory / "slurm_script"
    copy.write_text(script(name).read_text())
    environment = {
        "PATH": f"{directory / 'bin'}:/usr/bin:/bin",
        "COMMAND": f"{script(name)} {' '.join(arguments)}".strip(),
        "STATE": "RUNNING",
        "SLURM_JOB_ID": "12345",
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_JOB_NODELIST": "n[1-2]",
        "SLURM_NTASKS_PER_NODE": "8",
        "SLURM_CPUS_ON_NODE": "112",
        "SLURM_SUBMIT_DIR": str(directory),
    }
    done = subprocess.run(
        ["bash", str(copy), *arguments], cwd=directory, env=environment | more, capture_output=True, text=True
    )
    return done.returncode, done.stdout.splitlines(), done.stderr.splitlines()


def srun(*words: str, options: tuple[str, ...] = ("--cpu-bind=none",)) -> str:
    """The line of a call of srun."""
    given = ("--export=ALL", "--kill-on-bad-exit=1", *options, "python", "-m", *words)
    return " ".join(["srun", *(f"<{word}>" for word in given)])


@pytest.mark.parametrize(
    ("arguments", "runs"),
    [
        ((), ("--config", f"{ROOT}/examples/ultrafuser-13b/config.yaml")),
        (("joint.steps=3",), ("joint.steps=3", "--config", f"{ROOT}/examples/ultrafuser-13b/config.yaml")),
        (("--config", "my file.yaml", "a=b c"), ("--config", "my file.yaml", "a=b c")),
        (("a=b", "--config=mine.yaml"), ("a=b", "--config=mine.yaml")),
    ],
)
def test_arguments_reach_the_preflight_and_the_stage_as_they_are(
    directory: Path, arguments: tuple[str, ...], runs: tuple[str, ...]
) -> None:
    code, lines, _ = start(directory, *arguments)
    assert (code, lines) == (0, [srun("megafuser.preflight", "joint", *runs), srun("megafuser", "joint", *runs)])


def test_a_container(directory: Path) -> None:
    """It sees the working directory, the repository and what the user adds; no python is needed outside."""
    (directory / "bin" / "python").unlink()
    options = (
        "--container-image=a#b:c",
        f"--container-mounts={directory}:{directory},{ROOT}:{ROOT},/data:/data",
        f"--container-workdir={directory}",
        "--cpus-per-task=14",
        "--label",
    )
    _, lines, _ = start(
        directory, "--config", "c", SLURM_CPUS_PER_TASK="14", MEGAFUSER_CONTAINER="a#b:c",
        MEGAFUSER_CONTAINER_MOUNTS="/data:/data", MEGAFUSER_SRUN_OPTIONS="--label",
    )  # fmt: skip
    assert lines[1] == srun("megafuser", "joint", "--config", "c", options=options)


def test_no_python(directory: Path) -> None:
    """On a PATH with Slurm's commands and no more than the scripts themselves need."""
    (directory / "bin" / "python").unlink()
    for name in ("bash", "env", "sed", "head"):
        found = subprocess.run(["bash", "-c", f"type -P {name}"], capture_output=True, text=True, check=True)
        (directory / "bin" / name).symlink_to(found.stdout.strip())
    code, lines, errors = start(directory, PATH=str(directory / "bin"))
    assert (code, lines) == (2, [])
    assert errors[-1].startswith("megafuser: error: no python on PATH: submit from a shell that has one, or set")


def test_a_report_has_no_preflight_and_is_not_requeued(directory: Path) -> None:
    code, lines, _ = start(directory, "--checkpoint", "d", "--out", "o", name="report.sh", CODE="75")
    assert (code, lines) == (75, [srun("megafuser", "report", "--checkpoint", "d", "--out", "o")])


def test_a_command_that_uses_a_model_has_no_configuration_and_no_preflight(directory: Path) -> None:
    code, lines, _ = start(directory, "--checkpoint", "d", "--tensor", "4", name="evaluate.sh")
    assert (code, lines) == (0, [srun("megafuser", "evaluate", "--checkpoint", "d", "--tensor", "4")])


@pytest.mark.parametrize(
    ("restarts", "finished", "job", "kept"),
    [
        ("0", "false", "12345", ("--overwrite",)),
        ("1", "false", "12345", ()),
        # the node died before anything was overwritten, or the directory was made
        ("1", "true", "12345", ("--overwrite",)),
        ("1", "false", "1234", ("--overwrite",)),
        ("1", "false", None, ("--overwrite",)),
        ("1", None, None, ("--overwrite",)),
    ],
)
def test_an_evaluation_that_slurm_starts_again_keeps_its_answers(
    directory: Path,
    monkeypatch: pytest.MonkeyPatch,
    restarts: str,
    finished: str | None,
    job: str | None,
    kept: tuple[str, ...],
) -> None:
    """What it had answered before a node died would be lost at every start."""
    if finished is not None:
        if job is None:
            monkeypatch.delenv("SLURM_JOB_ID", raising=False)
        else:
            monkeypatch.setenv("SLURM_JOB_ID", job)
        output = EvaluationDirectory(directory / "o", {})
        with output.begin(overwrite=False):
            if finished == "true":
                output.finish({}, "")
    arguments = ("--checkpoint", "a b", "--overwrite", "--out", "o")
    code, lines, _ = start(directory, *arguments, name="evaluate.sh", SLURM_RESTART_COUNT=restarts)
    assert (code, lines) == (0, [srun("megafuser", "evaluate", "--checkpoint", "a b", *kept, "--out", "o")])


@pytest.mark.parametrize(
    ("arguments", "key", "added"),
    [
        ((), "secret", ("--host", "0.0.0.0")),
        (("--api-key", "secret"), "", ("--host", "0.0.0.0")),
        (("--api-key=secret", "device=cpu"), "", ("--host", "0.0.0.0")),
        (("--host", "10.0.0.1"), "secret", ()),
        (("--host=127.0.0.1",), "", ()),
    ],
)
def test_a_server_with_a_key_listens_where_clients_reach_it(
    directory: Path, arguments: tuple[str, ...], key: str, added: tuple[str, ...]
) -> None:
    given = ("--checkpoint", "d", *arguments)
    code, lines, _ = start(directory, *given, name="serve.sh", MEGAFUSER_API_KEY=key)
    assert (code, lines) == (0, [srun("megafuser", "serve", *given, *added)])


def test_a_server_without_a_key_and_an_address_is_not_started(directory: Path) -> None:
    """It would hold its GPUs where nobody reaches it."""
    code, lines, errors = start(directory, "--checkpoint", "d", name="serve.sh")
    assert (code, lines) == (2, [])
    assert errors == [
        "megafuser: error: a server that other machines can reach needs a key: set MEGAFUSER_API_KEY in the "
        "submitting shell, or give --host yourself (127.0.0.1: from its own node only)"
    ]


@pytest.mark.parametrize(
    ("settings", "end"),
    [
        ({}, ["requeue 12345", "waits"]),
        ({"SLURM_RESTART_COUNT": "4"}, ["requeue 12345", "waits"]),
        ({"SLURM_RESTART_COUNT": "5"}, []),
        ({"SLURM_RESTART_COUNT": "5", "MEGAFUSER_MAX_REQUEUES": "6"}, ["requeue 12345", "waits"]),
        ({"MEGAFUSER_MAX_REQUEUES": "0"}, []),
        ({"STATE": "CANCELLED"}, []),
        ({"STATE": "PREEMPTED"}, []),
        ({"REFUSES": "1"}, ["requeue 12345"]),
    ],
)
def test_stopped_early(directory: Path, settings: dict[str, str], end: list[str]) -> None:
    """Requeues, or ends with 75 and one line that says why."""
    code, lines, errors = start(directory, "--config", "c", CODE="75", **settings)
    assert code == 75 and lines[2:] == end
    assert len([line for line in errors if "stopped early" in line]) == 1


@pytest.mark.parametrize("option", [("--trial", "20"), ("--trial=20",)])
def test_a_trial_is_not_requeued(directory: Path, option: tuple[str, ...]) -> None:
    code, lines, errors = start(directory, *option, CODE="75")
    assert code == 75 and errors[-1] == "megafuser: stopped early; a trial is not requeued"
    assert lines[-1].startswith("srun ") and "requeue 12345" not in lines


@pytest.mark.parametrize("busy", ["showjob--oneliner", "requeue"])
def test_a_busy_controller_is_asked_again(directory: Path, busy: str) -> None:
    """A job that is saved must not stay away for that."""
    code, lines, errors = start(directory, "--config", "c", CODE="75", BUSY=busy)
    assert code == 75 and lines[-2:] == ["requeue 12345", "waits"], errors
    assert errors.count("Unable to contact slurm controller") == 2
    (directory / "asked").unlink()
    code, lines, errors = start(directory, "--config", "c", CODE="75", BUSY=busy, BUSY_TIMES="99")
    assert code == 75 and "requeue 12345" not in lines
    assert "since the job is unknown" in "".join(errors) or "cannot be requeued" in errors[-1]


def test_a_busy_controller_at_the_start(directory: Path) -> None:
    """The submit directory may do as well."""
    code, lines, _ = start(directory, "--config", "c", BUSY="showjob12345", BUSY_TIMES="1", SLURM_SUBMIT_DIR=ROOT)
    assert (code, len(lines)) == (0, 2)


@pytest.mark.parametrize("most", ["five", "-1", "08", "1 "])
def test_a_limit_of_requeues_that_is_none(directory: Path, most: str) -> None:
    """Said at once, not when it would be used."""
    code, lines, errors = start(directory, "--config", "c", MEGAFUSER_MAX_REQUEUES=most)
    assert (code, lines) == (2, [])
    assert (
        errors[-1]
        == f"megafuser: error: MEGAFUSER_MAX_REQUEUES={most} is not a number of requeues; set it to 0 or more"
    )


@pytest.mark.parametrize("value", ["1", "true", "ON", ""])
def test_a_preflight_that_is_neither_on_nor_off(directory: Path, value: str) -> None:
    """Taking it for off would leave the checks out without a word."""
    code, lines, errors = start(directory, "--config", "c", MEGAFUSER_PREFLIGHT=value)
    if not value:  # as if it were not set
        modules = ("megafuser.preflight", "megafuser")
        assert (code, lines) == (0, [srun(module, "joint", "--config", "c") for module in modules])
        return
    assert (code, lines) == (2, [])
    assert errors[-1] == f"megafuser: error: MEGAFUSER_PREFLIGHT={value} is neither on nor off; set it to one of them"


@pytest.mark.parametrize("command", ["/elsewhere/mine.sh --config c", "(null)"])
def test_a_script_that_lies_elsewhere(directory: Path, command: str) -> None:
    """The submit directory is the last guess, and it is none here."""
    code, lines, errors = start(directory, COMMAND=command)
    assert (code, lines) == (2, [])
    assert errors == [f"megafuser: error: no slurm/launch.sh in {directory}; set MEGAFUSER_HOME to the repository"]
    assert start(directory, COMMAND=command, SLURM_SUBMIT_DIR=ROOT)[0] == 0
    assert start(directory, COMMAND=command, MEGAFUSER_HOME=ROOT)[0] == 0


def test_a_server_outside_of_a_job_says_how_to_submit_it() -> None:
    done = subprocess.run(
        ["bash", str(script("serve.sh"))], env={"PATH": "/usr/bin:/bin"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr == "megafuser: error: this is a job script; submit it: sbatch slurm/serve.sh\n"
