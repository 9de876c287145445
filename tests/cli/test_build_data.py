"""`tools/build_data.py` and the examples' commands, on small data sets of the publishers' layout."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from megafuser.config.data import SourceConfig
from megafuser.data.sources import hub
from megafuser.data.sources.split import in_valid
from tests.cli.tools import refusal, run_tool
from tests.parallel.launch import ROOT
from tests.small_domain import read_samples
from tests.unit.data.recipe.publishers import make_sets

ALL = ("--no-decontamination",)
EXAMPLE, SAME = "ultrafuser-13b", "qwen2.5-7b"


@pytest.fixture
def sets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory that stands for the hub."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    hub._load.cache_clear()
    make_sets(tmp_path / "hub")
    return tmp_path / "hub"


def small(directory: Path, **changes: Any) -> Path:
    """A recipe of one domain."""
    import yaml

    source = {"dataset": "theblackcat102/evol-codealpaca-v1", "license": "Apache-2.0", "fields": {"response": "output"}}
    recipe = {"domains": {"code": {"samples": 12, "sources": [source]}}, **changes}
    (directory / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return directory / "recipe.yaml"


def records(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_an_example_end_to_end(sets: Path, tmp_path: Path) -> None:
    command = [str(ROOT / "examples" / EXAMPLE / "build_data.sh"), "--local", str(sets)]
    environment = {**os.environ, "PYTHON": sys.executable, "HF_DATASETS_CACHE": str(tmp_path / "cache")}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    out = tmp_path / "data"
    names = [f"{name}.{split}.jsonl" for name in ("text", "code", "math") for split in ("train", "valid")]
    assert sorted(path.name for path in out.iterdir()) == sorted([*names, "leaks.jsonl", "report.json"])
    report = json.loads((out / "report.json").read_text())
    assert {name: one["kept"] for name, one in report["domains"].items()} == {"text": 40, "code": 40, "math": 36}
    magicoder, alpaca = (one["counts"] for one in report["domains"]["code"]["sources"])
    assert (magicoder["kept"], alpaca["read"], alpaca["duplicates"], alpaca["kept"]) == (30, 15, 5, 10)
    instruct = report["domains"]["math"]["sources"][0]
    expected = {"read": 24, "filtered by column": 1, "unusable": 1, "benchmark leaks": 1, "kept": 21}
    assert {step: count for step, count in instruct["counts"].items() if count} == expected
    assert instruct["bad"] == {"empty response": 1} and instruct["license"] == "MIT"
    (leak,) = records(out / "leaks.jsonl")
    assert leak["id"] == "TIGER-Lab/MathInstruct/train:22"
    assert "only 36" not in done.stderr and "math: 36 samples where the recipe asks for 110,000" in done.stderr
    for name in ("text", "code", "math"):
        train, valid = (records(out / f"{name}.{split}.jsonl") for split in ("train", "valid"))
        assert len(train) + len(valid) == report["domains"][name]["kept"]
        assert len({one["id"] for one in train + valid}) == len(train) + len(valid)
        for split, fraction in (("train", False), ("valid", True)):
            file = out / f"{name}.{split}.jsonl"
            for sample in read_samples([SourceConfig(path=str(file))]) if file.stat().st_size else []:
                assert in_valid(sample, 0.01) == fraction
    assert all(len(one["messages"]) == 4 and one["license"] == "MIT" for one in records(out / "text.train.jsonl"))


def test_the_other_example_builds_the_same() -> None:
    """To the byte, so that it need not be built too; where it shall differ, it needs a build of its own above."""
    examples = ROOT / "examples"
    assert (examples / SAME / "data.yaml").read_bytes() == (examples / EXAMPLE / "data.yaml").read_bytes()
    one, other = (examples / name / "build_data.sh" for name in (EXAMPLE, SAME))
    assert os.access(other, os.X_OK)
    assert other.read_text().replace(SAME, EXAMPLE) == one.read_text()


def test_the_draw_depends_on_the_seed_alone_and_the_split_on_the_instruction(sets: Path, tmp_path: Path) -> None:
    def build(out: str, **changes: Any) -> tuple[list[str], list[str]]:
        recipe = small(tmp_path, **changes)
        assert (
            run_tool("build_data", "--recipe", recipe, "--out", tmp_path / out, "--local", sets, "--no-decontamination")
            == 0
        )
        found = [records(tmp_path / out / f"code.{split}.jsonl") for split in ("train", "valid")]
        return [one["id"] for one in found[0]], [one["id"] for one in found[1]]

    first = build("a", valid_fraction=0.4)
    assert build("b", valid_fraction=0.4) == first and len(first[0]) + len(first[1]) == 12 and first[1]
    other = build("c", valid_fraction=0.4, seed=7)
    assert set(other[0] + other[1]) != set(first[0] + first[1])
    both = set(first[0] + first[1]) & set(other[0] + other[1])
    assert {one: one in first[1] for one in both} == {one: one in other[1] for one in both}


def test_near_duplicates_and_filters(sets: Path, tmp_path: Path) -> None:
    import yaml

    story = " ".join(f"word{number}" for number in range(60))
    rows = [
        {"instruction": "Tell a story.", "output": story},
        {"instruction": "Tell a story.", "output": f"{story} end"},
        {"instruction": "As an AI language model?", "output": "no"},
        {"instruction": "Too long", "output": "x" * 2000},
    ]
    directory = sets / "some/set"
    directory.mkdir(parents=True)
    (directory / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = {"dataset": "some/set", "license": "MIT", "fields": {"response": "output"}}
    domain = {"samples": 9, "sources": [source], "reject": ["(?i)as an ai"], "lengths": {"max_characters": 1000}}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({"near_duplicates": 0.8, "domains": {"text": domain}}))
    options = ("--recipe", tmp_path / "recipe.yaml", "--out", tmp_path / "out", "--local", sets, "--no-decontamination")
    assert run_tool("build_data", *options) == 0
    counts = json.loads((tmp_path / "out/report.json").read_text())["domains"]["text"]["sources"][0]["counts"]
    left = {step: count for step, count in counts.items() if count}
    assert left == {
        "read": 4,
        "filtered by length": 1,
        "filtered by pattern": 1,
        "near duplicates": 1,
        "kept": 1,
    }


def test_files_of_one_data_set_are_sources_of_their_own(sets: Path, tmp_path: Path) -> None:
    """Their rows are counted in each, and their ids differ all the same."""
    directory = sets / "some/parts"
    directory.mkdir(parents=True)
    sources = []
    for name, topic in (("a", "whales"), ("b", "glaciers")):
        text = " ".join(f"{topic}{number}" for number in range(60))
        (directory / f"{name}.jsonl").write_text(json.dumps({"instruction": f"On {topic}?", "output": text}) + "\n")
        fields = {"response": "output"}
        sources.append({"dataset": "some/parts", "license": "MIT", "fields": fields, "files": [f"{name}.jsonl"]})
    domain = {"samples": 9, "sources": sources}
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(json.dumps({"near_duplicates": 0.8, "domains": {"text": domain}}))
    options = ("--recipe", recipe, "--out", tmp_path / "out", "--local", sets, "--no-decontamination")
    assert run_tool("build_data", *options) == 0
    found = [one["id"] for split in ("train", "valid") for one in records(tmp_path / f"out/text.{split}.jsonl")]
    assert sorted(found) == ["some/parts/train[a.jsonl]:1", "some/parts/train[b.jsonl]:1"]


def test_at_most_so_many_of_one_data_set(sets: Path, tmp_path: Path) -> None:
    sources = [
        {"dataset": "ise-uiuc/Magicoder-Evol-Instruct-110K", "license": "Apache-2.0", "samples": 4},
        {"dataset": "meta-math/MetaMathQA", "license": "MIT", "fields": {"instruction": "query"}},
    ]
    recipe = small(tmp_path, domains={"both": {"samples": 12, "sources": sources}})
    assert run_tool("build_data", "--recipe", recipe, "--out", tmp_path / "out", "--local", sets, *ALL) == 0
    found = json.loads((tmp_path / "out/report.json").read_text())["domains"]["both"]["sources"]
    assert [one["counts"]["kept"] for one in found] == [4, 8]
    assert [one["counts"]["not drawn"] for one in found] == [26, 7]


def test_only_an_earlier_output_is_replaced(sets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    out.mkdir()
    options = ("--recipe", small(tmp_path), "--out", out, "--local", sets, *ALL)
    (out / "mine").write_text("x")
    assert "exists; choose another output or pass --overwrite" in refusal(capsys, "build_data", *options)
    said = refusal(capsys, "build_data", *options, "--overwrite")
    assert said == (
        f"{out} is not an earlier output (it has no report.json with a recipe), so it is not overwritten; "
        "choose another output"
    )
    assert (out / "mine").read_text() == "x"
    (out / "mine").unlink()
    made = ["code.train.jsonl", "code.valid.jsonl", "leaks.jsonl", "report.json"]
    for _ in range(2):  # an empty directory, and then its own
        assert run_tool("build_data", *options, "--overwrite") == 0
        assert sorted(path.name for path in out.iterdir()) == made
    capsys.readouterr()
    for kept, option in ((tmp_path, "--recipe"), (sets, "--local")):
        said = refusal(capsys, "build_data", *options[:3], kept, *options[4:], "--overwrite")
        assert said.startswith(f"--out {kept} holds {option} ") and "which would be replaced" in said
    assert (tmp_path / "recipe.yaml").is_file() and any(sets.iterdir())
    (out / "cache").mkdir()
    said = refusal(capsys, "build_data", *options, "--overwrite")
    assert said.startswith(f"--out {out} holds cache, which no build made") and (out / "cache").is_dir()


def test_nothing_is_built_without_benchmarks(sets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = refusal(capsys, "build_data", "--recipe", small(tmp_path), "--out", tmp_path / "out", "--local", sets)
    assert said.startswith("no benchmark is named") and "--no-decontamination" in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "variable",
    # the second waits for the hub library's own attempts
    [{"HF_HUB_OFFLINE": "1"}, pytest.param({"HF_ENDPOINT": "http://127.0.0.1:9"}, marks=pytest.mark.slow)],
)
def test_no_network_is_one_line(tmp_path: Path, variable: dict[str, str]) -> None:
    command = [
        sys.executable,
        str(ROOT / "tools/build_data.py"),
        "--recipe",
        str(small(tmp_path)),
        "--no-decontamination",
    ]
    environment = {**os.environ, **variable, "HF_HOME": str(tmp_path / "home")}
    done = subprocess.run(
        [*command, "--out", "out"], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2 and done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert "theblackcat102/evol-codealpaca-v1 does not load" in line and "check the network" in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"near_duplicates": 2.0}, "near_duplicates: must be above 0 and at most 1"),
        ({"sede": 1}, "sede: unknown key; the nearest valid one is 'seed'"),
        ({"domains": {}}, "domains: must hold at least one domain"),
        ({"domains": {"a/b": {"samples": 1, "sources": []}}}, "domains.a/b.sources: must list at least one data set"),
        ({"benchmarks": [{"dataset": "x/y", "texts": []}]}, "benchmarks.0.texts: must list at least one column"),
    ],
)
def test_mistakes_in_a_recipe(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, Any], says: str
) -> None:
    recipe = small(tmp_path, **changes)
    assert says in refusal(capsys, "build_data", "--recipe", recipe, "--out", tmp_path / "out")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            {"not_columns": {"kind": "x"}},
            "domains.code.sources.0.not_columns.kind: theblackcat102/evol-codealpaca-v1 has",
        ),
        ({"fields": {}}, "holds no sample: lacks `response`"),
        ({"split": "test"}, "does not load"),
        ({"not_columns": {"output": "("}}, "sources.0.not_columns.output: '(' is not a regular expression"),
        ({"samples": 0}, "sources.0.samples: must be at least 1"),
        ({"fields": {"answer": "output"}}, "sources.0.fields.answer: unknown field"),
    ],
)
def test_mistakes_about_a_data_set(
    sets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], change: dict[str, Any], says: str
) -> None:
    source = {"dataset": "theblackcat102/evol-codealpaca-v1", "license": "MIT", "fields": {"response": "output"}}
    recipe = small(tmp_path, domains={"code": {"samples": 5, "sources": [{**source, **change}]}})
    options = ("--recipe", recipe, "--out", tmp_path / "out", "--local", sets, "--no-decontamination")
    assert says in refusal(capsys, "build_data", *options)
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".out*"))
