"""What the documentation shows of the planner is what the planner prints; it needs config.json files alone."""

import json
import runpy
import shlex
from pathlib import Path

import pytest

from megafuser.cli.main import main
from tests.cli.test_examples_plan import PUBLISHED
from tests.docs.command_lines import command_lines
from tests.docs.pages import blocks
from tests.parallel.launch import ROOT


@pytest.fixture
def downloads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A working directory with the examples' specialists as they come from the hub, without weights."""
    for specialists in PUBLISHED.values():
        for name, values in specialists.items():
            directory = tmp_path / "checkpoints" / name
            directory.mkdir(parents=True)
            (directory / "config.json").write_text(json.dumps(values))
    monkeypatch.chdir(tmp_path)


def _shown(page: str, beginning: str) -> list[str]:
    """The lines of the one block of a page that begins so."""
    (block,) = (block for block in blocks(ROOT / page) if block.text.startswith(beginning))
    return [line for line in block.text.splitlines() if line]


def _printed(capsys: pytest.CaptureFixture[str], example: str, *arguments: str) -> list[str]:
    config = str(ROOT / "examples" / example / "config.yaml")
    code = main(["plan", "--config", config, *arguments])
    printed = capsys.readouterr()
    assert code == (2 if printed.err else 0)
    return [line for line in (printed.out + printed.err).splitlines() if line]


@pytest.mark.usefixtures("downloads")
@pytest.mark.parametrize(
    ("page", "beginning", "example"),
    [
        ("docs/your-own.md", "3 specialists, 22.85 billion", "qwen2.5-7b"),
        ("docs/planner.md", "3 specialists, 39.05 billion", "ultrafuser-13b"),
        ("slurm/README.md", "3 specialists, 39.05 billion", "ultrafuser-13b"),
    ],
)
def test_a_plan_is_what_is_printed(page: str, beginning: str, example: str, capsys: pytest.CaptureFixture[str]) -> None:
    printed = _printed(capsys, example, "--gpus", "16", "--gpu", "h100")
    shown = _shown(page, beginning)
    assert len(shown) > 5
    assert [line for line in shown if line not in printed] == []


def test_the_guide_plans_with_what_it_has_downloaded_so_far(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its command, as it stands there, in a directory that has what its step before has fetched."""
    lines = [line for block in blocks(ROOT / "docs" / "your-own.md") for line in command_lines(block.text)]
    (fetch,) = (line.split() for line in lines if line.startswith("for model in "))
    command = next(line for line in lines if line.startswith("megafuser plan"))
    models = fetch[fetch.index("in") + 1 :]
    for model, values in zip(models, PUBLISHED["qwen2.5-7b"].values(), strict=True):
        (tmp_path / "look" / model).mkdir(parents=True)
        (tmp_path / "look" / model / "config.json").write_text(json.dumps(values))
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    assert main(shlex.split(command)[1:]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert [line for line in _shown("docs/your-own.md", "3 specialists, 22.85 billion") if line not in printed] == []


@pytest.mark.usefixtures("downloads")
@pytest.mark.parametrize("page", ["docs/planner.md", "slurm/README.md"])
def test_advice_is_what_is_printed(page: str, capsys: pytest.CaptureFixture[str]) -> None:
    lines = _shown(page, "$ megafuser plan")
    assert len(lines) >= 4
    for command, answer in zip(lines[::2], lines[1::2], strict=True):
        words = shlex.split(command.removeprefix("$ "))
        assert words[:3] == ["megafuser", "plan", "--config"]
        assert _printed(capsys, "ultrafuser-13b", *words[4:])[-1] == answer


def test_the_table_of_layouts_is_what_its_command_makes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The page's own numbers, as the slow test writes them, through the command."""
    page = (ROOT / "docs" / "layouts.md").read_text(encoding="utf-8")
    head, _, *rows = [line for line in page.split("### Measured")[1].splitlines() if line.startswith("|")]
    columns = [cell.strip().split() for cell in head.strip("|").split("|")][2:]
    numbers = {}
    for row in rows:
        name, _, *cells = [cell.strip() for cell in row.strip("|").split("|")]
        numbers[name] = {
            f"{specialists} joint {dtype}": float(cell)
            for (dtype, specialists), cell in zip(columns, cells, strict=True)
        }
    assert len(numbers) > 20
    (tmp_path / "table.json").write_text(json.dumps(numbers))
    monkeypatch.setattr("sys.argv", ["layout_table", str(tmp_path / "table.json")])
    runpy.run_module("tests.parallel.layout_table", run_name="__main__")
    assert capsys.readouterr().out.splitlines() == [head, "|---|---|" + "---|" * len(columns), *rows]


@pytest.mark.parametrize(
    ("words", "path"),
    [
        ("all … source tensors are equal bit by bit", "megafuser/conversion/hf_to_mcore.py"),
        ("… ranks are ready", "megafuser/preflight/command.py"),
        ("preflight: this process is ready", "megafuser/preflight/command.py"),
        (": … GB in … s, training stood still for … s", "megafuser/training/checkpoint_saver.py"),
        ("is finished: ", "megafuser/training/stages.py"),
        ("cross-entropy in nats per response token (*: lowest)", "megafuser/report/command.py"),
        (
            "fusing helps these specialists; the fused model is better than any single one.",
            "megafuser/report/verdict.py",
        ),
        ("The fused model is better than any single specialist", "megafuser/report/verdict.py"),
        (": ready for transformers", "tools/convert_mcore_to_hf.py"),
        ("caches: … positions, … GiB on each rank", "megafuser/inference/open_model.py"),
        ("benchmark leaks", "megafuser/data/recipe/report.py"),
        ("the specialists' shared vocabulary is not a prefix", "megafuser/data/shared_vocabulary.py"),
        ("attention heads", "megafuser/specialist/layout_checks.py"),
        ("needs a multiple of", "megafuser/runtime/world.py"),
        ("steps in a row were skipped", "megafuser/training/nonfinite_steps.py"),
    ],
)
def test_words_that_users_are_told_to_expect_are_the_programs(words: str, path: str) -> None:
    page = (ROOT / "docs" / "your-own.md").read_text(encoding="utf-8")
    source = (ROOT / path).read_text(encoding="utf-8")
    parts = [part for part in words.split("…") if part.strip()]
    assert all(part.strip() in page and part.strip() in source for part in parts)
