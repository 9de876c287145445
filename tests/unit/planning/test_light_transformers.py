"""A configuration read without torch, and nothing of that left behind."""

import subprocess
import sys

PROGRAM = """
import os, sys
from megafuser.planning.light_transformers import light_transformers
name = "TRANSFORMERS_NO_ADVISORY_WARNINGS"
for value in (None, "0"):
    os.environ.pop(name, None)
    if value is not None:
        os.environ[name] = value
    before = dict(os.environ)
    with light_transformers():
        from transformers import LlamaConfig
        assert LlamaConfig().hidden_size == 4096
        assert os.environ[name] == "1" and sys.modules["torch"] is None
    assert dict(os.environ) == before
    assert not any(module.split(".")[0] in ("torch", "transformers") for module in sys.modules)
from transformers import LlamaForCausalLM
import torch
assert issubclass(LlamaForCausalLM, torch.nn.Module)
with light_transformers():
    assert sys.modules["torch"] is torch
assert sys.modules["torch"] is torch
"""


def test_nothing_is_left_behind() -> None:
    """Whether the variable had a value or not; one process for both, since the import at the end takes seconds."""
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
