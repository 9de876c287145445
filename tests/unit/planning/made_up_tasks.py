"""Plans of the 13B trio and of others, without files."""

import dataclasses
from typing import Any

import numpy as np

from megafuser.config.data import DataConfig, DomainConfig
from megafuser.config.schema import RunConfig
from megafuser.config.specialists import SpecialistConfig
from megafuser.planning.gpus import find_gpu
from megafuser.planning.plan import Task
from megafuser.planning.workload import Samples
from tests.unit.planning.architectures import ULTRAFUSER_13B, Cards


def make_task(cards: Cards = ULTRAFUSER_13B, *, gpus: int = 16, gpu: str | None = "h100", **sections: Any) -> Task:
    """A plan with the configuration's sections as given, each a dataclass of the configuration."""
    config = RunConfig(
        run_dir="run",
        specialists=tuple(SpecialistConfig(name, "nowhere", "plain") for name in cards),
        data=DataConfig(domains={name: DomainConfig(("a.jsonl",), ("b.jsonl",)) for name in cards}),
    )
    return Task(
        config=dataclasses.replace(config, **sections),
        cards=cards,
        samples=Samples(np.array([1024.0]), np.array([512.0]), "made up"),
        gpu=find_gpu(gpu) if gpu else None,
        gpus=gpus,
        mfu=0.4,
        backend="transformer_engine" if gpu else "torch",
    )
