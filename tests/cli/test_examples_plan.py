"""The examples' configurations on their specialists' published `config.json`: validation, and `megafuser plan`."""

import json
from pathlib import Path
from typing import Any

import pytest

from megafuser.cli.main import main
from megafuser.config.load import load_config
from tests.parallel.launch import ROOT

_LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_act": "silu",
    "hidden_size": 5120,
    "intermediate_size": 13824,
    "num_hidden_layers": 40,
    "num_attention_heads": 40,
    "num_key_value_heads": 40,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "torch_dtype": "float16",
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_QWEN = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "hidden_act": "silu",
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "vocab_size": 152064,
    "use_sliding_window": False,
    "eos_token_id": 151645,
}
PUBLISHED: dict[str, dict[str, dict[str, Any]]] = {
    "ultrafuser-13b": {
        "ultralm-13b": {**_LLAMA, "vocab_size": 32000, "max_position_embeddings": 4096},
        "codellama-13b": {**_LLAMA, "vocab_size": 32016, "max_position_embeddings": 16384, "rope_theta": 1000000},
        "wizardmath-13b": {**_LLAMA, "vocab_size": 32001, "max_position_embeddings": 4096},
    },
    "qwen2.5-7b": {
        "qwen2.5-7b": {**_QWEN, "max_position_embeddings": 32768, "rope_theta": 1000000.0},
        "qwen2.5-coder-7b": {**_QWEN, "max_position_embeddings": 32768, "rope_theta": 1000000.0},
        "qwen2.5-math-7b": {**_QWEN, "max_position_embeddings": 4096, "rope_theta": 10000.0},
    },
}


@pytest.fixture(params=list(PUBLISHED))
def example(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A working directory with the specialists' `config.json`, not converted yet."""
    for name, values in PUBLISHED[request.param].items():
        directory = tmp_path / "checkpoints" / name
        directory.mkdir(parents=True)
        (directory / "config.json").write_text(json.dumps(values))
    monkeypatch.chdir(tmp_path)
    return str(ROOT / "examples" / request.param / "config.yaml")


def test_the_configuration_is_valid_and_names_what_the_recipe_builds(example: str) -> None:
    from megafuser.data.recipe.load import load_recipe

    config = load_config(example)
    recipe = load_recipe(Path(example).with_name("data.yaml"))
    assert list(config.data.domains) == list(recipe.domains)
    for name, domain in config.data.domains.items():
        assert domain.train == (f"data/{name}.train.jsonl",) and domain.valid == (f"data/{name}.valid.jsonl",)
    asked = {name: domain.samples for name, domain in recipe.domains.items()}
    assert asked == {"text": 100_000, "code": 100_000, "math": 110_000}


@pytest.mark.parametrize("gpus", ["16", "32"])
def test_the_plan_fits(example: str, gpus: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--config", example, "--gpus", gpus, "--gpu", "h100", "--json", "plan.json"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("fits: the fullest rank needs ")
    plan = json.loads(Path("plan.json").read_text())
    assert plan["does_not_fit"] == [] and set(plan["stages"]) == {"warmup", "joint"}


@pytest.mark.parametrize("example", ["qwen2.5-7b"], indirect=True)
def test_the_trio_of_seven_billion_fits_on_eight(example: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--config", example, "--gpus", "8", "--gpu", "h100"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].startswith("fits: the fullest rank needs ")
    assert any("TP 4 x PP 2 x DP 1" in line for line in lines)
