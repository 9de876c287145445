"""What the tests of commands that use a trained model share, and those of stages that are killed."""

from pathlib import Path

import pytest

from megafuser.cli.main import main
from tests.cli.stopping import write_quick_config
from tests.cli.test_killed_stage import INTERVAL, STEPS, finish
from tests.fused_case import make_case, write_config


@pytest.fixture(scope="session")
def both_stages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with `config.yaml` and a run that went through both stages, with a gate that prefers."""
    root = tmp_path_factory.mktemp("both_stages")
    values = make_case(root, train=4, valid=1) | {"device": "cpu"}
    for stage in ("warmup", "joint"):
        values[stage] = {"steps": 2, "samples_per_domain": 2, "lr": 3e-2 if stage == "warmup" else 3e-3}
    values["evaluation"] = {"interval": 10, "samples_per_domain": 1}
    config = str(write_config(root / "config.yaml", values))
    for stage in ("warmup", "joint"):
        assert main([stage, "--config", config]) == 0
    return root


@pytest.fixture(scope="session")
def saving_config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A configuration of steps that take hundredths of seconds, a checkpoint every few."""
    return write_quick_config(tmp_path_factory.mktemp("stages"), steps=STEPS, interval=INTERVAL)


@pytest.fixture(scope="session")
def saving_run(saving_config: Path) -> Path:
    """A run of it that nothing happened to."""
    finish(saving_config, saving_config.parent / "whole")
    return saving_config.parent / "whole"
