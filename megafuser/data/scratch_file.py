"""A file for what waits on the disk while something is made, and is gone afterwards.

Outputs that stay are `runtime.atomic`.
"""

from pathlib import Path
from types import TracebackType
from typing import Self


class ScratchFile:
    """A fresh binary file to write and to read; a context manager that removes it.

    Attributes:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        """Opens it, empty."""
        self.path = path
        self._file = path.open("w+b")

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Removes the file."""
        self._file.close()
        self.path.unlink(missing_ok=True)
