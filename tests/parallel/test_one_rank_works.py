"""Long work of rank 0 for all: the others wait, and get what it gives or the mistake that it finds."""

import datetime
import errno
import os
import sys
import time
from pathlib import Path

import pytest
import torch
from torch.distributed.distributed_c10d import _set_pg_timeout

from megafuser.checkpoint import damage
from megafuser.checkpoint.damage import refuse_damaged
from megafuser.checkpoint.manifest import FORMAT_VERSION, Manifest, write_manifest
from megafuser.config.compute import ParallelConfig
from megafuser.errors import NotSavedError, UserError
from megafuser.runtime.distributed import distributed, on_rank_zero
from megafuser.runtime.world import detect_world
from tests.parallel.launch import run_ranks
from tests.ports import free_ports

RANKS = 3


def read_for_long(directory: Path, names: list[str]) -> dict[str, str]:
    """On the last rank, longer than a collective waits."""
    time.sleep(3 * (detect_world().rank == RANKS - 1))
    return dict.fromkeys(names, "another")


def of_a_rank(directory: Path) -> None:
    """What each rank does; it leaves what it got in a file of its own."""
    world = detect_world()

    def work() -> list[str]:
        time.sleep(0.5)
        (directory / f"worked {world.rank}").touch()
        return [f"made by {world.rank}"]

    def mistake() -> None:
        raise UserError(f"a mistake that rank {world.rank} found")

    def full_disk() -> None:
        raise OSError(errno.ENOSPC, "No space left on device", f"/disk of {world.rank}")

    with distributed(ParallelConfig(), seed=0, device=torch.device("cpu"), world=world):
        got = on_rank_zero(work)
        try:
            on_rank_zero(mistake)
        except UserError as error:
            got.append(str(error))
        try:
            on_rank_zero(full_disk)
        except NotSavedError as error:
            got.append(str(error))
        _set_pg_timeout(datetime.timedelta(seconds=1))
        damage.hash_files = read_for_long  # type: ignore[assignment]
        try:
            refuse_damaged([directory / "checkpoint"])
        except UserError as error:
            got.append(str(error))
    (directory / f"rank {world.rank}").write_text("\n".join(got))


@pytest.mark.parallel
def test_rank_zero_works_for_all(tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint"
    checkpoint.mkdir()
    (checkpoint / "weights").touch()
    write_manifest(checkpoint, Manifest(FORMAT_VERSION, "warmup", "fp32", {}))
    run_ranks(RANKS, "tests.parallel.test_one_rank_works", [str(tmp_path), *free_ports(1)], timeout=300)
    assert [path.name for path in tmp_path.glob("worked *")] == ["worked 0"]
    found = f"damaged checkpoint {checkpoint} (damaged: weights); give an older one, or run its stage again"
    full = "/disk of 0 cannot be written (No space left on device); make room and run the same command again"
    expected = f"made by 0\na mistake that rank 0 found\n{full}\n{found}"
    assert [(tmp_path / f"rank {rank}").read_text() for rank in range(RANKS)] == [expected] * RANKS


if __name__ == "__main__":
    os.environ["MASTER_PORT"] = sys.argv[2]
    of_a_rank(Path(sys.argv[1]))
