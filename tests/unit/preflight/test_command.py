"""The preflight as a program, on ranks that are processes of this machine with Slurm's variables."""

import contextlib
import logging
import os
import socket
import subprocess
import sys
import time
from collections import namedtuple
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

from megafuser.cli.main import main
from tests.cli.tools import run_tool
from tests.fused_case import make_case, write_config
from tests.parallel.launch import ROOT
from tests.ports import free_ports


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("preflight")
    values = make_case(root, train=6, valid=1) | {"device": "cpu", "parallel": {"tensor": 2}}
    values["data"]["cache_dir"] = str(root / "caches")
    return write_config(root / "config.yaml", values)


@pytest.fixture(scope="module")
def tokenized(config: Path) -> Path:
    """The same, with its samples tokenized."""
    assert run_tool("prepare_data", "--config", config, "--out", config.parent / "statistics", "--overwrite") == 0
    return config


def start(
    rank: int, size: int, port: str, arguments: Sequence[object], program: str = "-m megafuser.preflight", **more: str
) -> "subprocess.Popen[str]":
    """One rank; `program` stands for the preflight where it shall do something else."""
    places = {"SLURM_PROCID": rank, "SLURM_NTASKS": size, "SLURM_LOCALID": rank, "SLURM_STEP_ID": 0, "SLURM_JOB_ID": 9}
    environment = os.environ | {name: str(value) for name, value in places.items()}
    environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    environment |= {"SLURM_JOB_NODELIST": "node[1-2]", "MEGAFUSER_PREFLIGHT_SECONDS": "300"} | more
    command = [sys.executable, "-W", "ignore", *program.split(" ", 1), *map(str, arguments)]
    return subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)


def finish(ranks: Sequence["subprocess.Popen[str]"]) -> tuple[list[int], str]:
    """Exit codes, and what all said of megafuser."""
    try:
        said = [rank.communicate(timeout=900)[1] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    lines = [line for text in said for line in text.splitlines() if line.startswith("megafuser: ")]
    return [rank.returncode for rank in ranks], "\n".join(lines)


def test_all_is_well(config: Path, tokenized: Path) -> None:
    port = free_ports(1)[0]
    ranks = [start(rank, 2, port, ("warmup", "--config", config)) for rank in range(2)]
    assert finish(ranks) == ([0, 0], "megafuser: preflight: 2 ranks are ready")
    assert not (config.parent / "run").exists()


def test_ranks_of_a_bare_srun_meet_where_the_stage_would(config: Path, tokenized: Path, tmp_path: Path) -> None:
    """Without what the job scripts set."""
    scontrol = tmp_path / "scontrol"
    scontrol.write_text("#!/bin/sh\necho 127.0.0.1\n")
    scontrol.chmod(0o755)
    port = int(free_ports(1)[0])
    job = next(job for job in range(1, 12001) if 20000 + job * 61 % 12000 == port)
    more = {"SLURM_JOB_ID": str(job), "MASTER_ADDR": "", "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    ranks = [start(rank, 2, "", ("warmup", "--config", config), **more) for rank in range(2)]
    assert finish(ranks) == ([0, 0], "megafuser: preflight: 2 ranks are ready")


@pytest.fixture
def alone(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, list[str]]]:
    """Runs the preflight in this process, as a single rank; its exit code and lines."""
    # Whatever ran before in this process may have switched megafuser's log on.
    logger = logging.getLogger("megafuser")
    before = logger.level
    logger.setLevel(logging.WARNING)

    def run(*arguments: object) -> tuple[int, list[str]]:
        code = main(["preflight", *map(str, arguments)])
        return code, capsys.readouterr().err.splitlines()

    yield run
    logger.setLevel(before)


READY = "megafuser: preflight: this process is ready"


def test_one_rank_alone(config: Path, tokenized: Path, alone: Callable[..., tuple[int, list[str]]]) -> None:
    assert alone("warmup", "--config", config, "parallel.tensor=1") == (0, [READY])
    assert not (config.parent / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "missing"),
    [
        ("data.cache_dir=elsewhere", "text train, code train, math train, text valid, code valid, math valid"),
        # caches of another length are of no use
        ("data.sequence_length=100", "text train, code train, math train, text valid, code valid, math valid"),
        ("data.domains.math.valid=[{path: {data}/code.valid.jsonl}]", "math valid"),
    ],
)
def test_samples_that_are_not_tokenized_are_told(
    config: Path, tokenized: Path, alone: Callable[..., tuple[int, list[str]]], arguments: str, missing: str
) -> None:
    override = arguments.replace("{data}", str(config.parent / "data"))
    directory = "elsewhere" if "cache_dir" in override else str(config.parent / "caches")
    code, lines = alone("warmup", "--config", config, "parallel.tensor=1", override)
    assert (code, lines[-1]) == (0, READY)
    assert lines[0].startswith(
        f"megafuser: warning: samples are not tokenized ({missing}; caches are in {directory}): rank 0 would do it "
    )
    assert "run tools/prepare_data.py" in lines[0] and len(lines) == 2


