"""Sets of specialists and layouts of the table of layouts, and how a rank goes through them.

Usage as a rank: `-m tests.parallel.layout_cases JOBS.json RESULTS.json` with torchrun's variables set. A job is a
layout with a port of its own; its runs go through the same process groups, since making those takes long.
"""

import functools
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from megatron.core.parallel_state import is_pipeline_first_stage

from megafuser.checkpoint.specialist_sources import sources_from_config
from megafuser.config.load import load_config
from megafuser.config.schema import RunConfig
from megafuser.config.stages import StageConfig
from megafuser.data.loader import StepBatches
from megafuser.runtime.distributed import distributed
from megafuser.runtime.world import detect_world
from megafuser.training import optimizer
from megafuser.training.checkpoint_contents import load_converted
from megafuser.training.engine import Engine
from megafuser.training.loop import step_batches
from megafuser.training.session import prepare
from tests.fused_case import make_case, write_config

STEPS = 8
# elements
BUCKET = 3_000
STAGES = ("warmup", "joint")
LLAMA = {"family": "llama", "num_hidden_layers": 4}
SETS: dict[str, dict[str, dict[str, Any]]] = {
    "equal": {
        "text": {**LLAMA, "template": "ultralm"},
        "code": {**LLAMA, "template": "codellama"},
        "math": {**LLAMA, "template": "alpaca"},
    },
    # the paper's differences: rows of the vocabulary (32000, 32016, 32001) and θ
    "paper": {
        "text": {**LLAMA, "template": "ultralm", "rope_theta": 1e4, "tie_word_embeddings": True},
        "code": {**LLAMA, "template": "codellama", "rope_theta": 1e6, "extra_tokens": 16},
        "math": {**LLAMA, "template": "alpaca", "rope_theta": 1e4, "extra_tokens": 1, "num_key_value_heads": 4},
    },
    "unequal": {
        "text": {**LLAMA, "template": "ultralm", "num_hidden_layers": 6},
        "code": {**LLAMA, "template": "codellama", "num_hidden_layers": 5, "hidden_size": 48, "attention_bias": True},
        "math": {**LLAMA, "template": "alpaca", "num_attention_heads": 8, "intermediate_size": 96},
    },
    "qk_norm": {
        "text": {"family": "qwen3", "template": "ultralm", "num_hidden_layers": 4, "head_dim": 16},
        "code": {**LLAMA, "template": "codellama", "attention_bias": True, "mlp_bias": True, "num_hidden_layers": 5},
    },
}


@dataclass(frozen=True)
class Layout:
    """A line of the table.

    Attributes:
        world: number of processes; data parallelism takes what tensor and pipeline leave.
        settings: what the configuration says beyond the defaults, by dotted key.
        of_ci: the set that the ordinary test run takes through it, if any.
    """

    world: int
    settings: dict[str, Any]
    of_ci: str | None = None

    @property
    def overrides(self) -> list[str]:
        """As arguments of a command."""
        return [f"{key}={json.dumps(value)}" for key, value in self.settings.items()]


def layout(
    world: int, tensor: int, pipeline: int, virtual: int = 1, *, of_ci: str | None = None, **settings: Any
) -> Layout:
    """A layout; settings by their keys' last parts."""
    sections = {"sequence": "parallel", "overlap_grad_reduce": "parallel", "overlap_param_gather": "parallel"}
    sections |= {"recompute": "memory", "recompute_layers": "memory", "distributed": "optimizer"}
    values = {"parallel.tensor": tensor, "parallel.pipeline": pipeline, "parallel.virtual_pipeline": virtual}
    return Layout(world, values | {f"{sections[key]}.{key}": value for key, value in settings.items()}, of_ci)


