"""Where hits wait between the two passes: on the disk, since a benchmark's text may stand in every line.

The passes themselves are `data.decontamination.clean`.
"""

from collections import Counter
from pathlib import Path

import numpy as np

from megafuser.data.scratch_file import ScratchFile

_ROW = np.dtype([("line", np.uint64), ("key", np.uint64)])
_CHUNK_BYTES = _ROW.itemsize << 18


class HitFile(ScratchFile):
    """Pairs of a line and an n-gram that it shares with a benchmark.

    Attributes:
        lines_with: of each n-gram that was met, by its hash, how many lines have it.
    """

    def __init__(self, path: Path) -> None:
        """Opens a fresh file, removed at the end."""
        super().__init__(path)
        self.lines_with: Counter[int] = Counter()
        self._ranges: dict[int, list[int]] = {}

    def add(self, file: int, line: int, keys: np.ndarray) -> None:
        """Takes a line's hits in; files come one after the other.

        Args:
            file: number of the file.
            line: its number, from 1.
            keys: [n] uint64, hashes of n-grams, each once.
        """
        rows = np.empty(len(keys), _ROW)
        rows["line"], rows["key"] = line, keys
        before = self._file.tell()
        self._file.write(rows.tobytes())
        self._ranges.setdefault(file, [before, before])[1] = self._file.tell()
        self.lines_with.update(keys.tolist())

    def above(self, most: int | None) -> set[int]:
        """Hashes of the n-grams that more than `most` lines have."""
        return set() if most is None else {key for key, count in self.lines_with.items() if count > most}

    def lines_of(self, file: int, ignored: set[int]) -> set[int]:
        """Numbers of the lines that have an n-gram which is not ignored."""
        start, end = self._ranges.get(file, (0, 0))
        self._file.seek(start)
        boilerplate = np.array(sorted(ignored), dtype=np.uint64)
        found: set[int] = set()
        while start < end:
            rows = np.frombuffer(self._file.read(min(end - start, _CHUNK_BYTES)), _ROW)
            start += rows.nbytes
            found.update(rows["line"][~np.isin(rows["key"], boilerplate)].tolist())
        return found
