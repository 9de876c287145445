"""Keeps a second start out of a run's directory: two that train in one would take each other's checkpoints for damage.

It needs a file system with locks (`flock`); one in the network may have them within a node only. Where it has none,
nobody is kept out. Checkpoints that are read are locked by `checkpoint.read_lock`.
"""

import json
import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import psutil

from megafuser.config.run_directory import RunDirectory
from megafuser.errors import UserError, is_full_disk
from megafuser.runtime.distributed import on_rank_zero
from megafuser.runtime.file_lock import attempt
from megafuser.runtime.world import whereabouts

logger = logging.getLogger(__name__)

# A file server notices that a node is gone when it has not heard of it for a while, NFS after 90 seconds as a rule, and
# only then gives up that node's locks: a job that was requeued may be there before.
_PATIENCE_SECONDS = 180.0
_POLL_SECONDS = 1.0


class RunLock:
    """One start's lock on a run's directory."""

    def __init__(self, run: RunDirectory) -> None:
        """Takes nothing yet."""
        self._run = run
        self._was_ours = False

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keeps other starts out of the directory, which is made, while the body runs; every rank calls it.

        Raises:
            UserError: another process trains in it, and does not end within three minutes; at once where that process
                is seen to live. Or the directory cannot be made.
        """
        with ExitStack() as stack:
            on_rank_zero(lambda: _enter(self._run, stack))
            self._was_ours = True
            yield

    def is_anothers(self) -> bool:
        """Whether another process trains in the directory, while this start has never come to that."""
        if self._was_ours:
            return False
        try:
            with self._run.lock_file.open("r+") as file:
                return isinstance(attempt(file), BlockingIOError)
        except OSError:  # nobody has been in it, or it is not ours to lock
            return False


def _enter(run: RunDirectory, stack: ExitStack) -> None:
    try:
        run.path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        if is_full_disk(error):
            raise
        raise UserError(f"run_dir: {run.path} cannot be made ({error.strerror}); choose another run_dir") from None
    try:
        # not emptied: what stands in it is who has the lock
        file = stack.enter_context(run.lock_file.open("a+", encoding="utf-8"))
    except PermissionError:  # made by somebody else, in a directory that several share
        return
    end = time.monotonic() + _PATIENCE_SECONDS
    has_said = False
    while isinstance(attempt(file), BlockingIOError):
        holder = _holder(run)
        if _lives_here(holder) or time.monotonic() >= end:
            raise UserError(
                f"run_dir: {_described(holder)} is training in {run.path}; wait for it, stop it, or choose another "
                "run_dir"
            )
        if not has_said:
            logger.warning("%s has %s; waiting for it to end", _described(holder), run.lock_file)
            has_said = True
        time.sleep(_POLL_SECONDS)
    file.truncate(0)
    file.write(json.dumps(whereabouts()) + "\n")
    file.flush()


def _holder(run: RunDirectory) -> Mapping[str, Any]:
    """Who says to have the lock; nothing where that is being written."""
    try:
        found = json.loads(run.lock_file.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _lives_here(holder: Mapping[str, Any]) -> bool:
    """Whether it is a process of this very machine that has not ended."""
    pid = holder.get("pid")
    if holder.get("host") != whereabouts()["host"] or not isinstance(pid, int):
        return False
    try:
        # one that has ended, but was not waited for yet, has no lock any more; a child of it may
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
    except psutil.Error:  # not ours to look at
        return True


def _described(holder: Mapping[str, Any]) -> str:
    if not {"host", "pid"} <= holder.keys():
        return "another process"
    job = f" (Slurm job {holder['slurm_job']})" if "slurm_job" in holder else ""
    return f"process {holder['pid']} on {holder['host']}{job}"
