"""`tools/convert_hf_to_mcore.py` as a user calls it, and the way back; bad input has files of its own."""

import json
import os
import pty
import re
import select
import shutil
import subprocess
import sys
import termios
import time
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from megafuser.checkpoint.manifest import read_manifest, verify_files
from megafuser.checkpoint.specialist_sources import read_specialist
from tests.cli.tools import TOOLS, refusal, run_program, run_tool, tree
from tests.tiny_models import make_llama

IMPORT, EXPORT = "convert_hf_to_mcore", "convert_mcore_to_hf"


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_llama(tmp_path_factory.mktemp("models") / "llama")


def test_as_a_program_from_another_directory(llama: Path, tmp_path: Path) -> None:
    shutil.copytree(llama, tmp_path / "model")
    path = TOOLS / f"{IMPORT}.py"
    assert os.access(path, os.X_OK) and path.read_text().startswith("#!/usr/bin/env python3\n")
    done = run_program(IMPORT, "--hf", "model", "--out", "out", "--verify", "logits", directory=tmp_path)
    assert done.returncode == 0, done.stderr
    weights, logits, last = done.stdout.splitlines()
    assert weights == "weights: all 39 source tensors are equal bit by bit"
    assert logits.startswith("logits: the largest difference")
    assert last == "out: llama, 4 layers of width 32, fp32"
    assert done.stderr == ""
    read_specialist(tmp_path / "out")


def test_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_tool(IMPORT, "--help") == 0
    text = capsys.readouterr().out
    for word in ("--hf", "--out", "--dtype", "--verify", "--overwrite", "Families:", "examples:", "exit codes:"):
        assert word in text
    assert all(len(line) <= 120 for line in text.splitlines())


