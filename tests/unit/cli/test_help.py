"""What the commands' help says of themselves: overrides that they take, how they are launched, how they end."""

import argparse
import re

import pytest

from megafuser.cli.parser import build_parser, parse
from megafuser.config.error_messages import key_problem
from megafuser.errors import UserError
from tests.cli.tools import refusal


def commands() -> dict[str, argparse.ArgumentParser]:
    (subparsers,) = (action.choices for action in build_parser()._actions if isinstance(action.choices, dict))
    return dict(subparsers)


COMMANDS = commands()
MODEL = ("report", "generate", "serve", "evaluate", "reshard")
ALONE = ("config", "plan", "status")


@pytest.mark.parametrize("name", COMMANDS)
def test_overrides_that_it_recommends_are_taken(name: str) -> None:
    keys = re.findall(r"\b([a-z_0-9.]+)=", (COMMANDS[name].epilog or "").replace("key=value", ""))
    assert bool(keys) == (name != "status")
    for key in keys:
        assert key_problem(key.split(".")) is None, key
        # what is the checkpoint's own is refused
        assert name not in MODEL or not key.startswith(("gate.", "parallel.", "warmup.", "joint.", "optimizer."))


@pytest.mark.parametrize("name", COMMANDS)
def test_it_says_on_how_many_processes_it_runs(name: str) -> None:
    epilog = COMMANDS[name].epilog or ""
    assert ("torchrun --nproc-per-node N" in epilog) == (name not in (*ALONE, "preflight"))
    assert ("Runs in one process" in epilog) == (name in (*ALONE, "preflight"))
    assert ("srun " in epilog) == (name not in ALONE)


@pytest.mark.parametrize("name", COMMANDS)
def test_it_lists_the_exit_codes_that_it_has(name: str) -> None:
    epilog = " ".join((COMMANDS[name].epilog or "").split())
    says = "done|training|a machine|bad input|what was made|stopped"
    found = set(re.findall(rf"(\d+) (?:{says})", epilog.partition("Exit codes: ")[2]))
    stops = {"75"} if name not in ("config", "serve", "status") else set()
    fails = {"1"} if name in ("warmup", "joint", "preflight") else set()
    assert found == {"0", "2"} | stops | fails


@pytest.mark.parametrize(
    ("command", "part", "whole"),
    [("warmup", "--time-limi", "--time-limit"), ("plan", "--jso", "--json"), ("report", "--tens", "--tensor")],
)
def test_no_part_of_an_options_name_stands_for_it(command: str, part: str, whole: str) -> None:
    given = ["--config", "c", "--checkpoint", "d", "--out", "o"] if command == "report" else ["--config", "c"]
    with pytest.raises(UserError, match=f"^unknown option {part}; the nearest valid one is '{whole}'"):
        parse(build_parser(), [command, *given, part, "1"])


@pytest.mark.parametrize(
    ("tool", "arguments", "says"),
    [
        ("prepare_data", ["--config", "c", "--sho", "1"], "unknown option --sho; the nearest valid one is '--show'"),
        ("decontaminate", ["--benchmarks", "b", "--out", "o", "--input", "i", "--overwrit"], "--overwrit; see "),
        ("convert_hf_to_mcore", ["--hf", "h", "--out", "o", "--verif", "none"], "--verif none; see "),
    ],
)
def test_nor_in_a_tool(capsys: pytest.CaptureFixture[str], tool: str, arguments: list[str], says: str) -> None:
    assert says in refusal(capsys, tool, *arguments)
