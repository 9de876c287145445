"""The tables of what `--json` writes have the fields that are there, and no others."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from megafuser.cli.main import main
from tests.cli.test_plan import EXAMPLE, write_cards
from tests.parallel.launch import ROOT
from tests.unit.planning.architectures import ULTRAFUSER_13B
from tests.unit.watching.test_status import add_checkpoint, event, line, make_run

# keys that are names, and what has a table of its own elsewhere
NAMES = {"stages": "STAGE", "disk": "STAGE", "cards": "NAME"}
WHOLE = {"parallel", "cards.NAME", "advice.overrides", "train", "valid", "later_stages"}


def listed(page: str, heading: str) -> list[str]:
    """The names in the first column; those behind a cell's first have its beginning."""
    section = (ROOT / "docs" / page).read_text("utf-8").split(f"# {heading}\n")[1].split("\n#")[0]
    found = []
    for cell in re.findall(r"^\| (`[^|]+) \|", section, re.MULTILINE):
        first, *others = re.findall(r"`([^`]+)`", cell)
        beginning = first.rpartition(".")[0]
        found += [first, *(f"{beginning}.{other}" if beginning else other for other in others)]
    return found


def fields(value: Any, name: str = "") -> Iterator[str]:
    """The dotted names of what is written; N stands for a place in a list of objects."""
    if isinstance(value, dict) and name not in WHOLE:
        for key, inner in value.items():
            own = NAMES.get(name, key)
            yield from fields(inner, f"{name}.{own}" if name else own)
    elif isinstance(value, list) and value and all(isinstance(each, dict) and "time" not in each for each in value):
        for each in value:
            yield from fields(each, f"{name}.N")
    else:
        yield name


def test_the_planners(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    specialists = yaml.safe_load(EXAMPLE.read_text())["specialists"]
    write_cards({item["name"]: Path(item["checkpoint"]) for item in specialists}, ULTRAFUSER_13B)
    options = ["--gpus", "16", "--gpu", "a100-40gb", "--json", "plan.json", "precision.fp8=null"]
    assert main(["plan", "--config", str(EXAMPLE), *options]) == 0
    found = json.loads(Path("plan.json").read_text())
    assert found["advice"] is not None
    names = listed("planner.md", "Fields of the JSON file")
    assert len(names) == len(set(names)) and set(names) == set(fields(found))


def test_those_of_the_status(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    happened = [event("started", 0, step=0), event("warning", 5, message="a warning")]
    run = make_run(tmp_path / "run", [line(1), line(1, "valid")], happened, written=9)
    add_checkpoint(run, "joint", 1, 8)
    assert main(["status", str(run), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["warnings"][0].keys() == {"time", "event", "stage", "message"}
    names = listed("watching.md", "Fields of the JSON")
    assert len(names) == len(set(names)) and set(names) == set(fields(found))
