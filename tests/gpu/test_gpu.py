"""`python -m tests.gpu`, part by part; docs/gpu.md. The rest of the suite never touches CUDA."""

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from tests.gpu.__main__ import PARTS

ROOT = Path(__file__).resolve().parents[2]

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch finds no GPU"),
    pytest.mark.skipif(find_spec("transformer_engine") is None, reason="Transformer Engine is not installed"),
]


@pytest.mark.parametrize("part", PARTS)
def test_part(part: str, tmp_path: Path) -> None:
    """In a process of its own: other tests patch torch.cuda for the CPU."""
    command = [sys.executable, "-m", "tests.gpu", "--device", "cuda", "--report", str(tmp_path), "--part", part]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    checks = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))["checks"]
    assert any(check["status"] == "passed" for check in checks if check["part"] == part)
