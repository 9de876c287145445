"""Reading Hugging Face directories: configuration, weights and tokenizer together, and one line for each bad one."""

import errno
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from megafuser.conversion.huggingface import HuggingFaceCheckpoint
from megafuser.conversion.weight_files import open_weight_files
from megafuser.errors import UserError
from tests.tiny_models import make_llama


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_llama(tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture
def copy(llama: Path, tmp_path: Path) -> Path:
    return shutil.copytree(llama, tmp_path / "copy")


def files_of(source: HuggingFaceCheckpoint) -> list[Path]:
    return sorted({file.path for file in open_weight_files(source.directory).values()})


def test_single_file(llama: Path) -> None:
    source = HuggingFaceCheckpoint(llama)
    expected = load_file(llama / "model.safetensors")
    assert source.shapes == {key: tuple(tensor.shape) for key, tensor in expected.items()}
    assert all(torch.equal(source.tensor(key), tensor) for key, tensor in expected.items())
    assert sum(source.tensor(key).nbytes for key in source.shapes) == sum(tensor.nbytes for tensor in expected.values())
    assert source.config["model_type"] == "llama"


def test_shards(llama: Path, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(llama)
    model.save_pretrained(tmp_path, max_shard_size="40KB")
    shutil.copy(llama / "tokenizer.json", tmp_path)
    source = HuggingFaceCheckpoint(tmp_path)
    assert len(files_of(source)) > 2
    assert source.shapes.keys() == model.state_dict().keys()
    assert all(torch.equal(source.tensor(key), tensor) for key, tensor in model.state_dict().items())


def test_pickled_shards(llama: Path, tmp_path: Path) -> None:
    """As older models are published: shards of .bin with an index, and the buffers of their time among the weights."""
    state = load_file(llama / "model.safetensors")
    buffer = "model.layers.{}.self_attn.rotary_emb.inv_freq"
    state |= {buffer.format(layer): torch.ones(4, dtype=torch.float64) for layer in range(4)}
    for name in ("config.json", "tokenizer.json"):
        shutil.copy(llama / name, tmp_path)
    places = {key: f"pytorch_model-0000{number % 2 + 1}-of-00002.bin" for number, key in enumerate(state)}
    for name in set(places.values()):
        torch.save({key: tensor for key, tensor in state.items() if places[key] == name}, tmp_path / name)
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": places}))
    source = HuggingFaceCheckpoint(tmp_path)
    assert source.shapes == {key: tuple(tensor.shape) for key, tensor in state.items()}
    assert source.dtypes == {key: tensor.dtype for key, tensor in state.items()}
    assert [path.name for path in files_of(source)] == sorted(set(places.values()))
    assert all(torch.equal(source.tensor(key), tensor) for key, tensor in state.items())
    assert source.tensor(buffer.format(0)).nbytes == 32


def test_same_weights_as_transformers_reads(llama: Path, tmp_path: Path) -> None:
    """From a .bin, by the independent reader."""
    torch.save(load_file(llama / "model.safetensors"), tmp_path / "pytorch_model.bin")
    for name in ("config.json", "tokenizer.json"):
        shutil.copy(llama / name, tmp_path)
    source, model = HuggingFaceCheckpoint(tmp_path), AutoModelForCausalLM.from_pretrained(tmp_path)
    assert source.shapes.keys() == model.state_dict().keys()
    assert all(torch.equal(source.tensor(key), tensor) for key, tensor in model.state_dict().items())


def test_only_declared_buffers_may_have_other_dtypes(copy: Path) -> None:
    state = load_file(copy / "model.safetensors")
    for key, fits in (("model.rotary_emb.inv_freq", True), ("model.layers.0.self_attn.rotary_emb.inv_freqs", False)):
        save_file(state | {key: torch.ones(4, dtype=torch.float64)}, copy / "model.safetensors")
        if fits:
            assert HuggingFaceCheckpoint(copy).dtypes[key] == torch.float64
        else:
            with pytest.raises(UserError, match=f"{key} has dtype float64"):
                HuggingFaceCheckpoint(copy)


def test_links_as_in_the_cache_of_the_hub(copy: Path, tmp_path: Path) -> None:
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    for path in copy.iterdir():
        (snapshot / path.name).symlink_to(path)
    source = HuggingFaceCheckpoint(snapshot)
    assert files_of(source) == [snapshot / "model.safetensors"]
    assert torch.equal(source.tensor("model.norm.weight"), load_file(copy / "model.safetensors")["model.norm.weight"])


def test_files_that_may_not_be_read(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Patched rather than forbidden, since root may read everything."""
    opened = Path.open

    def forbid(self: Path, *arguments: object, **more: object) -> object:
        if self.name == forbidden:
            raise PermissionError(errno.EACCES, "Permission denied", str(self))
        return opened(self, *arguments, **more)

    monkeypatch.setattr(Path, "open", forbid)
    for forbidden in ("config.json", "tokenizer.json", "model.safetensors"):
        with pytest.raises(UserError, match=f"{copy / forbidden} may not be read"):
            HuggingFaceCheckpoint(copy)


def _replace_by_index(directory: Path, weight_map: object) -> None:
    (directory / "model.safetensors").rename(directory / "part.safetensors")
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def _flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 0xFF
    path.write_bytes(data)


def _cut(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])


def _quantize(directory: Path, key: str) -> None:
    save_file({key: torch.zeros(2, dtype=torch.int8)}, directory / "model.safetensors")


def _leave_only_gguf(directory: Path) -> None:
    (directory / "config.json").unlink()
    (directory / "model.safetensors").rename(directory / "model.gguf")


def _add_to_config(directory: Path, **values: object) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda d: shutil.rmtree(d), "is not a directory"),
        (lambda d: (d / "config.json").unlink(), "has no config.json"),
        (lambda d: (d / "config.json").rename(d / "adapter_config.json"), "adapter alone; merge"),
        (lambda d: (d / "config.json").write_text("{"), r"config.json is not valid JSON"),
        (lambda d: (d / "config.json").write_bytes(b"\xff\xfe"), r"config.json is not valid JSON"),
        (lambda d: (d / "config.json").write_text("[]"), r"config.json holds no JSON object"),
        (lambda d: _add_to_config(d, quantization_config={"quant_method": "gptq"}), r"quantized \(quant_method gptq\)"),
        (lambda d: (d / "model.safetensors").unlink(), "has no weights"),
        (lambda d: _add_to_config(d, quantization_config={"quant_method": "awq"}), r"quantized \(quant_method awq\)"),
        (
            lambda d: _add_to_config(d, quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True}),
            r"quantized \(quant_method bitsandbytes\); convert the original",
        ),
        (lambda d: _add_to_config(d, compression_config={"quant_method": "x"}), r"quantized \(quant_method x\)"),
        (
            lambda d: _add_to_config(d, transformers_weights="other.safetensors"),
            "config.json: transformers_weights 'other.safetensors', weights of a name of their own, is not supported",
        ),
        (_leave_only_gguf, "GGUF files only; get the model as safetensors"),
        (lambda d: (d / "model.safetensors").rename(d / "model.gguf"), "GGUF files only"),
        (lambda d: _cut(d / "model.safetensors", 5), r"model.safetensors is damaged or incomplete"),
        (lambda d: _cut(d / "model.safetensors", 9000), r"model.safetensors is damaged or incomplete"),
        (lambda d: _flip(d / "model.safetensors", 3), r"model.safetensors is damaged or incomplete"),
        (lambda d: _flip(d / "model.safetensors", 40), r"model.safetensors is damaged or incomplete"),
        (lambda d: _replace_by_index(d, {}), "has no weight_map"),
        (lambda d: _replace_by_index(d, {"a": "gone.safetensors"}), "names gone.safetensors, which is missing"),
        (lambda d: _replace_by_index(d, {"a": "../x.safetensors"}), "not in this directory"),
        (lambda d: _replace_by_index(d, {"absent.weight": "part.safetensors"}), "places absent.weight in part"),
        (lambda d: (d / "tokenizer.json").unlink(), "has no tokenizer"),
        (lambda d: (d / "tokenizer.json").write_text("{,"), "tokenizer.json is not valid JSON"),
        (lambda d: _quantize(d, "x"), "x has dtype int8; supported: float32, float16, bfloat16"),
        (lambda d: _quantize(d, "a.q_proj.qweight"), "q_proj.qweight is of GPTQ or AWQ quantization"),
        (lambda d: _quantize(d, "a.q_proj.SCB"), "q_proj.SCB is of bitsandbytes quantization"),
        (lambda d: _quantize(d, "a.q_proj.weight.absmax"), "absmax is of bitsandbytes quantization"),
        (lambda d: _quantize(d, "a.weight.quant_state.bitsandbytes__nf4"), "is of bitsandbytes quantization"),
        (lambda d: _quantize(d, "a.q_proj.weight_scale_inv"), "is of FP8 or compressed quantization"),
    ],
)
def test_bad_directory_is_refused_in_one_line(copy: Path, damage: Callable[[Path], object], message: str) -> None:
    damage(copy)
    with pytest.raises(UserError, match=message) as caught:
        HuggingFaceCheckpoint(copy)
    assert "\n" not in str(caught.value) and str(copy) in str(caught.value)