@pytest.mark.parametrize("name", [IMPORT, EXPORT])
def test_help_and_refused_arguments_import_nothing_heavy(name: str, tmp_path: Path) -> None:
    code = (
        f"import sys; sys.path.insert(0, {str(TOOLS)!r}); import {name}\n"
        f"assert {name}.main(['--help']) == 0 and {name}.main(['--out', '.']) == 2\n"
        "assert not {'torch', 'transformers', 'megatron', 'tqdm'} & sys.modules.keys()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr


def test_existing_output_is_kept_unless_overwritten(
    llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--hf", llama, "--out", tmp_path / "out", "--verify", "none"]
    assert run_tool(IMPORT, *arguments) == 0
    before = tree(tmp_path)
    capsys.readouterr()
    assert "pass --overwrite" in refusal(capsys, IMPORT, *arguments)
    assert tree(tmp_path) == before
    assert run_tool(IMPORT, *arguments, "--overwrite", "--dtype", "bf16") == 0
    assert read_specialist(tmp_path / "out")[0].dtype == "bf16"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_directory_that_is_no_checkpoint_is_never_overwritten(
    llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.tex").write_text("all of it")
    arguments = ["--hf", llama, "--out", tmp_path / "thesis", "--overwrite"]
    assert "is not an earlier output" in refusal(capsys, IMPORT, *arguments)
    assert (tmp_path / "thesis" / "chapter1.tex").read_text() == "all of it"


def test_sources_and_earlier_outputs_are_only_read(llama: Path, tmp_path: Path) -> None:
    before = tree(llama)
    assert run_tool(IMPORT, "--hf", llama, "--out", tmp_path / "deep" / "out") == 0
    assert tree(llama) == before
    before = tree(tmp_path)
    assert run_tool(EXPORT, "--checkpoint", tmp_path / "deep" / "out", "--out", tmp_path / "back") == 0
    assert [path for path in tree(tmp_path) if not path[0].startswith("back")] == before


def test_an_interrupted_download_of_the_source_is_named_with_its_link(
    llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As in the hub's cache, whose files are links."""
    shutil.copytree(llama, tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").unlink()
    (tmp_path / "model" / "model.safetensors").symlink_to(tmp_path / "blob")
    line = refusal(capsys, IMPORT, "--hf", tmp_path / "model", "--out", tmp_path / "out")
    assert "model.safetensors" in line


def _like_wizardmath(directory: Path, shards: int) -> dict[str, torch.Tensor]:
    """Makes the weights .bin files in fp16, with a buffer in each layer; returns the weights alone."""
    weights = {key: value.half() for key, value in load_file(directory / "model.safetensors").items()}
    (directory / "model.safetensors").unlink()
    inverse = 1e4 ** (-torch.arange(0, 8, 2) / 8)
    buffers = {f"model.layers.{layer}.self_attn.rotary_emb.inv_freq": inverse for layer in range(4)}
    tensors: Mapping[str, torch.Tensor] = weights | buffers
    if shards == 1:
        torch.save(tensors, directory / "pytorch_model.bin")
    else:
        keys = sorted(tensors)
        names = [f"pytorch_model-{number:05d}-of-{shards:05d}.bin" for number in range(1, shards + 1)]
        places = {key: names[number * shards // len(keys)] for number, key in enumerate(keys)}
        for name in names:
            torch.save({key: tensors[key] for key in keys if places[key] == name}, directory / name)
        total = sum(value.nbytes for value in tensors.values())
        index = {"metadata": {"total_size": total}, "weight_map": places}
        (directory / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    config = json.loads((directory / "config.json").read_text())
    # as transformers 4.3x wrote it
    config.pop("dtype", None)
    theta = config.pop("rope_parameters")["rope_theta"]
    old = {"torch_dtype": "float16", "rope_theta": theta, "rope_scaling": None, "pretraining_tp": 1}
    (directory / "config.json").write_text(json.dumps(config | old))
    return weights


@pytest.mark.parametrize("shards", [1, 3])
def test_pickled_weights_of_half_precision_with_buffers(
    llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], shards: int
) -> None:
    """The form that WizardMath-13B has; what comes back is safetensors, with the same weights."""
    model = shutil.copytree(llama, tmp_path / "model")
    weights = _like_wizardmath(model, shards)
    assert run_tool(IMPORT, "--hf", model, "--out", tmp_path / "out", "--verify", "logits") == 0
    assert "all 39 source tensors" in capsys.readouterr().out
    manifest = read_manifest(tmp_path / "out")
    assert manifest.dtype == "fp16" and verify_files(tmp_path / "out", manifest) == []
    assert run_tool(EXPORT, "--checkpoint", tmp_path / "out", "--out", tmp_path / "back", "--verify", "logits") == 0
    back = load_file(tmp_path / "back" / "model.safetensors")
    assert back.keys() == weights.keys()
    for key, value in weights.items():
        assert back[key].dtype == torch.float16 and torch.equal(back[key], value), key
    carried = {path.name for path in model.iterdir() if ".bin" not in path.name}
    assert {path.name for path in (tmp_path / "back").iterdir()} == carried | {"model.safetensors"}
    for name in carried:
        assert (tmp_path / "back" / name).read_bytes() == (model / name).read_bytes(), name


def _on_a_terminal(*command: object, directory: Path) -> tuple[int, str]:
    """Runs a program with a terminal of 100 columns as its standard error; exit code, and what was shown there."""
    master, slave = pty.openpty()
    termios.tcsetwinsize(slave, (24, 100))
    with subprocess.Popen(list(map(str, command)), cwd=directory, stdout=subprocess.DEVNULL, stderr=slave) as process:
        os.close(slave)
        shown, deadline = b"", time.monotonic() + 300
        while time.monotonic() < deadline:
            if select.select([master], [], [], 0.1)[0]:
                try:
                    shown += os.read(master, 65536)
                except OSError:  # how a terminal says that its last writer is gone
                    break
            elif process.poll() is not None:
                break
    os.close(master)
    return process.returncode, shown.decode()


@pytest.fixture(scope="module")
def larger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some 170 MB, so that there is time to show a bar."""
    sizes = {"hidden_size": 512, "intermediate_size": 4096, "num_hidden_layers": 6, "num_attention_heads": 8}
    return make_llama(tmp_path_factory.mktemp("larger") / "llama", **sizes)


def test_progress_on_a_terminal(larger: Path, tmp_path: Path) -> None:
    """Bytes done and in all, the rate, and the remaining time."""
    tool = [sys.executable, TOOLS / f"{IMPORT}.py"]
    code, shown = _on_a_terminal(*tool, "--hf", larger, "--out", "out", directory=tmp_path)
    assert code == 0, shown
    bar = re.compile(r"(converting|verifying): +\d+%\|[^|]*\| [\d.]+M?/160M \[(\d\d:\d\d<\d\d:\d\d, +[\d.]+[kMG]?B/s)?")
    found = list(bar.finditer(shown))
    assert {match[1] for match in found} == {"converting", "verifying"} and any(match[2] for match in found), shown
    assert shown.count("| 0.00/160M") == 2, "each phase begins once"
