"""What the configuration takes and refuses of `logging` and `profile`."""

import dataclasses
from pathlib import Path

import pytest
import yaml

from megafuser.config.load import load_config
from megafuser.config.watching import ProfileConfig, WandbConfig
from megafuser.errors import UserError


@pytest.fixture
def config(tmp_path: Path) -> Path:
    domain = {"train": ["t.jsonl"], "valid": ["v.jsonl"]}
    specialists = [{"name": name, "checkpoint": "x", "template": "plain"} for name in ("a", "b")]
    values = {"run_dir": "run", "specialists": specialists, "data": {"sequence_length": 64, "domains": {"d": domain}}}
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def test_all_is_off_or_quiet_by_default(config: Path) -> None:
    found = load_config(config)
    assert found.profile is None
    assert dataclasses.asdict(found.logging) == {"every_seconds": 30.0, "samples": True, "wandb": None}


def test_overrides_switch_them_on(config: Path) -> None:
    found = load_config(config, ["profile.start=5", "profile.ranks=[0,8]", "logging.wandb.project=fusion"])
    assert found.profile == ProfileConfig(stage="joint", start=5, steps=3, ranks=(0, 8))
    assert found.logging.wandb == WandbConfig(project="fusion")


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("profile.start=0", "profile.start: must be at least 1, not 0"),
        ("profile.steps=0", "profile.steps: must be at least 1, not 0"),
        ("profile.ranks=[]", "profile.ranks: must list at least one rank"),
        ("profile.ranks=[0,-1]", "profile.ranks.1: must be at least 0, not -1"),
        ("profile.stage=both", "profile.stage: "),
        ("profile.begin=1", "profile.begin: unknown key; "),
        ("logging.every_seconds=-1", "logging.every_seconds: must be at least 0.0, not -1"),
        ("logging.wandb.project=' '", "logging.wandb.project: must not be empty"),
        ("logging.wandb={project: x, mode: silent}", "logging.wandb.mode: "),
    ],
)
def test_impossible_values_are_named(config: Path, override: str, said: str) -> None:
    with pytest.raises(UserError) as refused:
        load_config(config, [override])
    assert said in str(refused.value)
