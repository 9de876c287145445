"""The gate's replicas on four ranks: the same bits after every step, and a replica that went astray is found.

This file is also what the ranks run.
"""

import os
import re
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from megafuser.config.load import load_config
from megafuser.runtime.distributed import distributed
from megafuser.runtime.world import detect_world
from megafuser.training.replicas import check_gate_replicas
from tests.fused_case import make_case, write_config
from tests.parallel.launch import run_ranks
from tests.parallel.layout_cases import start
from tests.ports import free_ports

STEPS = 3
MANY_STEPS = 50
LAYOUT = ("parallel.tensor=2", "parallel.sequence=true", "precision.dtype=bf16")


@pytest.mark.parallel
@pytest.mark.parametrize("steps", [STEPS, pytest.param(MANY_STEPS, marks=pytest.mark.slow)])
def test_replicas_stay_identical_and_a_changed_one_is_found(tmp_path: Path, steps: int) -> None:
    values = make_case(tmp_path, num_hidden_layers=1)
    values["joint"] = {"steps": steps, "samples_per_domain": 1, "lr": 1e-3}
    config = write_config(tmp_path / "config.yaml", values)
    run_ranks(4, "tests.parallel.test_gate_replicas", [str(config), *free_ports(1), str(steps)], timeout=300)


def run(config_file: str, port: str, steps: int) -> None:
    os.environ["MASTER_PORT"] = port
    config = load_config(config_file, LAYOUT)
    with distributed(config.parallel, seed=0, device=torch.device("cpu"), world=detect_world()) as world:
        engine, batches = start(config, "joint")
        gate = engine.model.gate
        assert gate is not None
        first = gate.fc1.weight.detach().clone()
        for step in range(1, steps + 1):
            engine.step(batches.rows(step))
            check_gate_replicas(gate, step)
        assert not gate.fc1.weight.equal(first)
        if world.rank == 2:
            with torch.no_grad():
                gate.fc1.weight[3, 4] = gate.fc1.weight[3, 4] * (1 + 2**-7)
        with pytest.raises(RuntimeError, match=re.escape(f"after step {steps} replicas of the gate differ")) as failure:
            check_gate_replicas(gate, steps)
        assert str(failure.value).endswith("from that of rank 0: fc1.weight on ranks 2")
        dist.barrier()


if __name__ == "__main__":
    run(sys.argv[1], sys.argv[2], int(sys.argv[3]))