def test_a_stage_that_does_not_fit_by_the_plan_is_told(
    config: Path, tokenized: Path, alone: Callable[..., tuple[int, list[str]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU of 2 GiB, of which 3 are set aside."""
    gpu = namedtuple("Properties", "name total_memory")("NVIDIA H100 80GB HBM3", 2 << 30)
    monkeypatch.setattr("megafuser.preflight.node.check_device", lambda *_: ("cuda", {}, []))
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda _: gpu)
    monkeypatch.setattr("megafuser.preflight.memory.advise", lambda *_, **__: None)
    code, lines = alone("warmup", "--config", config, "parallel.tensor=1")
    assert (code, lines[1:]) == (0, [READY])
    assert lines[0].startswith("megafuser: warning: warmup needs 3.")
    assert lines[0].endswith(" of 2.0 GiB by the plan; megafuser plan says on how many GPUs it would fit")


def test_of_large_sources_only_whether_there_are_caches_is_looked_at(
    config: Path,
    tokenized: Path,
    alone: Callable[..., tuple[int, list[str]]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Their hashes take too long for a preflight."""
    monkeypatch.setattr("megafuser.preflight.caches._HASHED_AT_MOST", 100)
    monkeypatch.setattr("megafuser.preflight.caches.missing_caches", None)
    common = ["warmup", "--config", config, "parallel.tensor=1"]
    assert alone(*common, "data.sequence_length=100") == (0, [READY])
    assert "not tokenized (text train, " in alone(*common, "data.cache_dir=elsewhere")[1][0]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["warmup.stps=1"], ["override 'warmup.stps=1': warmup.stps: unknown key; the nearest valid one is"]),
        (["--tensor", "2"], ["unknown option --tensor"]),
        (["parallel.tensor=4"], ["parallel: tensor 4 x pipeline 1 needs a multiple of 4 processes, but there are 1"]),
        (
            ["specialists.0.checkpoint=nowhere"],
            ["specialist text: nowhere is not a directory; make it with tools/conv"],
        ),
        (
            ["specialists.0.checkpoint=nowhere", "specialists.2.checkpoint=away", "parallel.tensor=2"],
            [
                "parallel: tensor 2",
                "specialist text: nowhere is not a directory",
                "specialist math: away is not a directory",
            ],
        ),
        (["data.domains.text.train=[nowhere.jsonl]"], ["nowhere.jsonl does not exist; correct data.domains.text"]),
        (["data.end_token=<none>"], ["the specialists' ids of data.end_token '<none>' differ"]),
        ([f"run_dir={ROOT}/setup.py/run"], [f"run_dir: {ROOT}/setup.py/run cannot be written"]),
        (["device=cuda"], ["device: cuda, but PyTorch finds no GPU"]),
        (["device=auto", "backend=transformer_engine"], ["backend: transformer_engine needs a GPU"]),
        (["profile.ranks=[3]"], ["profile.ranks"]),
        ([f"run_dir={'x' * 300}"], ["x" * 300 + "/warmup/latest: File name too long"]),
    ],
)
def test_what_the_user_can_mend(
    config: Path, alone: Callable[..., tuple[int, list[str]]], arguments: list[str], says: list[str]
) -> None:
    if {"device=cuda", "device=auto"} & {*arguments} and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    code, lines = alone("warmup", "--config", config, "parallel.tensor=1", *arguments)
    assert code == 2 and len(lines) == len(says)
    for line, start_of_it in zip(lines, says, strict=True):
        assert line.startswith(f"megafuser: error: {start_of_it}")
    assert not (config.parent / "run").exists()


