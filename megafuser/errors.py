"""The exceptions that are not bugs: a user's mistake, a run that could not save, and one that was asked to stop.

And the exit codes that they become, what makes one of a path that cannot be read or of a full disk, and what a line of
ours says of a library's error. Printing them, and turning them into the codes, is `cli.main`.
"""

import errno
from collections.abc import Iterator
from contextlib import contextmanager

CANNOT_GO_ON = 1
BAD_INPUT = 2
DOES_NOT_FIT = 3
"""Of `megafuser plan --check` alone."""
STOPPED_EARLY = 75
"""EX_TEMPFAIL of sysexits.h: the same command goes on."""


class UserError(Exception):
    """A mistake in what the user gave: one line that says what, where, and what to do.

    The command line prints it without a traceback and exits with code 2.
    """


class NotSavedError(Exception):
    """What a command has made, or a stage's last state, could not be saved: one line that says why, and what to do.

    The command line prints it without a traceback and exits with code 75.
    """


class StoppedEarly(Exception):
    """A stage stopped before its end, on purpose and with everything saved; the message has been said.

    The command line exits with code 75.
    """


class TrainingFailedError(Exception):
    """Training cannot go on for a reason that is neither a bug nor a wrong command: one line that says what was found.

    The command line prints it without a traceback and exits with code 1.
    """


def first_line(error: BaseException) -> str:
    """What an error of a library says first, for a line of ours; its type's name where it says nothing."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip().removesuffix(".") if lines else type(error).__name__


def in_one_line(error: BaseException) -> str:
    """All that an error says; its type's name where it says nothing."""
    return " ".join(str(error).split()) or type(error).__name__


# What a path does not allow, and the user can change.
_PATH_ERRORS = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG, errno.ELOOP)


def is_full_disk(error: OSError) -> bool:
    """Whether a disk, or what somebody may have of it, is full: no reason to choose another path."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


@contextmanager
def full_disks_told() -> Iterator[None]:
    """Makes one line of a full disk, wherever that is noticed.

    Raises:
        NotSavedError: names the file where the system does.
    """
    try:
        yield
    except OSError as error:
        if not is_full_disk(error):
            raise
        path = f"{error.filename} cannot be written" if error.filename is not None else "the disk takes no more"
        raise NotSavedError(f"{path} ({error.strerror}); make room and run the same command again") from None


@contextmanager
def explained_paths() -> Iterator[None]:
    """Makes one line of a path that cannot be read, written or followed, wherever that is noticed.

    Raises:
        UserError: names the path.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _PATH_ERRORS or error.filename is None:
            raise
        raise UserError(f"{error.filename}: {error.strerror}; give another path, or change its permissions") from None
    except RuntimeError as error:
        if not str(error).startswith("Symlink loop"):  # what pathlib makes of ELOOP
            raise
        raise UserError(f"{error}; give another path") from None
