"""Outputs that appear complete or not at all: written beside their target, flushed to the disk, then renamed.

An owner of a temporary directory holds a lock on it, so that what a killed process left is told from what another
process is writing, and is removed by the next one that writes the same target. Whether what is there is an earlier
output, and not another directory of the user's, is found by `runtime.output_checks`.
"""

import ctypes
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from megafuser.errors import NotSavedError, UserError, explained_paths, is_full_disk
from megafuser.runtime.file_lock import attempt

# Source: Linux's fcntl.h and fs.h.
_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


@explained_paths()
def check_can_be_written(target: Path, what: str, *, replaced: bool = False) -> None:
    """Refuses a file or directory that cannot be made or written, before the work for it begins.

    Args:
        target: what will be made, with the directories above it that are missing.
        what: how the user gave it, e.g. `--out`.
        replaced: what is there is not written into: another takes its place, which asks only what is above.

    Raises:
        UserError: names the directory that is in the way.
    """
    looked_at = target.resolve().parents if replaced else (target.absolute(), *target.absolute().parents)
    there = next(path for path in looked_at if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise UserError(f"{what} {target} cannot be written ({there} is not a writable directory); choose another one")


@contextmanager
def atomic_directory(target: str | Path, overwrite: bool = False) -> Iterator[Path]:
    """Yields a fresh directory beside `target` that becomes `target` when the block ends without an error.

    On an error nothing is left, and what was there before stays as it was. With `overwrite`, the old directory is
    kept until the new one is complete and flushed, and then both change names at once where the system can do that.

    Args:
        target: where the result shall be; parents are made (and removed again on an error).
        overwrite: replace an existing directory.

    Yields:
        The temporary directory, `.NAME.tmp-PID-XXXXXXXX`.

    Raises:
        UserError: `target` exists and `overwrite` is false, it is a file or a mount point, or it may not be made.
        OSError: the disk is full or fails.
    """
    target = Path(target).resolve()
    _remove_leftovers(target)
    _refuse_existing(target, overwrite)
    made = _make_parents(target.parent)
    temporary = _beside(target, "tmp")
    try:
        with _choose_another(f"{target.parent} cannot be written"):
            temporary.mkdir()
        lock = _lock(temporary)
        try:
            yield temporary
            sync_tree(temporary)
            _refuse_existing(target, overwrite)
            _replace(temporary, target)
        finally:
            if lock is not None:
                os.close(lock)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        for parent in made:
            _remove_if_empty(parent)
        raise


def write_text_atomic(path: str | Path, text: str) -> None:
    """Writes `text` so that a reader sees the old content or the new one, never a part.

    Args:
        path: the file; its directory must exist.
        text: the whole new content, written as UTF-8.
    """
    path = Path(path)
    temporary = _beside(path, "tmp")
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            attempt(file)
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
            os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync(path.parent)


@contextmanager
def saving(path: Path, *, is_kept: bool = True) -> Iterator[None]:
    """Makes one line of a disk that takes no more of what a command writes.

    Args:
        path: what is written.
        is_kept: whether the same command goes on with what there is of it.

    Raises:
        NotSavedError: in place of an `OSError`.
    """
    try:
        yield
    except OSError as error:
        anew = " (--overwrite begins anew)" if is_kept else ""
        raise NotSavedError(
            f"{path} cannot be written ({error.strerror or error}); make room and run the same command again{anew}"
        ) from None


def remove_directory(path: Path) -> None:
    """Removes a directory so that half of it never has its name; what a kill leaves is a leftover.

    Raises:
        OSError: it may not be renamed.
    """
    garbage = _beside(path, "tmp")
    os.rename(path, garbage)
    shutil.rmtree(garbage, ignore_errors=True)


def remove_leftovers(parent: Path) -> None:
    """Removes what killed processes have left of any `atomic_directory` and `write_text_atomic` in `parent`."""
    name = re.compile(r"\.(.+)\.(?:tmp|old)-\d+-[0-9a-f]{8}")
    found = [name.fullmatch(path.name) for path in parent.iterdir()] if parent.is_dir() else []
    for target in sorted({match[1] for match in found if match}):
        _remove_leftovers(parent / target)


def sync_tree(directory: Path) -> None:
    """Flushes every file and directory under `directory`, itself included, to the disk."""
    for folder, _, names in os.walk(directory, topdown=False):
        for name in names:
            _sync(Path(folder, name))
        _sync(Path(folder))


def _beside(path: Path, purpose: str) -> Path:
    return path.with_name(f".{path.name}.{purpose}-{os.getpid()}-{secrets.token_hex(4)}")


def _others_beside(path: Path, purpose: str) -> list[Path]:
    """What this process and others have made by `_beside`; nothing of the user's with a name that begins alike."""
    name = re.compile(rf"{re.escape(f'.{path.name}.{purpose}-')}\d+-[0-9a-f]{{8}}")
    try:
        return [found for found in path.parent.iterdir() if name.fullmatch(found.name)]
    except OSError:  # there is no such directory yet, or it may not be listed
        return []


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _refuse_existing(target: Path, overwrite: bool) -> None:
    if not target.exists():
        return
    if not target.is_dir():
        raise UserError(f"{target} exists and is not a directory; choose another output")
    if os.path.ismount(target):
        raise UserError(f"{target} is a mount point, which cannot be replaced; choose a directory inside it")
    if not overwrite:
        raise UserError(f"{target} exists; choose another output or pass --overwrite")


def _make_parents(parent: Path) -> list[Path]:
    """Makes `parent` and returns the directories that were not there before, deepest first."""
    missing = [path for path in (parent, *parent.parents) if not path.exists()]
    with _choose_another(f"{parent} cannot be made"):
        parent.mkdir(parents=True, exist_ok=True)
    return missing


@contextmanager
def _choose_another(problem: str) -> Iterator[None]:
    """Makes one line of a directory that cannot be made; a full disk is none of the output's fault."""
    try:
        yield
    except OSError as error:
        if is_full_disk(error):
            raise
        raise UserError(f"{problem} ({error.strerror}); choose another output") from None


def _replace(temporary: Path, target: Path) -> None:
    """Moves the finished directory into place; a directory cannot be renamed onto one that has content."""
    if not target.exists():
        os.rename(temporary, target)
        _sync(target.parent)
        return
    if _exchange(temporary, target):
        garbage = temporary
    else:
        old = _beside(target, "old")
        os.rename(target, old)
        try:
            os.rename(temporary, target)
        except BaseException:
            os.rename(old, target)
            raise
        garbage = _as_garbage(old, target)
    _sync(target.parent)
    shutil.rmtree(garbage, ignore_errors=True)


def _exchange(one: Path, other: Path) -> bool:
    """Lets two directories change names, so that each name stands for a whole one at any time.

    Returns:
        False where the system or the file system cannot do that, as some network ones.
    """
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)  # Linux since 3.15, glibc since 2.28
    if rename is None:
        return False
    exchanged: bool = rename(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0
    return exchanged


def _as_garbage(old: Path, target: Path) -> Path:
    """Gives what was replaced a name that is never brought back: half of a directory must not pass for the old one."""
    garbage = _beside(target, "tmp")
    os.rename(old, garbage)
    return garbage


def _lock(directory: Path) -> int | None:
    """Locks a directory for this process; None where the lock is held or the file system has no locks.

    One in the network may have locks of directories within a node only.
    """
    descriptor = os.open(directory, os.O_RDONLY)
    if attempt(descriptor) is not None:
        os.close(descriptor)
        return None
    return descriptor


def _remove_leftovers(target: Path) -> None:
    """Removes temporary directories of this target whose process is gone; brings back a half-replaced old one."""
    for old in _others_beside(target, "old"):
        if target.exists():
            _as_garbage(old, target)
        else:
            os.rename(old, target)
    for leftover in _others_beside(target, "tmp"):
        lock = _lock(leftover)
        if lock is not None:
            if leftover.is_dir():
                shutil.rmtree(leftover, ignore_errors=True)
            else:
                leftover.unlink(missing_ok=True)
            os.close(lock)


def _remove_if_empty(directory: Path) -> None:
    if directory.is_dir() and not any(directory.iterdir()):
        directory.rmdir()
