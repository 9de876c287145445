"""What every rank of the planner's test runs: engines at many layouts, one step each, and the bytes that they hold.

Usage as one of four ranks: `-m tests.parallel.measure_states OUT PORT SETS`, with the sets of each layout as JSON;
writes `OUT/RANK.json`, a list of cases. One process group serves all layouts, since starting processes takes far longer
than the steps do.
"""

import itertools
import json
import os
import sys
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from megafuser.config.compute import ParallelConfig
from megafuser.config.optimizer import OptimizerConfig
from megafuser.config.stages import JointConfig
from megafuser.runtime import cpu_backend
from tests.unit.planning.architectures import EQUAL, LARGER, UNEQUAL, Cards
from tests.unit.planning.rows import make_row

WORLD = 4
SETS: dict[str, Cards] = {"equal": EQUAL, "unequal": UNEQUAL, "larger": LARGER}
LAYOUTS: dict[str, ParallelConfig] = {
    "dp4": ParallelConfig(),
    "tp2_dp2": ParallelConfig(tensor=2, sequence=True, overlap_grad_reduce=True),
    "pp2_dp2": ParallelConfig(pipeline=2),
    "tp2_pp2": ParallelConfig(tensor=2, pipeline=2),
    "tp4": ParallelConfig(tensor=4, sequence=True),
    "pp2_vp2_dp2": ParallelConfig(pipeline=2, virtual_pipeline=2),
}


def optimizer_settings(distributed: bool) -> OptimizerConfig:
    """The optimizer of a case."""
    return OptimizerConfig(distributed=distributed)


def cases(layout: str, sets: Collection[str]) -> Iterator[dict[str, Any]]:
    """Every dtype with distributed states and without; for two of the sets, by turns, half of these combinations."""
    for index, cards in enumerate(SETS):
        if cards not in sets:
            continue
        for dtype, distributed in itertools.product(("fp32", "bf16"), (True, False)):
            turn = index + list(LAYOUTS).index(layout) + (dtype == "bf16") + distributed
            case = {"cards": cards, "layout": layout, "dtype": dtype, "distributed": distributed}
            if cards == "unequal" or turn % 2 == 0:
                yield case | {"stage": "joint"}
            if cards == "unequal" or turn % 2 == 1:
                yield case | {"stage": "joint", "frozen": [next(iter(SETS[cards]))]}
            if cards == "equal" and turn % 2 == 0:
                yield case | {"stage": "joint", "frozen": list(SETS[cards])}
            if not distributed and turn % 2 == 0:  # the warm-up never spreads its states
                yield case | {"stage": "warmup"}


def run_cases(sets: Mapping[str, Collection[str]]) -> Iterator[dict[str, Any]]:
    """Every case of these layouts on this rank."""
    from megatron.core import parallel_state, tensor_parallel

    for layout, of_layout in sets.items():
        parallel = LAYOUTS[layout]
        virtual = parallel.virtual_pipeline if parallel.virtual_pipeline > 1 else None
        parallel_state.initialize_model_parallel(
            parallel.tensor, parallel.pipeline, virtual_pipeline_model_parallel_size=virtual
        )
        tensor_parallel.model_parallel_cuda_manual_seed(0)
        place = {
            "pipeline_rank": parallel_state.get_pipeline_model_parallel_rank(),
            "data_rank": parallel_state.get_data_parallel_rank(),
        }
        for case in cases(layout, of_layout):
            yield case | place | _measure(case, parallel)
        parallel_state.destroy_model_parallel()


def _measure(case: dict[str, Any], parallel: ParallelConfig) -> dict[str, int]:
    from megafuser.training.engine import Engine
    from tests.state_bytes import state_bytes_of
    from tests.unit.planning.pretended import build_chunks

    cards, joint = SETS[case["cards"]], case["stage"] == "joint"
    chunks = build_chunks(cards, parallel, case["dtype"])
    for chunk in chunks:
        for parameter in chunk.parameters():
            torch.nn.init.normal_(parameter, std=0.02)
    settings = JointConfig(steps=2, samples_per_domain=1, frozen=tuple(case.get("frozen", ())))
    optimizer = optimizer_settings(case["distributed"])
    engine = Engine(chunks, optimizer, settings, domains=1, joint=joint, parallel=parallel)
    rows = [make_row([40, 30, 20], 96, len(cards)) for _ in range(parallel.pipeline)]
    engine.step(rows)
    return state_bytes_of(engine)


if __name__ == "__main__":
    os.environ["MASTER_PORT"] = sys.argv[2]
    cpu_backend.install()
    dist.init_process_group("gloo")
    found = list(run_cases(json.loads(sys.argv[3])))
    (Path(sys.argv[1]) / f"{dist.get_rank()}.json").write_text(json.dumps(found))
    dist.destroy_process_group()
