"""`megafuser config` as a user runs it: what it prints is the configuration."""

from pathlib import Path

import pytest
import yaml

from megafuser.cli.main import main
from megafuser.config.load import load_config

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted(ROOT.glob("examples/*/config.yaml"))


def printed(capsys: pytest.CaptureFixture[str], config: Path, *arguments: str) -> str:
    assert main(["config", "--config", str(config), *arguments]) == 0
    said = capsys.readouterr()
    assert said.err == ""
    return said.out


@pytest.mark.parametrize("changed", [False, True])
@pytest.mark.parametrize("config", EXAMPLES, ids=lambda path: path.parent.name)
def test_it_prints_the_same_configuration(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], config: Path, changed: bool
) -> None:
    overrides = ["warmup.steps=7", "profile={start: 3}"]
    text = printed(capsys, config, *overrides, *(["--changed"] if changed else []))
    (tmp_path / "printed.yaml").write_text(text)
    assert load_config(tmp_path / "printed.yaml") == load_config(config, overrides)
    tree = yaml.safe_load(text)
    assert tree["warmup"]["steps"] == 7
    assert ("faults" in tree) == (not changed)


def test_changed_leaves_out_what_is_as_by_default(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In sections, in lists and in mappings; an optional section that is there stays, though all in it is default."""
    config = tmp_path / "config.yaml"
    config.write_text(
        "run_dir: run\n"
        "specialists:\n"
        "- {name: text, checkpoint: a, template: plain}\n"
        "- {name: code, checkpoint: b, template: {prompt: '{{ instruction }}'}}\n"
        "data: {balanced: true, domains: {text: {train: [t.jsonl], valid: []}}}\n"
        "warmup: {steps: 400, lr: 1.0e-5}\n"
        "profile: {}\n"
    )
    assert yaml.safe_load(printed(capsys, config, "--changed", "checkpoint.async=false")) == {
        "run_dir": "run",
        "specialists": [
            {"name": "text", "checkpoint": "a", "template": "plain"},
            {"name": "code", "checkpoint": "b", "template": {"prompt": "{{ instruction }}"}},
        ],
        "data": {"domains": {"text": {"train": ["t.jsonl"]}}},
        "warmup": {"lr": 1e-5},
        "checkpoint": {"async": False},
        "profile": {},
    }


def test_a_mistake_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "--config", str(EXAMPLES[0]), "warmup.stps=1"]) == 2
    said = capsys.readouterr()
    assert said.out == "" and "the nearest valid one is 'warmup.steps'" in said.err
