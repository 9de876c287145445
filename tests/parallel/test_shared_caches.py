"""Tokenized samples on two ranks: all open what rank 0 has made, or all are told that one does not see it."""

import os
import socket
import sys
from pathlib import Path

import pytest
import torch

from megafuser.config.compute import ParallelConfig
from megafuser.config.data import DomainConfig
from megafuser.data.cache.loading import load_data
from megafuser.data.tokenization import load_tokenizers
from megafuser.errors import UserError
from megafuser.runtime.distributed import distributed
from megafuser.runtime.world import detect_world
from tests.parallel.launch import run_ranks
from tests.ports import free_ports
from tests.tiny_models import make_tokenizer
from tests.unit.data.cache.cases import POSITIONS, ROWS, configuration, numbered, write_samples


def of_a_rank(directory: Path) -> None:
    """What each rank does, in a directory that the other does not see; it leaves what it found in a file of its own."""
    world = detect_world()
    (directory / f"node {world.rank}").mkdir()
    os.chdir(directory / f"node {world.rank}")
    tokenizers = load_tokenizers({name: directory / name for name in ROWS})
    source = str(directory / "a.jsonl")
    found = []
    with distributed(ParallelConfig(), seed=0, device=torch.device("cpu"), world=world):
        for place in ("of this node", str(directory / "of all")):
            config = configuration(directory, {"math": DomainConfig((source,), (source,))}, cache_dir=place)
            try:
                ((domain,),) = load_data(config, tokenizers, ROWS, POSITIONS, ["train"])
                found.append(f"{domain.name} {len(domain)}")
            except UserError as error:
                found.append(str(error))
    (directory / f"rank {world.rank}").write_text("\n".join(found))


@pytest.mark.parallel
def test_a_place_that_only_one_rank_sees_is_told_on_both(tmp_path: Path) -> None:
    for name, extra in (("text", 0), ("code", 16)):
        make_tokenizer(tmp_path / name, extra)
    write_samples(tmp_path / "a.jsonl", numbered(5))
    run_ranks(2, "tests.parallel.test_shared_caches", [str(tmp_path), *free_ports(1)], timeout=300)
    first, second = ((tmp_path / f"rank {rank}").read_text().splitlines() for rank in (0, 1))
    assert first == second
    refused, opened = first
    begin = f"rank 1 on {socket.gethostname()} does not see the samples as rank 0 does: of this node/"
    assert refused.startswith(begin) and "No such file" in refused
    assert refused.endswith("to a directory on a file system that all nodes share")
    assert opened == "math 5"


if __name__ == "__main__":
    os.environ["MASTER_PORT"] = sys.argv[2]
    of_a_rank(Path(sys.argv[1]))
