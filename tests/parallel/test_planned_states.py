"""The plan's weights, gradients and optimizer states, to the byte, against engines on four ranks."""

import json
from pathlib import Path

import numpy as np
import pytest

from megafuser.config.compute import PrecisionConfig
from megafuser.config.data import DataConfig, DomainConfig
from megafuser.config.gate import GateConfig
from megafuser.config.schema import RunConfig
from megafuser.config.specialists import SpecialistConfig
from megafuser.config.stages import JointConfig
from megafuser.planning.plan import Task, rank_states
from megafuser.planning.workload import Samples
from tests.parallel.launch import run_ranks
from tests.parallel.measure_states import LAYOUTS, SETS, WORLD, cases, optimizer_settings
from tests.ports import free_ports
from tests.unit.planning.pretended import GATE

# Tensor, sequence, data and interleaved pipeline parallelism, and every set; the slow test adds the other combinations.
QUICK = {
    "tp2_dp2": ["unequal", "larger"],
    "pp2_vp2_dp2": ["equal", "unequal"],
    "tp2_pp2": ["unequal"],
}
BYTES = ("weights", "gradients", "masters", "moments", "steps")


def task(cards: str, layout: str, dtype: str, distributed: bool, frozen: list[str]) -> Task:
    """The case as the planner takes it."""
    config = RunConfig(
        run_dir="run",
        specialists=tuple(SpecialistConfig(name, "nowhere", "plain") for name in SETS[cards]),
        data=DataConfig(domains={"one": DomainConfig(("a.jsonl",), ("b.jsonl",))}),
        gate=GateConfig(GATE),
        parallel=LAYOUTS[layout],
        precision=PrecisionConfig(dtype=dtype),  # type: ignore[arg-type]
        optimizer=optimizer_settings(distributed),
        joint=JointConfig(frozen=tuple(frozen)),
    )
    samples = Samples(np.array([100.0]), np.array([50.0]), "made up")
    return Task(config, SETS[cards], samples, gpu=None, gpus=WORLD, mfu=0.4, backend="torch")


@pytest.mark.parallel
def test_every_rank_holds_the_planned_bytes(tmp_path: Path) -> None:
    assert compare(tmp_path, QUICK) > 100


@pytest.mark.slow
@pytest.mark.parallel
def test_every_rank_of_every_layout_holds_the_planned_bytes(tmp_path: Path) -> None:
    assert compare(tmp_path, {layout: list(SETS) for layout in LAYOUTS}) > 200


def compare(tmp_path: Path, sets: dict[str, list[str]]) -> int:
    """Takes the sets by layout; returns how many cases there were on all ranks together."""
    arguments = [str(tmp_path), *free_ports(1), json.dumps(sets)]
    run_ranks(WORLD, "tests.parallel.measure_states", arguments)
    compared, sharded = 0, False
    for rank in range(WORLD):
        for case in json.loads((tmp_path / f"{rank}.json").read_text()):
            planned = rank_states(
                task(case["cards"], case["layout"], case["dtype"], case["distributed"], case.get("frozen", [])),
                joint=case["stage"] == "joint",
                pipeline_rank=case["pipeline_rank"],
                data_rank=case["data_rank"],
            )
            expected = {name: getattr(planned, name) for name in BYTES}
            assert {name: case[name] for name in BYTES} == expected, f"rank {rank}: {case}"
            compared += 1
            sharded |= case["data_rank"] > 0 and case["distributed"]
    assert compared == WORLD * sum(len(list(cases(*of_layout))) for of_layout in sets.items())
    assert sharded
    return compared
