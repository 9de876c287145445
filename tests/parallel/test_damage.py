"""Damaged checkpoints on two ranks: each reads its share of the files, and both decide alike."""

import errno
import json
import os
import socket
import sys
from pathlib import Path

import pytest
import torch

from megafuser.checkpoint import damage
from megafuser.checkpoint.damage import refuse_damaged
from megafuser.checkpoint.manifest import FORMAT_VERSION, Manifest, hash_files, write_manifest
from megafuser.config.compute import ParallelConfig
from megafuser.config.run_directory import RunDirectory
from megafuser.errors import UserError
from megafuser.runtime.distributed import distributed
from megafuser.runtime.logs import configure_logs
from megafuser.runtime.world import detect_world
from megafuser.training.kept_checkpoints import newest_intact
from tests.parallel.launch import run_ranks
from tests.ports import free_ports

FILES = ("a", "b", "weights/c", "weights/d")


def make(checkpoint: Path, step: int = 0) -> Path:
    """Four files of equal size, two for each rank."""
    (checkpoint / "weights").mkdir(parents=True)
    for name in FILES:
        (checkpoint / name).write_text(name[-1] * 100)
    write_manifest(checkpoint, Manifest(FORMAT_VERSION, "warmup", "fp32", {"step": step}))
    return checkpoint


def spoil(file: Path) -> None:
    file.write_text("x" * 100)


def unreadable(checkpoint: Path, names: list[str]) -> dict[str, str]:
    raise OSError(errno.EIO, "Input/output error", str(checkpoint / names[0]))


def of_a_rank(directory: Path) -> None:
    """What each rank does; it leaves what it found, and what it read, in a file of its own."""
    world, read, run = detect_world(), [], RunDirectory(directory)
    configure_logs(world.rank)

    def remember(checkpoint: Path, names: list[str]) -> dict[str, str]:
        read.append(names)
        return hash_files(checkpoint, names)

    damage.hash_files = remember  # type: ignore[assignment]
    found = []
    with distributed(ParallelConfig(), seed=0, device=torch.device("cpu"), world=world):
        refuse_damaged([directory / "intact"])
        for name in ("of the other rank", "of both", "without a manifest"):
            try:
                refuse_damaged([directory / "intact", directory / name])
            except UserError as error:
                found.append(str(error))
        try:
            refuse_damaged([directory / "intact", directory / f"stage/step_00000{1 + world.rank}"])
        except UserError as error:
            found.append(str(error))
        refuse_damaged([directory / f"copy {world.rank}"])  # of one content, as on the disk of each node
        damage.hash_files = unreadable if world.rank == 1 else remember  # type: ignore[assignment]
        for look in (lambda: refuse_damaged([directory / "intact"]), lambda: newest_intact(run, "warmup")):
            try:
                look()
            except UserError as error:
                found.append(str(error))
        damage.hash_files = remember  # type: ignore[assignment]
        found.append(str(newest_intact(run, "warmup")))
        found.append(str(newest_intact(run, "joint")))
    (directory / f"rank {world.rank}").write_text(json.dumps({"found": found, "read": read[0]}))


@pytest.mark.parallel
def test_both_ranks_read_a_part_and_find_the_same(tmp_path: Path) -> None:
    intact = make(tmp_path / "intact")
    (intact / "weights/.#c").symlink_to("an editor's lock")
    spoil(make(tmp_path / "of the other rank") / "b")
    both = make(tmp_path / "of both")
    spoil(both / "weights/d")
    spoil(both / "weights/c")
    (both / "weights/more").touch()
    (make(tmp_path / "without a manifest") / "manifest.json").unlink()
    steps = [make(tmp_path / f"warmup/step_00000{step}") for step in (1, 2, 3)]
    spoil(steps[1] / "b")
    (steps[2] / "weights/d").unlink()
    only = make(tmp_path / "joint/step_000001")  # of another stage
    for step in (1, 2):  # `latest` was written between the two ranks' looks
        make(tmp_path / f"stage/step_00000{step}", step)
        make(tmp_path / f"copy {step - 1}")
    both_said = run_ranks(2, "tests.parallel.test_damage", [str(tmp_path), *free_ports(1)], timeout=300)
    ranks = [json.loads((tmp_path / f"rank {rank}").read_text()) for rank in (0, 1)]
    assert [rank["read"] for rank in ranks] == [["a", "weights/c"], ["b", "weights/d"]]
    remedy = "give an older one, or run its stage again"
    expected = [
        f"damaged checkpoint {tmp_path / 'of the other rank'} (damaged: b); {remedy}",
        f"damaged checkpoint {both} (damaged: weights/c); {remedy}",
        f"{tmp_path / 'without a manifest'} is not a megafuser checkpoint (it has no manifest.json); give one",
        f"the ranks found different checkpoints at {tmp_path / 'stage'} (step_000001, step_000002): it was being "
        "written; run it again",
        *(
            f"a checkpoint cannot be read on {socket.gethostname()} ([Errno 5] Input/output error: '{unread / 'b'}'); "
            "look after the disk and run it again"
            for unread in (intact, steps[2])
        ),
        str(steps[0]),
        "None",
    ]
    assert [rank["found"] for rank in ranks] == [expected] * 2
    said = [line for rank in both_said for line in rank.err.splitlines() if line.startswith("megafuser: ")]
    assert said == [
        f"megafuser: warning: damaged checkpoint {steps[2]}; using {steps[1]}",
        f"megafuser: warning: damaged checkpoint {steps[1]}; using {steps[0]}",
        f"megafuser: warning: damaged checkpoint {only}; using none, the stage starts over",
    ]
    names = sorted(path.name for path in (tmp_path / "warmup").iterdir())
    assert names == ["latest", "step_000001", "step_000002.damaged", "step_000003.damaged"]
    assert (tmp_path / "warmup/step_000002.damaged/damage.txt").read_text() == "damaged: b\n"
    assert (tmp_path / "warmup/step_000003.damaged/damage.txt").read_text() == "missing: weights/d\n"
    assert (tmp_path / "warmup/latest").read_text() == "step_000001\n"


if __name__ == "__main__":
    os.environ["MASTER_PORT"] = sys.argv[2]
    of_a_rank(Path(sys.argv[1]))
