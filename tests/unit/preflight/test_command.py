"""The preflight as a program, on ranks that are processes of this machine with Slurm's variables."""

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.fused_case import make_case, write_config
from tests.parallel.launch import ROOT, free_ports


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("preflight")
    values = make_case(root, train=6, valid=1) | {"device": "cpu", "parallel": {"tensor": 2}}
    return write_config(root / "config.yaml", values)


def start(
    rank: int, size: int, port: str, arguments: Sequence[object], program: str = "-m megafuser.preflight", **more: str
) -> "subprocess.Popen[str]":
    """One rank; `program` stands for the preflight where it shall do something else."""
    places = {"SLURM_PROCID": rank, "SLURM_NTASKS": size, "SLURM_LOCALID": rank, "SLURM_STEP_ID": 0, "SLURM_JOB_ID": 9}
    environment = os.environ | {name: str(value) for name, value in places.items()}
    environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    environment |= {"SLURM_JOB_NODELIST": "node[1-2]", "MEGAFUSER_PREFLIGHT_SECONDS": "60"} | more
    command = [sys.executable, "-W", "ignore", *program.split(" ", 1), *map(str, arguments)]
    return subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)


def finish(ranks: Sequence["subprocess.Popen[str]"]) -> tuple[list[int], str]:
    """Exit codes, and what all said of megafuser."""
    try:
        said = [rank.communicate(timeout=150)[1] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    lines = [line for text in said for line in text.splitlines() if line.startswith("megafuser: ")]
    return [rank.returncode for rank in ranks], "\n".join(lines)


def both(*arguments: object, **more: str) -> tuple[list[int], str]:
    port = free_ports(1)[0]
    return finish([start(rank, 2, port, arguments, **more) for rank in range(2)])


def test_all_is_well(config: Path) -> None:
    assert both("warmup", "--config", config) == ([0, 0], "megafuser: preflight: 2 ranks are ready")
    assert not (config.parent / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["warmup.stps=1"], "override 'warmup.stps=1': warmup.stps: unknown key; the nearest valid one"),
        (["parallel.tensor=4"], "parallel: tensor 4 x pipeline 1 needs a multiple of 4 processes, but there are 2"),
        (["specialists.0.checkpoint=nowhere"], "specialist text: nowhere is no directory; make it with tools/conv"),
        (["data.domains.text.train=[nowhere.jsonl]"], "nowhere.jsonl does not exist; correct data.domains.text.train"),
        (["data.end_token=<none>"], "data.end_token '<none>'"),
        (["--tensor", "2"], "unknown option --tensor"),
    ],
)  # fmt: skip
def test_what_the_user_can_mend_is_said_once(config: Path, arguments: list[str], says: str) -> None:
    """Rank 0 alone leaves with 2, so that no launcher ends it while it speaks."""
    codes, said = both("warmup", "--config", config, *arguments)
    assert codes == [2, 0]
    assert said.startswith(f"megafuser: error: {says}") and "\n" not in said


def test_joint_needs_a_warm_up(config: Path) -> None:
    codes, said = both("joint", "--config", config)
    assert codes == [2, 0]
    assert "no warm-up checkpoint in" in said and "run `megafuser warmup` first" in said


def test_versions_that_differ_name_their_node(config: Path) -> None:
    """The second rank's node has another transformers."""
    other = (
        "import socket, sys; from megafuser.preflight import command, node; node._PACKAGES = ('torch',); "
        "versions = node.versions; node.versions = lambda: versions() | {'transformers': '9.9'}; "
        "socket.gethostname = lambda: 'node2'; sys.exit(command.main(sys.argv[1:]))"
    )
    port = free_ports(1)[0]
    arguments = ("warmup", "--config", config)
    codes, said = finish([start(0, 2, port, arguments), start(1, 2, port, arguments, program=f"-c {other}")])
    assert codes == [2, 0]
    assert said.startswith("megafuser: error: transformers differs between nodes: ") and "9.9 on node2;" in said


def test_a_rank_that_says_nothing_is_named(config: Path) -> None:
    """It hangs before it can speak; and its node has no word of it either."""
    port = free_ports(1)[0]
    arguments = ("warmup", "--config", config)
    ranks = [start(0, 2, port, arguments, MEGAFUSER_PREFLIGHT_SECONDS="15")]
    ranks.append(start(1, 2, port, arguments, program="-c import time; time.sleep(600)"))
    try:
        said = ranks[0].communicate(timeout=120)[1]
    finally:
        finish_quietly(ranks)
    assert ranks[0].returncode == 1
    assert "no word of rank 1 within 15 seconds" in said


def test_a_rank_that_dies_in_the_all_reduce(config: Path) -> None:
    """It was ready, and is gone: the others do not wait for ever."""
    dies = (
        "import os, sys; from megafuser.preflight import command; "
        "command.try_all_reduce = lambda *_: os._exit(9); command.main(sys.argv[1:])"
    )
    port = free_ports(1)[0]
    arguments = ("warmup", "--config", config)
    ranks = [
        start(0, 2, port, arguments, MEGAFUSER_PREFLIGHT_SECONDS="20"),
        start(1, 2, port, arguments, program=f"-c {dies}"),
    ]
    codes, said = finish(ranks)
    assert codes == [1, 9]
    assert "an all-reduce over gloo" in said and "no word of rank 1" in said


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


@pytest.mark.parametrize("seconds", ["0", "soon", "-1", "inf"])
def test_a_wrong_patience(config: Path, seconds: str) -> None:
    codes, said = finish([start(0, 1, "0", ("warmup", "--config", config), MEGAFUSER_PREFLIGHT_SECONDS=seconds)])
    assert codes == [2]
    assert f"MEGAFUSER_PREFLIGHT_SECONDS={seconds} must be a number of seconds above 0" in said


def finish_quietly(ranks: Sequence["subprocess.Popen[str]"]) -> None:
    for rank in ranks:
        rank.kill()
        rank.communicate()
