"""What a run says on standard error: its own lines, from rank 0, without its libraries' talk about themselves.

What is kept of warnings on the disk is `watching.events`; the bar is `watching.progress`.
"""

import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

# Said at import or at every step by libraries, about choices that this package makes on purpose.
_CHATTER = (
    (UserWarning, "(Transformer Engine and Apex|Apex|Transformer Engine) (are|is) not installed"),
    (UserWarning, "full scope is deprecated"),
    (FutureWarning, "`load_state_dict` is deprecated"),
    (FutureWarning, "`save_state_dict` is deprecated"),
    (FutureWarning, "Please use DTensor instead"),
    (FutureWarning, "`torch.distributed.(all_gather_into_tensor|reduce_scatter_tensor)` is deprecated"),
    (UserWarning, "The .grad attribute of a Tensor that is not a leaf Tensor is being accessed"),
)


def configure_logs(rank: int) -> None:
    """Shows megafuser's log on rank 0; other ranks show warnings only. Safe to call again.

    Args:
        rank: this process's global rank.
    """
    quiet_libraries()
    logger = logging.getLogger("megafuser")
    logger.setLevel(logging.INFO if rank == 0 else logging.WARNING)
    if not logger.handlers:
        logger.addHandler(_StandardError())
        logger.propagate = False


def quiet_libraries() -> None:
    """Leaves out what libraries say of choices that are made on purpose here; before they are imported."""
    for category, message in _CHATTER:
        warnings.filterwarnings("ignore", message=message, category=category)


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Leaves out transformers' warnings, about what is checked here or is meant."""
    from transformers.utils import logging as transformers_logging

    before = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(before)


class _StandardError(logging.Handler):
    """Writes to what `sys.stderr` is at the moment of writing, with the program's name in front."""

    def emit(self, record: logging.LogRecord) -> None:
        """Writes one record."""
        level = "" if record.levelno < logging.WARNING else f"{record.levelname.lower()}: "
        print(f"megafuser: {level}{record.getMessage()}", file=sys.stderr, flush=True)
