"""Bad input of `tools/convert_hf_to_mcore.py`: exit code 2, one line that says what to do, nothing written."""

import contextlib
import errno
import json
import os
import shutil
import socket
import threading
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from megafuser.families.known import FAMILIES
from tests.cli.tools import refusal, run_program, run_tool, tree
from tests.ports import free_ports
from tests.tiny_models import make_llama

IMPORT = "convert_hf_to_mcore"
Damage = Callable[[Path], object]
SUPPORTED = ", ".join(family.architecture for family in FAMILIES.values())


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_llama(tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture
def model(llama: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(llama, tmp_path / "model"))


def config(**values: object) -> Damage:
    """Changes config.json; a value of None removes the key."""

    def damage(directory: Path) -> None:
        path = directory / "config.json"
        changed = json.loads(path.read_text()) | values
        path.write_text(json.dumps({key: value for key, value in changed.items() if value is not None}))

    return damage


def weights(change: Callable[[dict[str, torch.Tensor]], object]) -> Damage:
    """Changes the tensors of the one weight file."""

    def damage(directory: Path) -> None:
        tensors = load_file(directory / "model.safetensors")
        change(tensors)
        save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})

    return damage


def pickled(shards: int, then: Damage) -> Damage:
    """Makes the weights .bin files, and damages them."""

    def damage(directory: Path) -> None:
        tensors = load_file(directory / "model.safetensors")
        (directory / "model.safetensors").unlink()
        _save(directory, tensors, "pytorch_model.bin", torch.save, shards)
        then(directory)

    return damage


def sharded(shards: int, then: Damage) -> Damage:
    """Splits the weights into shards with an index, and damages them."""

    def damage(directory: Path) -> None:
        tensors = load_file(directory / "model.safetensors")
        (directory / "model.safetensors").unlink()
        _save(directory, tensors, "model.safetensors", save_file, shards)
        then(directory)

    return damage


