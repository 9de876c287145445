"""`tools/prepare_data.py` as a user meets it: samples shown, data built and counted, mistakes in one line."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cli.tools import refusal, run_program, run_tool, tree
from tests.fused_case import make_case, samples_of, write_config, write_jsonl


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Specialists and data of three domains, 12 training samples each, and `config.yaml`."""
    root = tmp_path_factory.mktemp("prepare")
    write_config(root / "config.yaml", make_case(root))
    return root


@pytest.fixture
def configure(made: Path, tmp_path: Path) -> Callable[..., Path]:
    """Writes the configuration with a run directory of this test, changed by a function."""

    def write(change: Callable[[dict[str, Any]], None] = lambda values: None) -> Path:
        values = yaml.safe_load((made / "config.yaml").read_text())
        values["run_dir"] = str(tmp_path / "run")
        change(values)
        return write_config(tmp_path / "config.yaml", values)

    return write


def test_show_prints_samples_as_every_specialist_sees_them(
    configure: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = configure()
    assert run_tool("prepare_data", "--config", config, "--show", 2) == 0
    shown = capsys.readouterr().out
    first, second = (sample["response"] for sample in samples_of("text", 2))
    for response in (first, second):
        assert shown.count(f"⟦{response}⟨</s>⟩⟧") == 9, "three domains with the same responses, three specialists"
    assert "Assistant:⟦" in shown and "[/INST]⟦" in shown and "### Response:⟦" in shown
    assert [line.split(":")[0] for line in shown.splitlines() if line.startswith("──")] == [
        f"── {domain}" for domain in ("text", "text", "code", "code", "math", "math")
    ]
    assert tree(tmp_path) == tree(config.parent) and not (tmp_path / "run").exists(), "nothing is built"


def test_show_goes_on_to_samples_that_are_kept(
    configure: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without validation files, samples kept apart are passed over; so are those that training would leave out."""
    long = [{"instruction": f"long {index}", "response": "word " * 400} for index in range(3)]
    path = write_jsonl(tmp_path / "text.jsonl", [*long, {"instruction": "", "response": "a"}, *samples_of("text", 40)])

    def change(values: dict[str, Any]) -> None:
        values["data"]["on_error"] = "skip"
        values["data"]["domains"] = {"text": {"train": [path]}}
        values["data"]["valid_fraction"] = 0.5

    assert run_tool("prepare_data", "--config", configure(change), "--show", 4) == 0
    shown = capsys.readouterr().out
    lines = [int(number) for number in re.findall(r"── text: text\.jsonl:(\d+)", shown)]
    assert len(lines) == 4 and min(lines) > 4 and lines != [5, 6, 7, 8]
    assert "left out: longer than 256 positions" in shown
    assert "text: 1 of the first samples left out: empty instruction" in shown


def test_show_with_ids_from_any_directory(configure: Callable[..., Path], tmp_path: Path) -> None:
    done = run_program("prepare_data", "--config", configure(), "--show", 1, "--ids", directory=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "⟨1:<s>⟩" in done.stdout and "⟦⟨2:</s>⟩⟧" in done.stdout


def test_data_is_built_counted_and_written(
    configure: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = configure()
    assert run_tool("prepare_data", "--config", config, "warmup.steps=30") == 0
    shown = capsys.readouterr().out
    out = tmp_path / "run" / "data" / "statistics"
    assert sorted(path.name for path in out.iterdir()) == ["statistics.html", "statistics.json"]
    document = json.loads((out / "statistics.json").read_text())
    text = document["splits"]["train"]["text"]
    assert (text["samples"], document["splits"]["valid"]["math"]["samples"]) == (12, 4)
    assert [own["times"] for own in document["stages"]["warmup"]["draws"]] == [10, 10, 10]
    table = {line.split("  ")[0]: line.split() for line in shown.splitlines()}
    assert table["samples"][1:] == ["4", "4", "4"], "the validation table is the later one"
    assert "10 times" in shown and str(out / "statistics.html") in shown
    assert sum(text["lengths"]["responses"]) == 12

    before = (out / "statistics.json").read_text()
    assert run_tool("prepare_data", "--config", config, "warmup.steps=30") == 0
    assert (out / "statistics.json").read_text() == before, "its own output is written anew, from the same caches"
    (other := tmp_path / "other").mkdir()
    said = refusal(capsys_cleared(capsys), "prepare_data", "--config", config, "--out", other)
    assert said == f"--out {other} exists; choose another output or pass --overwrite"
    assert run_tool("prepare_data", "--config", config, "--out", other, "--overwrite") == 0
    assert (other / "statistics.html").is_file()


def test_only_earlier_statistics_are_replaced(
    configure: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, out = configure(), tmp_path / "out"
    assert run_tool("prepare_data", "--config", config) == 0
    capsys.readouterr()
    run = tmp_path / "run"
    before = tree(run)
    cache = next((run / "data").glob("text-train-*"))
    for to in (cache, run / "data", run, tmp_path):
        said = refusal(capsys, "prepare_data", "--config", config, "--out", to, "--overwrite")
        assert "which would be replaced" in said or "is not an earlier output" in said
    assert tree(run) == before
    for _ in range(2):
        assert run_tool("prepare_data", "--config", config, "--out", out, "--overwrite") == 0
    (run / "data" / "statistics" / "statistics.json").write_text("{}")
    capsys.readouterr()
    assert "is not an earlier output" in refusal(capsys, "prepare_data", "--config", config)


def capsys_cleared(capsys: pytest.CaptureFixture[str]) -> pytest.CaptureFixture[str]:
    """Forgets what was said before."""
    capsys.readouterr()
    return capsys


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--show", "0"], "argument --show: must be a whole number of at least 1, not '0'; see "),
        (["--show", "x"], "argument --show: must be a whole number of at least 1, not 'x'; see "),
        (["--ids"], "--ids belongs to --show; give --show N too"),
        (["--show", "1", "--out", "o"], "--out belongs to the statistics, which --show does not make; "),
        (["--out", __file__, "--overwrite"], f"--out {__file__} is not a directory; choose another output"),
        (["--shw", "1"], "unknown option --shw; the nearest valid one is '--show'"),
        (["data.sequence_lenght=3"], "data.sequence_lenght"),
        (["data.domains.text.train=[gone.jsonl]"], "gone.jsonl does not exist; correct data.domains.text.train.0"),
        (["--show", "1", "data.domains.text.train=[gone.jsonl]"], "gone.jsonl does not exist; correct data.domains"),
        (["data.weights={text: 1, code: 1, math: 1.0e-7}"], "data.weights.math"),
    ],
)
def test_mistakes_are_one_line_before_anything_is_written(
    arguments: list[str], said: str, configure: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = configure()
    before = tree(tmp_path)
    assert said in refusal(capsys, "prepare_data", "--config", config, *arguments)
    assert tree(tmp_path) == before


def test_an_output_that_cannot_be_made_is_noticed_before_the_samples_are(
    configure: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = configure()
    (tmp_path / "file").touch()
    before = tree(tmp_path)
    said = refusal(capsys, "prepare_data", "--config", config, "--out", tmp_path / "file" / "out")
    assert said.endswith(f"cannot be written ({tmp_path / 'file'} is not a writable directory); choose another one")
    assert tree(tmp_path) == before


@pytest.mark.parametrize("show", [["--show", "2"], []])
def test_a_bad_line_stops_or_is_skipped(
    show: list[str], configure: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    samples = samples_of("text", 6)
    samples[1]["response"] = "  "
    path = write_jsonl(tmp_path / "bad.jsonl", samples)
    config = configure(lambda values: values["data"]["domains"]["text"].update(train=[path]))
    said = refusal(capsys, "prepare_data", "--config", config, *show)
    assert said.startswith(f"{path}:2: ")
    assert run_tool("prepare_data", "--config", config, *show, "data.on_error=skip") == 0
    shown = capsys.readouterr().out
    assert ("── text: bad.jsonl:3" in shown) if show else (f"{path}:2" in shown)


def test_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_tool("prepare_data", "--help") == 0
    shown = capsys.readouterr().out
    assert "--show 3" in shown and "key=value" in shown and "exit codes" in shown
