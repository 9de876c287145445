"""transformers without PyTorch, for as long as a configuration is read: seconds less for `megafuser plan`.

transformers imports torch when it is imported, for the sake of models; its configuration classes work without. The
configuration itself is read by `families.config_json`.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_PACKAGE = "transformers"
_QUIET = "TRANSFORMERS_NO_ADVISORY_WARNINGS"


@contextmanager
def light_transformers() -> Iterator[None]:
    """Lets transformers be imported as if torch were not installed, and forgets it afterwards.

    A later import gets the whole of transformers. Where it, or torch, is imported already, nothing is to be won and
    nothing is changed.
    """
    if _PACKAGE in sys.modules or "torch" in sys.modules:
        yield
        return
    # the import system's own mark of a module that cannot be imported
    sys.modules["torch"] = None  # type: ignore[assignment]
    # or it would advise to install torch
    before = os.environ.get(_QUIET)
    os.environ[_QUIET] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_QUIET]
        else:
            os.environ[_QUIET] = before
        del sys.modules["torch"]
        for name in [name for name in sys.modules if name.split(".")[0] == _PACKAGE]:
            del sys.modules[name]
