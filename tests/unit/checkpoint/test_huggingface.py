"""Reading Hugging Face directories: every tensor of a single or a sharded one, and one line for each bad one."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from megafuser.checkpoint.huggingface import HuggingFaceCheckpoint
from megafuser.errors import UserError
from tests.tiny_models import make_llama


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_llama(tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture
def copy(llama: Path, tmp_path: Path) -> Path:
    return shutil.copytree(llama, tmp_path / "copy")


def test_single_file(llama: Path) -> None:
    source = HuggingFaceCheckpoint(llama)
    expected = load_file(llama / "model.safetensors")
    assert source.shapes == {key: tuple(tensor.shape) for key, tensor in expected.items()}
    assert all(torch.equal(source.tensor(key), tensor) for key, tensor in expected.items())
    assert sum(map(source.nbytes, source.shapes)) == sum(tensor.nbytes for tensor in expected.values())
    assert source.config["model_type"] == "llama"


def test_shards(llama: Path, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(llama)
    model.save_pretrained(tmp_path, max_shard_size="40KB")
    shutil.copy(llama / "tokenizer.json", tmp_path)
    source = HuggingFaceCheckpoint(tmp_path)
    assert len(source.weight_files) > 2
    assert source.shapes.keys() == model.state_dict().keys()
    assert all(torch.equal(source.tensor(key), tensor) for key, tensor in model.state_dict().items())


def test_configuration_and_tokenizer_are_carried_verbatim(copy: Path, tmp_path: Path) -> None:
    (copy / "chat_template.jinja").write_text("{{ messages }}")
    (copy / "notes.txt").write_text("not carried")
    target = tmp_path / "target"
    target.mkdir()
    HuggingFaceCheckpoint(copy).copy_carried_files(target)
    names = ["chat_template.jinja", "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"]
    assert sorted(path.name for path in target.iterdir()) == names
    assert all((target / name).read_bytes() == (copy / name).read_bytes() for name in names)


def _replace_by_index(directory: Path, weight_map: object) -> None:
    (directory / "model.safetensors").rename(directory / "part.safetensors")
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def _flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 0xFF
    path.write_bytes(data)


def _cut(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])


def _rename_weights(directory: Path, name: str) -> None:
    (directory / "model.safetensors").rename(directory / name)


def _add_to_config(directory: Path, **values: object) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda d: shutil.rmtree(d), "is no directory"),
        (lambda d: (d / "config.json").unlink(), "has no config.json"),
        (lambda d: (d / "config.json").rename(d / "adapter_config.json"), "adapter alone; merge"),
        (lambda d: (d / "config.json").write_text("{"), r"config.json is no valid JSON"),
        (lambda d: (d / "config.json").write_bytes(b"\xff\xfe"), r"config.json is no valid JSON"),
        (lambda d: (d / "config.json").write_text("[]"), r"config.json holds no JSON object"),
        (lambda d: _add_to_config(d, quantization_config={"quant_method": "gptq"}), r"quantized \(quant_method gptq\)"),
        (lambda d: (d / "model.safetensors").unlink(), "has no weights"),
        (lambda d: _rename_weights(d, "pytorch_model.bin"), "pickles only, which is not supported; .* safetensors"),
        (lambda d: _rename_weights(d, "other.safetensors"), "neither model.safetensors nor"),
        (lambda d: _cut(d / "model.safetensors", 5), r"model.safetensors is damaged or incomplete"),
        (lambda d: _cut(d / "model.safetensors", 9000), r"model.safetensors is damaged or incomplete"),
        (lambda d: _flip(d / "model.safetensors", 3), r"model.safetensors is damaged or incomplete"),
        (lambda d: _flip(d / "model.safetensors", 40), r"model.safetensors is damaged or incomplete"),
        (lambda d: _replace_by_index(d, {}), "has no weight_map"),
        (lambda d: _replace_by_index(d, {"a": "gone.safetensors"}), "names gone.safetensors, which is missing"),
        (lambda d: _replace_by_index(d, {"a": "../x.safetensors"}), "no file of this directory"),
        (lambda d: _replace_by_index(d, {"absent.weight": "part.safetensors"}), "places absent.weight in part"),
        (lambda d: (d / "tokenizer.json").unlink(), "has no tokenizer"),
        (lambda d: (d / "tokenizer.json").write_text("{,"), "tokenizer.json is no valid JSON"),
        (
            lambda d: save_file({"x": torch.zeros(2, dtype=torch.int8)}, d / "model.safetensors"),
            "x has dtype I8; supported: F32, F16, BF16",
        ),
    ],
)
def test_bad_directory_is_refused_in_one_line(copy: Path, damage: Callable[[Path], object], message: str) -> None:
    damage(copy)
    with pytest.raises(UserError, match=message) as caught:
        HuggingFaceCheckpoint(copy)
    assert "\n" not in str(caught.value) and str(copy) in str(caught.value)
