"""Memory and speed of both stages on a mid-sized trio, with megafuser's plan beside the measured bytes."""

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch

from megafuser.config.compute import PrecisionConfig
from megafuser.config.data import DataConfig, DomainConfig
from megafuser.config.gate import GateConfig
from megafuser.config.schema import RunConfig
from megafuser.config.specialists import SpecialistConfig
from megafuser.config.stages import JointConfig, WarmupConfig
from megafuser.planning.gpus import find_gpu
from megafuser.planning.plan import StagePlan, Task, plan_stage
from megafuser.planning.workload import Samples
from megafuser.specialist.card import ArchitectureCard
from megafuser.training.engine import Engine
from megafuser.training.flops import step_flops
from tests.gpu.models import (
    GATE,
    TINY,
    TRANSFORMER_ENGINE,
    Machine,
    Size,
    build,
    engine_of,
    random_samples,
    row_of,
    trio,
)
from tests.gpu.report import Finding
from tests.state_bytes import state_bytes_of

MIDDLE = Size(hidden=2048, layers=8, heads=16, groups=8, channels=128, vocabulary=32000)
ROWS = 4
# The plan's states are counted, so they must be right; its peak holds estimates of what is alive at once.
STATES, PEAK = 1e-2, 0.25


def measure(machine: Machine, backend: str, stage: str) -> Finding:
    """A stage's steps: bytes, planned and held, and the median step's speed."""
    machine.require(backend)
    joint = stage == "joint"
    cards = trio(TINY if machine.tiny else MIDDLE)
    length, per_row, steps = (16, 3, 2) if machine.tiny else (512, 8, 8)
    lengths = [length] * per_row
    rows = [
        row_of(machine, random_samples(lengths, cards["plain"].vocab_size, seed), length * per_row)
        for seed in range(ROWS)
    ]
    plan = _plan(machine, cards, backend, stage, length, per_row)
    before = torch.cuda.memory_allocated() if machine.device.type == "cuda" else 0
    engine = engine_of(build(machine, cards, PrecisionConfig(), backend), joint=joint)
    engine.step(rows)  # the first makes the optimizer's states and chooses kernels
    if machine.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    seconds = statistics.median(_timed(machine, engine, rows) for _ in range(steps))
    flops = step_flops(list(cards.values()), rows, backward=joint)
    numbers: dict[str, float] = {
        "tokens of a specialist a second": ROWS * per_row * length / seconds,
        "seconds of a step": seconds,
        "useful TFLOP/s": flops / seconds / 1e12,
    }
    limits = _beside_plan(numbers, plan, state_bytes_of(engine))
    if machine.device.type == "cuda":
        peak = torch.cuda.max_memory_allocated() - before
        planned = plan.peak - plan.ranks[0].reserved
        numbers |= {"peak bytes": peak, "peak bytes, planned": planned, "peak, plan's error": abs(planned / peak - 1)}
        limits["peak, plan's error"] = PEAK
    return Finding(numbers, limits)


def _beside_plan(numbers: dict[str, float], plan: StagePlan, measured: Mapping[str, int]) -> dict[str, float]:
    """Adds measured and planned states; returns the limits of their difference."""
    limits = {}
    for name in ("weights", "gradients", "masters", "moments"):
        planned = getattr(plan.ranks[0].states, name)
        error = f"{name}, plan's error"
        numbers |= {f"{name}, bytes": measured[name], f"{name}, bytes planned": planned}
        numbers[error] = abs(planned / measured[name] - 1)
        limits[error] = STATES
    return limits


def _timed(machine: Machine, engine: Engine, rows: list[Any]) -> float:
    start = time.perf_counter()
    engine.step(rows)
    _synchronize(machine)
    return time.perf_counter() - start


def _synchronize(machine: Machine) -> None:
    if machine.device.type == "cuda":
        torch.cuda.synchronize()


def _plan(
    machine: Machine, cards: dict[str, ArchitectureCard], backend: str, stage: str, length: int, per_row: int
) -> StagePlan:
    """What `megafuser plan` would say of the same step."""
    steps: dict[str, Any] = {"samples_per_domain": ROWS * per_row, "row_width": length * per_row}
    config = RunConfig(
        run_dir="unused",
        specialists=tuple(SpecialistConfig(name, "unused", "plain") for name in cards),
        data=DataConfig(domains={"only": DomainConfig(("unused",), ("unused",))}, sequence_length=length),
        gate=GateConfig(hidden_size=GATE),
        precision=PrecisionConfig(),
        warmup=WarmupConfig(**steps),
        joint=JointConfig(**steps),
    )
    samples = Samples(np.array([float(length)]), np.array([float(length // 2)]), "those of the suite")
    gpu = find_gpu("h100") if machine.device.type == "cuda" else None
    return plan_stage(Task(config, cards, samples, gpu, gpus=1, mfu=0.4, backend=backend), stage)


def checks(machine: Machine) -> Iterator[tuple[str, Callable[[], Finding]]]:
    """Both stages on both backends."""
    for backend in ("torch", TRANSFORMER_ENGINE):
        for stage in ("warmup", "joint"):
            yield f"{stage} on {backend}", partial(measure, machine, backend, stage)
