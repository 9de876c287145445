"""`tools/convert_hf_to_mcore.py` as a user calls it."""

import importlib.util
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from megafuser.checkpoint.specialist import read_specialist
from tests.tiny_models import make_llama

TOOL = Path(__file__).parents[2] / "tools" / "convert_hf_to_mcore.py"


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_llama(tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture(scope="module")
def convert() -> Iterator[Callable[[list[str]], int]]:
    """The tool's `main`, in this process: importing torch anew for each bad input would take minutes."""
    spec = importlib.util.spec_from_file_location("convert_hf_to_mcore", TOOL)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    logger = logging.getLogger("megafuser")
    before = logger.level, logger.propagate, list(logger.handlers)
    yield module.main
    logger.level, logger.propagate, logger.handlers = before


def _tree(root: Path) -> list[tuple[str, int]]:
    return sorted((str(path.relative_to(root)), path.stat().st_mtime_ns) for path in root.rglob("*"))


def test_as_a_program_from_another_directory(llama: Path, tmp_path: Path) -> None:
    shutil.copytree(llama, tmp_path / "model")
    assert os.access(TOOL, os.X_OK) and TOOL.read_text().startswith("#!/usr/bin/env python3\n")
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, str(TOOL), "--hf", "model", "--out", "out", "--verify", "logits"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[-1] == "out: llama, 4 layers of width 32, fp32"
    assert any(line.startswith("weights: all 39") for line in lines)
    assert any(line.startswith("logits: the largest difference") for line in lines)
    assert "Warning" not in done.stderr and "Traceback" not in done.stderr
    read_specialist(tmp_path / "out")


def test_help_teaches(convert: Callable[[list[str]], int], capsys: pytest.CaptureFixture[str]) -> None:
    assert convert(["--help"]) == 0
    text = capsys.readouterr().out
    for word in ("--hf", "--out", "--dtype", "--verify", "--overwrite", "examples:", "exit codes:"):
        assert word in text


def test_existing_output_is_kept_unless_overwritten(
    convert: Callable[[list[str]], int], llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--hf", str(llama), "--out", str(tmp_path / "out"), "--verify", "none"]
    assert convert(arguments) == 0
    before = _tree(tmp_path)
    assert convert(arguments) == 2
    assert "pass --overwrite" in capsys.readouterr().err
    assert _tree(tmp_path) == before
    assert convert([*arguments, "--overwrite", "--dtype", "bf16"]) == 0
    assert read_specialist(tmp_path / "out")[0].dtype == "bf16"


def _change_config(directory: Path, **values: object) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


@pytest.mark.parametrize(
    ("damage", "arguments", "says"),
    [
        (None, ["--hf", "{model}"], "the following arguments are required: --out"),
        (None, ["--hf", "{model}", "--out", "{out}", "--dtype", "int8"], "invalid choice: 'int8'"),
        (None, ["--hf", "{model}", "--out", "{out}", "--fast"], "unrecognized arguments: --fast"),
        (None, ["--hf", "meta-llama/Llama-2-7b@main", "--out", "{out}"], "not fetched from the Hugging Face hub"),
        (None, ["--hf", "{model}/config.json", "--out", "{out}"], "is no directory"),
        (None, ["--hf", "{model}", "--out", "{model}/mcore"], "contain one another"),
        (None, ["--hf", "{model}", "--out", "{model}/config.json/out"], "contain one another"),
        (lambda d: (d / "config.json").unlink(), [], "no config.json"),
        (lambda d: (d / "config.json").write_text("{"), [], "no valid JSON"),
        (lambda d: (d / "model.safetensors").rename(d / "pytorch_model.bin"), [], "safetensors"),
        (lambda d: _cut(d / "model.safetensors"), [], "damaged or incomplete"),
        (lambda d: (d / "tokenizer.json").unlink(), [], "no tokenizer"),
        (lambda d: _change_config(d, quantization_config={"quant_method": "awq"}), [], "quantized (quant_method awq)"),
        (lambda d: _change_config(d, num_hidden_layers=3), [], "model.layers.3.input_layernorm.weight"),
        (lambda d: _change_config(d, vocab_size=999), [], "model.embed_tokens.weight has shape [320, 32]"),
        (lambda d: _change_config(d, model_type="gpt2", architectures=["GPT2LMHeadModel"]), [], "GPT2LMHeadModel"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    convert: Callable[[list[str]], int],
    llama: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    damage: Callable[[Path], object] | None,
    arguments: list[str],
    says: str,
) -> None:
    model = shutil.copytree(llama, tmp_path / "model")
    if damage:
        damage(model)
    before = _tree(tmp_path)
    given = arguments or ["--hf", "{model}", "--out", "{out}"]
    assert convert([argument.format(model=model, out=tmp_path / "deep" / "out") for argument in given]) == 2
    shown = capsys.readouterr()
    (line,) = shown.err.strip().splitlines()
    assert line.startswith("megafuser: error: ") and says in line
    assert shown.out == "" and _tree(tmp_path) == before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stopped_conversion_leaves_nothing(llama: Path, tmp_path: Path, number: signal.Signals) -> None:
    command = [sys.executable, str(TOOL), "--hf", str(llama), "--out", str(tmp_path / "out")]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as running:
        deadline = time.monotonic() + 60
        while not list(tmp_path.glob(".out.tmp-*")) and running.poll() is None and time.monotonic() < deadline:
            time.sleep(0.002)
        running.send_signal(number)
        error = running.stderr.read() if running.stderr else ""
    if running.returncode == 0:
        pytest.skip("the conversion was faster than the signal")
    assert running.returncode == 128 + number and "Traceback" not in error
    assert list(tmp_path.iterdir()) == []
