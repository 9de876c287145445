"""Weights & Biases, by a stand-in for its package: it is never needed, and never reached from here."""

import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from megafuser.config.watching import LoggingConfig, WandbConfig
from megafuser.errors import UserError
from megafuser.watching.wandb_log import WandbLog, check_wandb

ON = LoggingConfig(wandb=WandbConfig(project="fusion", mode="offline"))


class FakeWandb(ModuleType):
    """Keeps what it is told."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.__spec__ = ModuleSpec("wandb", None)
        self.starts: list[dict[str, Any]] = []
        self.lines: list[dict[str, Any]] = []
        self.metrics: dict[str, str | None] = {}
        self.finished = 0

    def init(self, **arguments: Any) -> "FakeWandb":
        self.starts.append(arguments)
        return self

    def define_metric(self, name: str, step_metric: str | None = None) -> None:
        self.metrics[name] = step_metric

    def log(self, values: dict[str, Any]) -> None:
        self.lines.append(values)

    def finish(self) -> None:
        self.finished += 1


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> FakeWandb:
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    return fake


def test_a_missing_package_is_refused_with_the_extra_that_brings_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    check_wandb(LoggingConfig())
    with pytest.raises(UserError, match=r'wandb is not installed; pip install "megafuser\[wandb\]", or set it to null'):
        check_wandb(ON)


def test_an_installed_package_is_accepted(wandb: FakeWandb) -> None:
    check_wandb(ON)


def test_numbers_go_there_by_stage_and_split(wandb: FakeWandb, tmp_path: Path) -> None:
    assert ON.wandb is not None
    log = WandbLog(ON.wandb, tmp_path, {"seed": 1})
    log.write({"stage": "joint", "split": "train", "step": 7, "loss": 2.5, "gate/text/a": 0.5, "note": "text"})
    log.close()
    (start,) = wandb.starts
    assert (start["project"], start["mode"], start["name"]) == ("fusion", "offline", tmp_path.name)
    assert start["config"] == {"seed": 1} and start["dir"] == str(tmp_path)
    assert wandb.lines == [{"joint/step": 7, "joint/train/loss": 2.5, "joint/train/gate/text/a": 0.5}]
    assert wandb.metrics["joint/*"] == "joint/step" and wandb.metrics["warmup/*"] == "warmup/step"
    assert wandb.finished == 1


def test_another_start_goes_on_with_the_same_run(wandb: FakeWandb, tmp_path: Path) -> None:
    assert ON.wandb is not None
    for directory in (tmp_path / "a", tmp_path / "b"):
        directory.mkdir()
        for _ in range(2):
            WandbLog(ON.wandb, directory, {})
    first, second, other, _ = (start["id"] for start in wandb.starts)
    assert first == second != other
    assert {start["resume"] for start in wandb.starts} == {"allow"}