OVERLAP = {"overlap_grad_reduce": True, "overlap_param_gather": True}
LAYOUTS: dict[str, Layout] = {
    "TP2": layout(2, 2, 1),
    "TP2 SP": layout(2, 2, 1, sequence=True),
    "PP2": layout(2, 1, 2),
    "DP2": layout(2, 1, 1),
    "DP2, not distributed": layout(2, 1, 1, distributed=False),
    "DP2, overlap": layout(2, 1, 1, **OVERLAP),
    "PP2 VP2": layout(2, 1, 2, 2),
    "PP2, full recompute": layout(2, 1, 2, recompute="full"),
    "TP2 SP, selective recompute": layout(2, 2, 1, sequence=True, recompute="selective"),
    "PP3": layout(3, 1, 3),
    "TP4": layout(4, 4, 1),
    "TP4 SP": layout(4, 4, 1, sequence=True, of_ci="unequal"),
    "PP4": layout(4, 1, 4),
    "TP2 PP2": layout(4, 2, 2),
    "TP2 PP2 SP": layout(4, 2, 2, sequence=True),
    "TP2 PP2 SP, full recompute": layout(4, 2, 2, sequence=True, recompute="full", of_ci="equal"),
    "TP2 PP2 VP2 SP": layout(4, 2, 2, 2, sequence=True),
    "PP2 VP2 DP2, overlap": layout(4, 1, 2, 2, of_ci="qk_norm", **OVERLAP),
    "PP2 DP2, overlapped reduction": layout(4, 1, 2, overlap_grad_reduce=True),
    "TP2 DP2 SP, overlap, selective recompute": layout(
        4, 2, 1, sequence=True, recompute="selective", of_ci="paper", **OVERLAP
    ),
    "DP4, overlap": layout(4, 1, 1, **OVERLAP),
    "TP2 PP3 SP": layout(6, 2, 3, sequence=True),
    "PP3 DP2, overlap": layout(6, 1, 3, **OVERLAP),
    "TP2 PP2 VP2 DP2 SP, overlap, full recompute": layout(8, 2, 2, 2, sequence=True, recompute="full", **OVERLAP),
}


def make_set(root: Path, name: str) -> Path:
    """Writes the specialists of a set, their data and the configuration; gives the configuration's path."""
    # the usual tests' weights are so large that rounding to bf16 alone moves gradient norms by several per cent
    values = make_case(root / name, specialists=SETS[name], valid=4, initializer_range=0.1)
    # two rows and more; of the set with two samples a step, some that are empty
    values["data"]["sequence_length"] = 320
    few = name == "qk_norm"
    # large enough to move the losses by per cents, small enough that the steps of Adam do not blow rounding up; over
    # more samples the gate's gradient is less of a small difference, which rounding to bf16 would move by per cents
    values["warmup"] = {"steps": STEPS, "samples_per_domain": 1 if few else 3, "lr": 1e-2}
    values["joint"] = {"steps": STEPS, "samples_per_domain": 1 if few else 2, "lr": 5e-4}
    values["optimizer"] = {"weight_decay": 0.1}
    return write_config(root / name / "config.yaml", values)


def start(config: RunConfig, stage: str) -> tuple[Engine, StepBatches]:
    """A stage's engine and its batches, from the converted specialists; needs process groups."""
    sources = sources_from_config(config)
    session = prepare(config, sources)
    joint = stage == "joint"
    chunks = session.build_model(trained=config.trained(stage))
    load_converted(chunks, sources)
    settings: StageConfig = config.joint if joint else config.warmup
    (train,) = session.load_data("train")
    engine = Engine(chunks, config.optimizer, settings, domains=len(train), joint=joint, parallel=config.parallel)
    return engine, step_batches(config, stage, train)


def run_job(job: dict[str, Any]) -> list[dict[str, Any]]:
    """The runs of one layout; each gives its name and, by step, the losses and the gradient norm."""
    os.environ["MASTER_PORT"] = job["port"]
    world = detect_world()
    configs = [load_config(run["config"], run["overrides"]) for run in job["runs"]]
    results = []
    with distributed(configs[0].parallel, seed=0, device=torch.device("cpu"), world=world):
        for run, config in zip(job["runs"], configs, strict=True):
            engine, batches = start(config, run["stage"])
            if run["stage"] == "joint" and config.parallel.overlap_grad_reduce and is_pipeline_first_stage():
                assert len(engine.ddp[0].bucket_groups) > 3
            steps = []
            for step in range(1, job["steps"] + 1):
                result = engine.step(batches.rows(step))
                losses = result.sums[:, 0] / result.sums[:, 1]
                steps.append([*losses.tolist(), result.grad_norm])
            results.append({"name": run["name"], "steps": steps})
    return results


def use_small_buckets() -> None:
    """Splits gradients and weights into several buckets where communication overlaps: these models would fill one."""
    small = functools.partial(optimizer.DistributedDataParallelConfig, bucket_size=BUCKET)
    optimizer.DistributedDataParallelConfig = small  # type: ignore[misc,assignment]


def main(jobs_file: str, results_file: str) -> None:
    """Goes through all jobs; rank 0 writes what came out after each."""
    use_small_buckets()
    found: list[dict[str, Any]] = []
    for job in json.loads(Path(jobs_file).read_text(encoding="utf-8")):
        found += run_job(job)
        if os.environ["RANK"] == "0":
            Path(results_file).write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
