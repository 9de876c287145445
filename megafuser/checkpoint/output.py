"""Where a conversion may write: nothing of the user's is overwritten, and nothing begins that the disk cannot hold."""

import shutil
from collections.abc import Mapping
from pathlib import Path

from megafuser.errors import UserError

_RESERVE_BYTES = 32 << 20


def check_output(out: Path, inputs: Mapping[str, Path], overwrite: bool, mark: str) -> None:
    """Refuses an output that would destroy something, before anything is read.

    Args:
        out: the directory to make.
        inputs: option → directory that is read; neither may contain the other.
        overwrite: whether an existing output is replaced.
        mark: the file that tells an earlier output of the same kind from the user's other directories.

    Raises:
        UserError: says why.
    """
    inside = out.resolve()
    for option, directory in inputs.items():
        outside = directory.resolve()
        if inside == outside or outside in inside.parents or inside in outside.parents:
            raise UserError(f"--out {out} and {option} {directory} contain one another; choose another output")
    if out.exists() and not overwrite:
        raise UserError(f"--out {out} exists; choose another output or pass --overwrite")
    if out.is_dir() and any(out.iterdir()) and not (out / mark).is_file():
        raise UserError(f"{out} is no earlier output (it has no {mark}), so it is not overwritten")


def check_disk(directory: Path, needed: int) -> None:
    """Refuses to begin what will not fit.

    Args:
        directory: an existing directory on the disk that is written to.
        needed: bytes to be written.

    Raises:
        UserError: says how much is free and how much is needed.
    """
    free, needed = shutil.disk_usage(directory).free, needed + _RESERVE_BYTES
    if free < needed:
        place = directory.parent
        raise UserError(f"{place} has {free / 2**30:.2f} GiB free, but {needed / 2**30:.2f} GiB are needed; make room")
