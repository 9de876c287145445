"""A checkpoint that one rank cannot use: all ranks refuse it alike, and none waits for the one that has given up.

Each rank reads a copy of its own here, as on nodes whose disks do not agree; this file is also what they run.
"""

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from megafuser.checkpoint.loading import load_specialist_weights, load_weights
from megafuser.checkpoint.specialist_sources import read_specialist
from megafuser.config.compute import ParallelConfig, PrecisionConfig
from megafuser.conversion.hf_to_mcore import import_specialist
from megafuser.errors import UserError
from megafuser.runtime.distributed import distributed
from megafuser.runtime.world import detect_world
from megafuser.specialist.build import build_specialist
from tests.parallel.launch import run_ranks
from tests.ports import free_ports
from tests.tiny_models import make_llama

RANKS = 2


def of_a_rank(directory: Path) -> None:
    """What each rank does; it leaves what it was told in a file of its own."""
    world, told = detect_world(), []

    def refused(load: Callable[[], object]) -> None:
        try:
            load()
        except UserError as error:
            told.append(str(error))

    with distributed(ParallelConfig(), seed=0, device=torch.device("cpu"), world=world):
        _, card = read_specialist(directory / "whole 0")
        precision = PrecisionConfig(dtype="fp32")
        model = build_specialist(card, parallel=ParallelConfig(), precision=precision, backend="torch")
        wanted = model.sharded_state_dict()
        refused(lambda: load_specialist_weights(model, directory / f"whole {world.rank}"))
        refused(lambda: load_specialist_weights(model, directory / f"other {world.rank}"))
        refused(lambda: load_weights(wanted, directory / f"damaged {world.rank}" / "weights"))
    (directory / f"rank {world.rank}").write_text("\n".join(told))


def test_what_one_rank_refuses_all_refuse(tmp_path: Path) -> None:
    import_specialist(make_llama(tmp_path / "model"), tmp_path / "whole 0", verify="none")
    import_specialist(make_llama(tmp_path / "wide", intermediate_size=96), tmp_path / "other 1", verify="none")
    for name in ("whole 1", "other 0", "damaged 0", "damaged 1"):
        shutil.copytree(tmp_path / "whole 0", tmp_path / name)
    (tmp_path / "damaged 1" / "weights" / ".metadata").write_bytes(b"")
    run_ranks(RANKS, "tests.parallel.test_one_rank_fails", [str(tmp_path), *free_ports(1)])
    said = [(tmp_path / f"rank {rank}").read_text() for rank in range(RANKS)]
    assert said[0] == said[1]
    other, damaged = said[0].split("\n")
    assert f"{tmp_path / 'other 1'}/weights: " in other and "but the model has room for" in other
    assert damaged.startswith(f"{tmp_path / 'damaged 1'}/weights/.metadata is damaged")


if __name__ == "__main__":
    os.environ["MASTER_PORT"] = sys.argv[2]
    of_a_rank(Path(sys.argv[1]))