def _save(directory: Path, tensors: dict[str, torch.Tensor], single: str, save: Callable, shards: int) -> None:
    if shards == 1:
        save(tensors, directory / single)
        return
    names = [single.replace(".", f"-{number:05d}-of-{shards:05d}.") for number in range(1, shards + 1)]
    places = {key: names[number % shards] for number, key in enumerate(sorted(tensors))}
    for name in names:
        save({key: tensors[key] for key, place in places.items() if place == name}, directory / name)
    (directory / f"{single}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))


def index(single: str, change: Callable[[dict[str, str]], object]) -> Damage:
    def damage(directory: Path) -> None:
        path = directory / f"{single}.index.json"
        values = json.loads(path.read_text())
        change(values["weight_map"])
        path.write_text(json.dumps(values))

    return damage


def remove(*names: str) -> Damage:
    return lambda directory: [(directory / name).unlink() for name in names]


def cut(name: str, left: float = 0.6) -> Damage:
    """What an interrupted download leaves."""
    return lambda directory: os.truncate(directory / name, int((directory / name).stat().st_size * left))


def garble(name: str, at: int = 4) -> Damage:
    def damage(directory: Path) -> None:
        content = bytearray((directory / name).read_bytes())
        content[at : at + 40] = b"\xff" * 40
        (directory / name).write_bytes(content)

    return damage


class _RunsCode:
    """What somebody hostile would put into a pickle."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("/tmp/megafuser-ran-code-from-a-pickle",)


def hostile(directory: Path) -> None:
    torch.save({"model.norm.weight": torch.ones(32), "more": _RunsCode()}, directory / "pytorch_model.bin")


def moe(directory: Path) -> None:
    config(model_type="mixtral", architectures=["MixtralForCausalLM"], num_local_experts=8)(directory)


YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
OLD_YARN = {"type": "dynamic", "factor": 2.0}
SECOND = "model-00002-of-00002.safetensors"
SECOND_BIN = "pytorch_model-00002-of-00002.bin"
MOVED = "model.norm.weight"

BAD_MODELS: dict[str, tuple[Damage, str]] = {
    "no configuration": (remove("config.json"), "no config.json"),
    "configuration is not JSON": (lambda d: (d / "config.json").write_text("{"), "config.json is not valid JSON"),
    "configuration is not an object": (lambda d: (d / "config.json").write_text("[1]"), "holds no JSON object"),
    "unsupported": (config(model_type="gpt2", architectures=["GPT2LMHeadModel"]), "GPT2LMHeadModel is not supported"),
    "unsupported, listed": (config(model_type="gpt2", architectures=["GPT2LMHeadModel"]), f"supported: {SUPPORTED}"),
    "another head": (config(architectures=["LlamaForSequenceClassification"]), "LlamaForSequenceClassification"),
    "mixture of experts": (moe, "MixtralForCausalLM is a mixture-of-experts"),
    "GPTQ": (config(quantization_config={"quant_method": "gptq", "bits": 4}), "quantized (quant_method gptq)"),
    "AWQ": (config(quantization_config={"quant_method": "awq", "bits": 4}), "quantized (quant_method awq)"),
    "bitsandbytes": (
        config(quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True}),
        "quantized (quant_method bitsandbytes)",
    ),
    "GPTQ, unsaid": (
        weights(lambda t: t.update({"model.layers.0.mlp.up_proj.qweight": torch.zeros(4, 8, dtype=torch.int32)})),
        "model.layers.0.mlp.up_proj.qweight is of GPTQ or AWQ quantization",
    ),
    "8 bits, unsaid": (
        weights(lambda t: t.update({"model.norm.weight": torch.zeros(32, dtype=torch.int8)})),
        "model.norm.weight has dtype int8",
    ),
    "RoPE of an unsupported kind": (
        config(rope_parameters=YARN | {"rope_theta": 1e4}),
        "RoPE scaling 'yarn' is not supported; supported: default, linear, llama3",
    ),
    "RoPE of an unsupported kind, old": (config(rope_parameters=None, rope_scaling=OLD_YARN), "'dynamic'"),
    "sliding window": (
        config(model_type="mistral", architectures=["MistralForCausalLM"], sliding_window=64),
        "sliding_window 64 (of max_position_embeddings 256) is not supported",
    ),
    "other activation": (config(hidden_act="gelu"), "hidden_act 'gelu' is not supported"),
    "too few layers": (config(num_hidden_layers=3), "model.layers.3."),
    "too many layers": (config(num_hidden_layers=5), "lacks model.layers.4.input_layernorm.weight and 8 more"),
    "vocabulary": (
        config(vocab_size=999),
        "model.embed_tokens.weight has shape [320, 32], but its config.json implies",
    ),
    "width": (config(intermediate_size=96), "mlp.gate_proj.weight has shape [64, 32]"),
    "heads": (config(num_key_value_heads=1), "self_attn.k_proj.weight has shape [16, 32]"),
    "missing key": (weights(lambda t: t.pop(MOVED)), f"lacks {MOVED}"),
    "unexpected key": (
        weights(lambda t: t.update({"model.layers.0.self_attn.q_proj.lora_A": torch.zeros(2, 32)})),
        "has model.layers.0.self_attn.q_proj.lora_A, which its config.json does not explain",
    ),
    "bias without a flag": (
        weights(lambda t: t.update({"model.layers.0.self_attn.q_proj.bias": torch.zeros(32)})),
        "has model.layers.0.self_attn.q_proj.bias, which",
    ),
    "tied although different": (config(tie_word_embeddings=True), "lm_head.weight differs from"),
    "mixed dtypes": (
        weights(lambda t: t.update({"model.layers.1.mlp.up_proj.weight": torch.zeros(64, 32).half()})),
        "choose one with --dtype",
    ),
    "no weights": (remove("model.safetensors"), "has no weights"),
    "no tokenizer": (remove("tokenizer.json"), "no tokenizer"),
    "tokenizer cut off": (cut("tokenizer.json"), "tokenizer.json is not valid JSON"),
    "safetensors cut off": (cut("model.safetensors"), "model.safetensors is damaged or incomplete"),
    "safetensors cut to nothing": (cut("model.safetensors", 0), "model.safetensors is damaged or incomplete"),
    "safetensors' header": (garble("model.safetensors"), "model.safetensors is damaged or incomplete"),
    "Git LFS pointer": (
        lambda d: (d / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n"),
        "git lfs pull",
    ),
    "shard cut off": (sharded(2, cut(SECOND)), f"{SECOND} is damaged or incomplete"),
    "shard missing": (sharded(2, remove(SECOND)), f"names {SECOND}, which is missing"),
    "key that the index lacks": (
        sharded(2, index("model.safetensors", lambda places: places.pop(MOVED))),
        f"holds {MOVED}, which model.safetensors.index.json does not list",
    ),
    "key that the shard lacks": (
        sharded(2, index("model.safetensors", lambda places: places.update({"model.more": SECOND}))),
        f"places model.more in {SECOND}, which lacks it",
    ),
    "index out of the directory": (
        sharded(2, index("model.safetensors", lambda places: places.update({MOVED: "../other.safetensors"}))),
        "'../other.safetensors', which is not in this directory",
    ),
    ".bin cut off": (pickled(1, cut("pytorch_model.bin")), "pytorch_model.bin is damaged or incomplete"),
    ".bin's start": (pickled(1, garble("pytorch_model.bin", 0)), "pytorch_model.bin is damaged or incomplete"),
    ".bin shard cut off": (pickled(2, cut(SECOND_BIN)), f"{SECOND_BIN} is damaged or incomplete"),
    ".bin shard missing": (pickled(2, remove(SECOND_BIN)), f"names {SECOND_BIN}, which is missing"),
    ".bin key that the index lacks": (
        pickled(2, index("pytorch_model.bin", lambda places: places.pop(MOVED))),
        f"holds {MOVED}, which pytorch_model.bin.index.json does not list",
    ),
    ".bin that runs code": (pickled(1, hostile), "which could run code when it is read"),
}


@pytest.mark.parametrize("case", BAD_MODELS)
def test_bad_model(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], case: str) -> None:
    damage, says = BAD_MODELS[case]
    damage(model)
    before = tree(tmp_path)
    assert says in refusal(capsys, IMPORT, "--hf", model, "--out", tmp_path / "deep" / "out")
    assert tree(tmp_path) == before
    assert not Path("/tmp/megafuser-ran-code-from-a-pickle").exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "the following arguments are required: --hf, --out"),
        (["--hf", "{model}"], "the following arguments are required: --out; see "),
        (["--hf", "{model}", "--out", "{out}", "--dtype", "int8"], "invalid choice: 'int8'"),
        (["--hf", "{model}", "--out", "{out}", "--verify", "all"], "invalid choice: 'all'"),
        (["--hf", "{model}", "--out", "{out}", "--fast"], "unrecognized arguments: --fast"),
        (["--hf", "", "--out", "{out}"], "the name of the model is empty"),
        (["--hf", "{model}", "--out", ""], "--out"),
        (["--hf", "{model}/nowhere", "--out", "{out}"], "nowhere"),
        (["--hf", "{model}/config.json", "--out", "{out}"], "is a file; give the directory"),
        (["--hf", "{model}", "--out", "{model}"], "--out {model} exists"),
        (["--hf", "{model}", "--out", "{model}", "--overwrite"], "contain one another"),
        (["--hf", "{model}", "--out", "{model}/mcore"], "contain one another"),
        (["--hf", "{model}", "--out", "{model}/../model/mcore"], "contain one another"),
        (["--hf", "{model}", "--out", "{parent}", "--overwrite"], "contain one another"),
        (["--hf", "{model}", "--out", "{model}/config.json/out"], "contain one another"),
        (["--hf", "{model}", "--out", "{parent}/file", "--overwrite"], "exists and is not a directory"),
        (["--hf", "{model}", "--out", "{parent}/file/out"], "file cannot be made (File exists); choose another output"),
        (["--hf", "{model}", "--out", "{parent}/file/deep/out"], "cannot be made (Not a directory)"),
    ],
)
def test_bad_arguments(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], says: str
) -> None:
    (tmp_path / "file").write_text("mine")
    before = tree(tmp_path)
    names = {"model": str(model), "out": str(tmp_path / "deep" / "out"), "parent": str(tmp_path)}
    line = refusal(capsys, IMPORT, *(argument.format(**names) for argument in arguments))
    assert says.format(**names) in line
    assert tree(tmp_path) == before


def test_a_link_into_the_source_is_seen_through(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "link").symlink_to(model)
    before = tree(tmp_path)
    assert "contain one another" in refusal(capsys, IMPORT, "--hf", model, "--out", tmp_path / "link" / "out")
    assert tree(tmp_path) == before


def test_full_disk_is_noticed_before_the_weights_are_read(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(2**30, 2**30 - 2**20, 2**20))
    before = tree(tmp_path)
    line = refusal(capsys, IMPORT, "--hf", model, "--out", tmp_path / "deep" / "out")
    assert "has 1.0 MB free" in line and "make room" in line
    assert tree(tmp_path) == before


def test_disk_that_fills_up_on_the_way_leaves_nothing(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    before = tree(tmp_path)
    monkeypatch.setattr(os, "write", full)
    assert run_tool(IMPORT, "--hf", model, "--out", tmp_path / "deep" / "out") == 75
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("megafuser: error: ") and "No space left on device); make room and run the same" in line
    assert tree(tmp_path) == before


def test_a_disk_without_room_for_a_directory(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another output on the same disk would be no better."""

    make = Path.mkdir

    def full(self: Path, *arguments: Any, **options: Any) -> None:
        if self.name == "deep" or self.name.startswith(".out.tmp-"):
            raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT), str(self))
        make(self, *arguments, **options)

    monkeypatch.setattr(Path, "mkdir", full)
    for out in (tmp_path / "deep" / "out", tmp_path / "out"):
        assert run_tool(IMPORT, "--hf", model, "--out", out) == 75
        assert "cannot be written (Disk quota exceeded); make room and run the same" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("out", "more", "says"),
    [
        ("mine", [], "exists; choose another output or pass --overwrite"),
        ("mine", ["--overwrite"], "is not an earlier output"),
        ("file", ["--overwrite"], "file exists and is not a directory"),
        ("file/out", [], "file is not a writable directory"),
    ],
)
def test_the_output_is_looked_at_before_anything_is_downloaded(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    out: str,
    more: list[str],
    says: str,
) -> None:
    monkeypatch.setattr("megafuser.conversion.hub.resolve_model", lambda name: pytest.fail("the hub was asked"))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    (tmp_path / "file").touch()
    before = tree(tmp_path)
    assert says in refusal(capsys, IMPORT, "--hf", "org/tiny", "--out", tmp_path / out, *more)
    assert tree(tmp_path) == before