def test_joint_needs_a_warm_up(config: Path, alone: Callable[..., tuple[int, list[str]]]) -> None:
    code, lines = alone("joint", "--config", config, "parallel.tensor=1")
    remedy = "run `megafuser warmup` first or set joint.init_from"
    assert (code, lines) == (2, [f"megafuser: error: no warm-up checkpoint in {config.parent}/run/warmup; {remedy}"])


def test_a_full_disk(
    config: Path, alone: Callable[..., tuple[int, list[str]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: namedtuple("Usage", "free")(1 << 20))
    code, (line,) = alone("warmup", "--config", config, "parallel.tensor=1")
    assert code == 2
    assert f"run_dir: {config.parent} has 1.0 MB free, but the checkpoints of warmup need" in line


@pytest.mark.parametrize("module", ["megafuser.preflight", "megafuser preflight"])
@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "the following arguments are required: --config, STAGE; see megafuser preflight --help"),
        (["plan", "--config", "c"], "argument STAGE: invalid choice: 'plan' (choose from "),
    ],
)
def test_no_stage(module: str, arguments: list[str], says: str) -> None:
    command = [sys.executable, "-m", *module.split(), *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"megafuser: error: {says}") and done.stderr.count("\n") == 1


def test_a_launchers_variables_that_are_wrong(config: Path) -> None:
    done = start(0, 2, "20000", ["warmup", "--config", config], SLURM_NTASKS="two")
    codes, said = finish([done])
    assert codes == [2] and said.startswith("megafuser: error: ") and said.count("\n") == 0
    assert "SLURM_NTASKS" in said


