"""The real 32,000 pieces of mistral-common as a bare tokenizer.model, through both tools."""

import json
import shutil
from pathlib import Path

import mistral_common
import pytest
import torch
from safetensors.torch import load_file
from sentencepiece import SentencePieceProcessor
from transformers import AutoTokenizer

from tests.cli.tools import run_tool
from tests.tiny_models import random_model

PIECES = Path(mistral_common.__file__).parent / "data" / "tokenizer.model.v1"
TEXTS = (
    "The quick brown fox jumps over the lazy dog.",
    "  two spaces in front,\ttabs\n\nand lines  ",
    "def f(x):\n    return {'a': [x ** 2, 3.14e-5]}  # done",
    "Größe, naïveté, Ελληνικά, кириллица, 漢字かな, 한국어, العربية",
    "emoji 🦊🧀 and ½ · ∑ ≤ €",
)


@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_a_bare_tokenizer_model_survives_the_round_trip(tmp_path: Path, family: str) -> None:
    model, converted, back = tmp_path / "model", tmp_path / "converted", tmp_path / "back"
    random_model(family, 32000, num_hidden_layers=1, hidden_size=16, sliding_window=None).save_pretrained(model)
    shutil.copyfile(PIECES, model / "tokenizer.model")
    assert run_tool("convert_hf_to_mcore", "--hf", model, "--out", converted) == 0

    tokenizer = AutoTokenizer.from_pretrained(converted / "huggingface")
    original = AutoTokenizer.from_pretrained(model)
    reference = SentencePieceProcessor(model_file=str(PIECES))
    assert json.loads((converted / "manifest.json").read_text())["content"]["card"]["vocab_size"] == len(tokenizer)
    for text in TEXTS:
        ids = reference.encode(text)
        assert tokenizer(text, add_special_tokens=False).input_ids == ids, text
        assert tokenizer(text).input_ids == original(text).input_ids
        assert tokenizer.decode(ids) == reference.decode(ids), text

    assert run_tool("convert_mcore_to_hf", "--checkpoint", converted, "--out", back) == 0
    names = ["config.json", "generation_config.json", "model.safetensors", "tokenizer.model"]
    assert sorted(path.name for path in back.iterdir()) == names
    for name in names:
        if name != "model.safetensors":
            assert (back / name).read_bytes() == (model / name).read_bytes()
    before, after = (load_file(directory / "model.safetensors") for directory in (model, back))
    assert before.keys() == after.keys()
    for key in before:
        assert torch.equal(before[key].view(torch.int32), after[key].view(torch.int32)), key
