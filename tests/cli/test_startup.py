"""What a command imports before it works: nobody waits for a library that the answer does not need."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from megafuser.cli.parser import build_parser
from tests.fused_case import SPECIALISTS, write_config
from tests.tiny_models import make_tokenizer

ROOT = Path(__file__).parents[2]
TOOLS = sorted(path.name for path in (ROOT / "tools").glob("*.py"))
# seconds each, or part of what takes seconds
SLOW = {
    "accelerate",
    "datasets",
    "fastapi",
    "huggingface_hub",
    "lm_eval",
    "matplotlib",
    "megatron",
    "pandas",
    "pyarrow",
    "tensorboard",
    "torch",
    "transformers",
    "uvicorn",
}
# a tenth of a second each, which a help text has no use for either
CONFIGURATION = {"numpy", "omegaconf", "pydantic", "yaml"}

# The modules at its end; a help text ends by SystemExit, whichever way it is asked for.
PROGRAM = """
import json, runpy, sys
how, sys.argv = sys.argv[1], sys.argv[2:]
try:
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True) if how == "-m" else runpy.run_path(
        sys.argv[0], run_name="__main__"
    )
except SystemExit as done:
    code = done.code
print(json.dumps([code or 0, sorted({name.split(".")[0] for name in sys.modules})]))
"""


def imported(how: str, *arguments: str, directory: Path) -> set[str]:
    """The packages that a program has imported when it ends."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", PROGRAM, how, *arguments]
    done = subprocess.run(command, cwd=directory, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    code, names = json.loads(done.stdout.splitlines()[-1])
    assert code == 0, done.stderr
    return set(names)


def commands() -> list[str]:
    (subparsers,) = (action for action in build_parser()._actions if action.choices)
    assert isinstance(subparsers.choices, dict)
    return sorted(subparsers.choices)


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], *([name, "--help"] for name in commands())])
def test_help_imports_nothing_slow(tmp_path: Path, arguments: list[str]) -> None:
    names = imported("-m", "megafuser", *arguments, directory=tmp_path)
    assert "argparse" in names
    assert not names & (SLOW | CONFIGURATION)


@pytest.mark.parametrize("name", TOOLS)
def test_a_tools_help_imports_nothing_slow(tmp_path: Path, name: str) -> None:
    names = imported("program", str(ROOT / "tools" / name), "--help", directory=tmp_path)
    assert "megafuser" in names
    assert not names & (SLOW | CONFIGURATION)


def huggingface_configuration(extra_tokens: int) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": 64,
        "intermediate_size": 128,
        "max_position_embeddings": 256,
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "num_key_value_heads": 4,
        "rms_norm_eps": 1e-5,
        "vocab_size": 320 + extra_tokens,
    }


def test_plan_imports_no_torch(tmp_path: Path) -> None:
    """It reads configurations and computes; what would load weights or draw is not needed."""
    specialists = []
    for name, settings in SPECIALISTS.items():
        directory = tmp_path / name
        directory.mkdir()
        values = huggingface_configuration(settings["extra_tokens"])
        (directory / "config.json").write_text(json.dumps(values))
        make_tokenizer(directory, settings["extra_tokens"])
        specialists.append({"name": name, "checkpoint": str(directory), "template": settings["template"]})
    sample = json.dumps({"instruction": "a question", "response": "an answer"}) + "\n"
    (tmp_path / "samples.jsonl").write_text(sample)
    files = [str(tmp_path / "samples.jsonl")]
    values = {
        "run_dir": str(tmp_path / "run"),
        "specialists": specialists,
        "data": {"domains": {name: {"train": files, "valid": files} for name in SPECIALISTS}},
    }
    config = write_config(tmp_path / "config.yaml", values)
    names = imported("-m", "megafuser", "plan", "--config", str(config), "--gpus", "16", directory=tmp_path)
    assert "pydantic" in names
    # a part of transformers reads the specialists' configurations
    assert not names & (SLOW - {"huggingface_hub"})


def test_the_first_step_imports_no_matplotlib() -> None:
    """Pictures are for validations; until then, matplotlib would only delay the run."""
    program = "import sys, megafuser.training.stages; sys.exit('matplotlib' in sys.modules)"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_what_read_configurations_without_torch_is_whole_again_afterwards() -> None:
    program = (
        "import sys\n"
        "from megafuser.planning.light_transformers import light_transformers\n"
        "with light_transformers():\n"
        "    from transformers import CONFIG_MAPPING\n"
        "    light = CONFIG_MAPPING['llama']()\n"
        "    from transformers.utils import is_torch_available\n"
        "    assert not is_torch_available()\n"
        "assert light.model_type == 'llama' and 'torch' not in sys.modules\n"
        "from transformers import LlamaConfig, LlamaForCausalLM\n"
        "sizes = dict(hidden_size=8, intermediate_size=8, num_attention_heads=1, num_hidden_layers=1, vocab_size=8)\n"
        "assert sum(one.numel() for one in LlamaForCausalLM(LlamaConfig(**sizes)).parameters()) > 0\n"
        "with light_transformers():\n"
        "    import transformers\n"
        "    assert transformers.LlamaForCausalLM is LlamaForCausalLM, 'no second one beside the whole'\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
