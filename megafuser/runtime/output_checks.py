"""Where a program may write: nothing of the user's is overwritten, and nothing begins that the disk cannot hold.

Writing so that no half is ever seen is `runtime.atomic`.
"""

import json
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from megafuser.errors import UserError

_RESERVE_BYTES = 32 << 20


@dataclass(frozen=True)
class Mark:
    """What tells an earlier output from the user's other directories.

    Attributes:
        file: a JSON file in it.
        field: a field that the file has.
        value: the field's value; None for any.
    """

    file: str
    field: str
    value: str | None = None

    def is_in(self, directory: Path) -> bool:
        """Whether a directory bears it."""
        try:
            content = json.loads((directory / self.file).read_text("utf-8"))
        except (OSError, ValueError, RecursionError):
            return False
        return isinstance(content, dict) and self.field in content and self.value in (None, content[self.field])

    def __str__(self) -> str:
        """As in a message."""
        value = "" if self.value is None else f" {self.value}"
        return f"{self.file} with a {self.field}{value}"


def check_output(
    out: Path, inputs: Mapping[str, Path], overwrite: bool, mark: Mark, *, kept: Iterable[tuple[str, Path]] = ()
) -> None:
    """Refuses an output that would destroy something, before anything is read.

    Args:
        out: the directory to make.
        inputs: option → directory that is read; neither may contain the other.
        overwrite: whether an existing output is replaced.
        mark: what an earlier output of the same kind bears.
        kept: (option or key, file or directory): the output may lie in it, but not hold it.

    Raises:
        UserError: says why.
    """
    inside = out.resolve()
    for option, directory in inputs.items():
        outside = directory.resolve()
        if inside == outside or outside in inside.parents or inside in outside.parents:
            raise UserError(f"--out {out} and {option} {directory} contain one another; choose another output")
    for option, path in kept:
        if path.resolve().is_relative_to(inside):
            raise UserError(f"--out {out} holds {option} {path}, which would be replaced; choose another output")
    if out.exists() and not overwrite:
        raise UserError(f"--out {out} exists; choose another output or pass --overwrite")
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out} exists and is not a directory; choose another output")
    if out.is_dir() and any(out.iterdir()) and not mark.is_in(out):
        raise UserError(
            f"{out} is not an earlier output (it has no {mark}), so it is not overwritten; choose another output"
        )


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
        raise UserError(f"{place} has {disk_size(free)} free, but {disk_size(needed)} are needed; make room")


def disk_size(size: float) -> str:
    """Bytes as disks are sold: in powers of ten, as in all messages that speak of a disk."""
    unit, factor = next((one for one in (("TB", 1e12), ("GB", 1e9)) if size >= one[1]), ("MB", 1e6))
    value = size / factor
    return f"{value:.{0 if value >= 100 else 1}f} {unit}"
