"""A run of a few steps in this process: through the command line, or piece by piece."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from megafuser.checkpoint.manifest import read_manifest
from megafuser.checkpoint.specialist_sources import sources_from_config
from megafuser.cli.main import main
from megafuser.config.load import load_config
from megafuser.config.run_directory import RunDirectory, step_name
from megafuser.config.schema import RunConfig
from megafuser.data.loader import StepBatches
from megafuser.data.sampler import Sampler
from megafuser.fusion.model import FusedModel
from megafuser.fusion.row import PackedRow
from megafuser.runtime.distributed import single_process_cpu
from megafuser.training.checkpoint_contents import load_converted, load_run_weights
from megafuser.training.engine import Engine
from megafuser.training.session import Session, prepare
from tests.fused_case import make_case, write_config
from tests.metrics_lines import read_lines

STEPS = 4
OPTIMIZERS = {
    "distributed": ("optimizer.distributed=true",),
    "plain": ("optimizer.distributed=false",),
    "bf16": ("optimizer.distributed=true", "precision.dtype=bf16"),
    "plain bf16": ("optimizer.distributed=false", "precision.dtype=bf16"),
}


def make_small_case(root: Path) -> Path:
    """`tests.fused_case` with two samples of a domain in a step, checkpoints and validation every other step."""
    values = make_case(root, train=6, valid=2)
    stage = {"steps": STEPS, "samples_per_domain": 2, "lr": 1e-2}
    values |= {"warmup": dict(stage), "joint": stage | {"lr": 1e-3}}
    values["data"]["sequence_length"] = 256
    values["optimizer"] = {"weight_decay": 0.1}
    write_config(root / "config.yaml", values)
    return root


@dataclass(frozen=True)
class SmallRun:
    """A configuration file, a run directory, and overrides that every command gets."""

    config_file: Path
    directory: Path
    overrides: tuple[str, ...] = ()

    def config(self, *overrides: str) -> RunConfig:
        return load_config(self.config_file, [f"run_dir={self.directory}", *self.overrides, *overrides])

    def stage(self, stage: str, *overrides: str) -> int:
        """Runs a command; gives its exit code."""
        arguments = [f"run_dir={self.directory}", *self.overrides, *overrides]
        return main([stage, "--config", str(self.config_file), *arguments])

    def step(self, stage: str, step: int) -> Path:
        return RunDirectory(self.directory).step_directory(stage, step)

    def latest(self, stage: str) -> str:
        return RunDirectory(self.directory).latest_file(stage).read_text().strip()

    def lines(self, stage: str, split: str | None = None) -> list[dict[str, Any]]:
        """The stage's lines of metrics.jsonl without timings."""
        lines = read_lines(self.directory / "metrics.jsonl", stage)
        return [line for line in lines if split in (None, line["split"])]

    def events(self, kind: str) -> list[dict[str, Any]]:
        """The events of one kind, such as `warning`."""
        lines = RunDirectory(self.directory).events_file.read_text("utf-8").splitlines()
        return [event for event in map(json.loads, lines) if event["event"] == kind]

    def copy(self, directory: Path) -> "SmallRun":
        shutil.copytree(self.directory, directory)
        return SmallRun(self.config_file, directory, self.overrides)

    def go_back(self, stage: str, step: int) -> None:
        """As if killed after the checkpoint of `step`: later ones are gone, the metrics still have all lines."""
        run = RunDirectory(self.directory)
        for later in run.stage(stage).glob("step_*"):
            if later.name > step_name(step):
                shutil.rmtree(later)
        run.latest_file(stage).write_text(step_name(step) + "\n")

    @contextmanager
    def session(self, *overrides: str) -> Iterator[Session]:
        """What a stage sets up before weights, with the process group in place."""
        config = self.config(*overrides)
        with single_process_cpu():
            yield prepare(config, sources_from_config(config))

    @contextmanager
    def engine(self, stage: str, *overrides: str, start: Path | None = None) -> Iterator[tuple[Session, Engine]]:
        """An engine whose weights are the converted ones, or a checkpoint's."""
        with self.session(*overrides) as session:
            model = model_of(session, start)
            settings = session.config.joint if stage == "joint" else session.config.warmup
            yield session, Engine([model], session.config.optimizer, settings, domains=3, joint=stage == "joint")


def model_of(session: Session, start: Path | None = None) -> FusedModel:
    """The fused model with the converted specialists' weights, or a checkpoint's."""
    (model,) = session.build_model(trained=session.specialist_names)
    if start is None:
        load_converted([model], session.sources)
    else:
        load_run_weights(start, read_manifest(start), [model], session.sources)
    return model


def step_rows(session: Session, stage: str, step: int) -> list[PackedRow]:
    """A step's rows on a single rank."""
    (train,) = session.load_data("train")
    settings = session.config.joint if stage == "joint" else session.config.warmup
    sizes = [len(domain) for domain in train]
    sampler = Sampler(sizes, settings.samples_per_domain, session.config.data.balanced, session.config.seed, stage)
    return StepBatches(train, sampler, session.config.data.sequence_length, ranks=1, rank=0).rows(step)


def parameters_of(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Copies of all parameters."""
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def different(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> list[str]:
    """Names whose bits differ."""
    assert first.keys() == second.keys()
    return [name for name, value in first.items() if not torch.equal(value, second[name])]


def stored_hashes(checkpoint: Path) -> dict[str, str]:
    """Hashes of the files with weights and optimizer states."""
    return {name: value for name, value in read_manifest(checkpoint).files.items() if name.endswith(".distcp")}
