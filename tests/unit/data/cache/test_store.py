"""Reading a cache that is there."""

import subprocess
import sys
from pathlib import Path
from typing import Any

from megafuser.config.data import DomainConfig
from megafuser.data.cache.loading import load_data
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