@pytest.mark.parametrize("module", ["megafuser.preflight", "megafuser preflight"])
def test_help(module: str) -> None:
    command = [sys.executable, "-m", *module.split(), "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("usage: megafuser preflight STAGE --config FILE") and not done.stderr


def test_it_takes_the_arguments_of_the_stages_command(
    config: Path, alone: Callable[..., tuple[int, list[str]]]
) -> None:
    """The job scripts hand them on as they are."""
    code, lines = alone("warmup", "parallel.tensor=1", "--config", config, "--time-limit", "10:00")
    assert (code, lines[-1]) == (0, "megafuser: preflight: this process is ready")


@pytest.mark.parametrize("seconds", ["0", "soon", "-1", "inf"])
def test_a_wrong_patience(
    alone: Callable[..., tuple[int, list[str]]], monkeypatch: pytest.MonkeyPatch, seconds: str
) -> None:
    monkeypatch.setenv("MEGAFUSER_PREFLIGHT_SECONDS", seconds)
    code, (line,) = alone("warmup", "--config", "c")
    assert code == 2
    assert line.endswith(f"MEGAFUSER_PREFLIGHT_SECONDS={seconds} must be a number of seconds above 0")


def test_not_under_torchrun(config: Path) -> None:
    """Its agent has the port at which the ranks would meet."""
    command = [sys.executable, "-m", "megafuser.preflight", "warmup", "--config", str(config)]
    environment = os.environ | {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "runs under srun (slurm/*.sh) or as one process, not under torchrun" in done.stderr


def test_a_bug_is_told_with_its_node_and_keeps_its_traceback(
    config: Path, alone: Callable[..., tuple[int, list[str]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("CUDA error:\nout of order")

    monkeypatch.setattr("megafuser.preflight.node.check_device", broken)
    code, lines = alone("warmup", "--config", config, "parallel.tensor=1")
    assert code == 1 and lines[0].startswith("Traceback")
    told = "RuntimeError: CUDA error: out of order; see its traceback in the log"
    assert lines[-1].startswith(f"megafuser: error: {socket.gethostname()}: {told}")


def test_a_mistake_that_all_ranks_find_is_said_once(config: Path) -> None:
    """Rank 0 alone leaves with 2, so that no launcher ends it while it speaks."""
    port = free_ports(1)[0]
    codes, said = finish([start(rank, 2, port, ("warmup", "--config", config, "warmup.stps=3")) for rank in range(2)])
    assert codes == [2, 0]
    assert said.startswith("megafuser: error: override 'warmup.stps=3'") and "\n" not in said


def test_versions_that_differ_name_their_node(config: Path) -> None:
    """The second rank's node has another transformers."""
    other = (
        "import socket, sys; from megafuser.cli.main import main; from megafuser.preflight import node; "
        "versions = node.versions; node.versions = lambda: versions() | {'transformers': '9.9'}; "
        "socket.gethostname = lambda: 'node2'; sys.exit(main(['preflight', *sys.argv[1:]]))"
    )
    port = free_ports(1)[0]
    arguments = ("warmup", "--config", config, "warmup.stps=3")
    codes, said = finish([start(0, 2, port, arguments), start(1, 2, port, arguments, program=f"-c {other}")])
    assert codes == [2, 0]
    mistake, versions = said.splitlines()
    assert mistake.startswith("megafuser: error: override 'warmup.stps=3'")
    assert versions.startswith("megafuser: error: transformers differs between nodes: ")
    assert "9.9 on node2;" in versions


def test_a_rank_that_says_nothing_is_named(config: Path) -> None:
    """It hangs before it can speak."""
    port = free_ports(1)[0]
    arguments = ("warmup", "--config", config, "warmup.stps=3")
    hangs = start(1, 2, port, arguments, program="-c import time; time.sleep(600)")
    try:
        codes, said = finish([start(0, 2, port, arguments, MEGAFUSER_PREFLIGHT_SECONDS="3")])
    finally:
        hangs.kill()
        hangs.communicate()
    assert codes == [2]
    assert ": no word of rank 1 within 3 seconds; exclude the node" in said.splitlines()[-1]


def test_a_rank_that_dies_in_the_all_reduce(config: Path) -> None:
    """It was ready, and is gone: the others do not wait for ever. What is looked at before is made up, to save time."""
    patched = (
        "import os, sys; from megafuser.cli.main import main; from megafuser.preflight import command as c, node; "
        "c._examine_run = lambda *_: []; reduce = c.try_all_reduce; "
    )
    waits = f"-c {patched}c.try_all_reduce = lambda *a: reduce(*a[:3], 5); main(['preflight', *sys.argv[1:]])"
    seen = "node.check_device = lambda *_: ('cpu', {'backend': 'torch', 'device': 'cpu'}, []); "
    dies = f"-c {patched}{seen}c.try_all_reduce = lambda *_: os._exit(9); main(['preflight', *sys.argv[1:]])"
    port = free_ports(1)[0]
    arguments = ("warmup", "--config", config)
    codes, said = finish([start(0, 2, port, arguments, program=waits), start(1, 2, port, arguments, program=dies)])
    assert codes == [1, 9]
    failed, silent = said.splitlines()
    assert "an all-reduce over gloo" in failed and "no word of rank 1 within" in silent


def test_a_signal_ends_it_with_the_code_for_again(config: Path) -> None:
    """There is nothing to save."""
    port = free_ports(1)[0]
    rank = start(0, 2, port, ("warmup", "--config", config))
    while True:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", int(port))):
            break
        assert rank.poll() is None
        time.sleep(0.05)
    rank.terminate()
    assert finish([rank])[0] == [75]
