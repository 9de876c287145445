"""Reading a cache that is there."""

import errno
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from megafuser.config.data import DomainConfig
from megafuser.data.cache.loading import load_data
from megafuser.errors import UserError
from tests.parallel.launch import ROOT
from tests.unit.data.cache.cases import POSITIONS, ROWS, configuration, numbered, write_samples

PROGRAM = """
import sys
from pathlib import Path
from megafuser.data.cache.store import open_cache
domain = open_cache(Path(sys.argv[1]))
assert len(domain) == 3 and domain.lengths.sum() and domain.targets(2).sum()
sys.exit("pandas" in sys.modules)
"""


def test_no_pandas_is_imported(tmp_path: Path, tokenizers: dict[str, Any]) -> None:
    """Arrow asks it, where it is installed, whether an array is one of its own: half a second before the first step."""
    path = write_samples(tmp_path / "a.jsonl", numbered(3))
    config = configuration(tmp_path, {"math": DomainConfig((path,), (path,))})
    load_data(config, tokenizers, ROWS, POSITIONS, ["train"])
    (cache,) = (each for each in (Path(config.run_dir) / "data").iterdir() if each.is_dir())
    command = [sys.executable, "-W", "ignore", "-c", PROGRAM, str(cache)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("reason", [errno.EACCES, errno.EIO, errno.ESTALE, errno.EMFILE])
def test_what_the_disk_does_not_give_is_no_damage_and_stays(
    tmp_path: Path, tokenizers: dict[str, Any], monkeypatch: pytest.MonkeyPatch, reason: int
) -> None:
    """Others may have taken hours to make it, and may be training from it."""
    path = write_samples(tmp_path / "a.jsonl", numbered(3))
    config = configuration(tmp_path, {"math": DomainConfig((path,), (path,))})
    load_data(config, tokenizers, ROWS, POSITIONS, ["train"])
    files = sorted((Path(config.run_dir) / "data").rglob("*.*"))

    def refuse(name: str) -> None:
        raise OSError(reason, os.strerror(reason), name)

    with monkeypatch.context() as patch:
        patch.setattr(pa, "memory_map", refuse)
        with pytest.raises(UserError, match=rf"cannot be read \({os.strerror(reason)}\); look after the disk"):
            load_data(config, tokenizers, ROWS, POSITIONS, ["train"])
    assert sorted((Path(config.run_dir) / "data").rglob("*.*")) == files
    assert len(load_data(config, tokenizers, ROWS, POSITIONS, ["train"])[0][0]) == 3