@pytest.mark.slow  # tests/unit/conversion/test_hub.py has the same without a process
def test_a_hub_that_cannot_be_reached_is_not_asked_for_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or a user waits for all that the library tries again."""
    asked = []

    def hang_up(server: socket.socket) -> None:
        with contextlib.suppress(OSError):  # how it ends
            while True:
                server.accept()[0].close()
                asked.append(1)

    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    (port,) = free_ports(1)
    with socket.create_server(("127.0.0.1", int(port))) as server:
        threading.Thread(target=hang_up, args=(server,), daemon=True).start()
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{port}")
        done = run_program(IMPORT, "--hf", "meta-llama/Llama-2-7b-hf@main", "--out", "out", directory=tmp_path)
        server.shutdown(socket.SHUT_RDWR)
    assert 1 <= len(asked) <= 2
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("megafuser: error: meta-llama/Llama-2-7b-hf@main: no such directory, and ")
    assert done.stderr.count("\n") == 1 and "cannot be reached" in done.stderr
    assert not (tmp_path / "out").exists()


def test_as_a_program(model: Path, tmp_path: Path) -> None:
    cut("model.safetensors")(model)
    before = tree(tmp_path)
    done = run_program(IMPORT, "--hf", "model", "--out", "out", directory=tmp_path)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("megafuser: error: model/model.safetensors is damaged or incomplete (")
    assert done.stderr.count("\n") == 1
    assert tree(tmp_path) == before
