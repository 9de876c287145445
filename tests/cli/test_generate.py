"""`megafuser generate` as a user runs it: both stages' checkpoints, the exported model's own text, bad input."""

import fcntl
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from megafuser.checkpoint.manifest import read_manifest, write_manifest
from megafuser.cli.main import main
from megafuser.conversion.export import export_checkpoint
from megafuser.inference.engine import Engine
from megafuser.inference.partial_answers import PartialAnswers
from megafuser.runtime.append_log import AppendLog
from tests.cli.generating import generate
from tests.fused_case import SPECIALISTS, SUBJECTS, write_jsonl
from tests.parallel.launch import run_commands
from tests.reference import PROMPTS

QUESTIONS = [f"What is the {subject}?" for subject in SUBJECTS] + [f"print({number})" for number in range(10)]
TOKENS = 8


@pytest.fixture(scope="module")
def trained(both_stages: Path) -> Path:
    """The run that went through both stages, with a gate that prefers."""
    return both_stages


class Exported:
    """A stage's checkpoint as transformers loads it."""

    def __init__(self, trained: Path, stage: str, directory: Path) -> None:
        export_checkpoint(trained / "run" / stage, directory, verify="none")
        self.model = AutoModelForCausalLM.from_pretrained(directory, trust_remote_code=True, dtype=torch.float32)
        self.tokenizers = {
            name: AutoTokenizer.from_pretrained(directory / "specialists" / name) for name in SPECIALISTS
        }

    def complete(self, prompt: str, raw: bool, tokens: int, **settings: float) -> tuple[str, str]:
        """What its own `generate` makes of a prompt, and why it ended."""
        texts = {name: prompt if raw else PROMPTS[name].format(instruction=prompt) for name in SPECIALISTS}
        ids = {name: self.tokenizers[name](text, return_tensors="pt").input_ids for name, text in texts.items()}
        own = {} if raw else {"specialist_input_ids": ids}
        found = self.model.generate(ids["text"], **own, max_new_tokens=tokens, do_sample=False, **settings)
        response = found[0, ids["text"].shape[1] :]
        text = self.tokenizers["text"].decode(response, skip_special_tokens=True)
        return text, "stop" if 2 in response.tolist() else "length"


@pytest.mark.parametrize("stage", ["warmup", "joint"])
def test_twenty_greedy_texts_are_the_exported_models(trained: Path, tmp_path: Path, stage: str) -> None:
    exported = Exported(trained, stage, tmp_path / "fused")
    file = write_jsonl(tmp_path / "prompts.jsonl", [{"prompt": text, "id": n} for n, text in enumerate(QUESTIONS)])

    def records(*arguments: str) -> list[dict[str, Any]]:
        out = tmp_path / "out.jsonl"
        assert generate(trained, stage, "--file", file, "--out", str(out), "--overwrite", *arguments) == 0
        return [json.loads(line) for line in out.read_text("utf-8").splitlines()]

    found = records("--max-new-tokens", str(TOKENS))
    assert [record["id"] for record in found] == list(range(20))
    # what the stages differ in is where weights come from, which a part of the prompts shows as well
    for record in found if stage == "joint" else found[::3]:
        expected = exported.complete(record["prompt"], False, TOKENS)
        assert (record["completion"], record["finish_reason"]) == expected
    assert len({record["completion"] for record in found}) > 5
    if stage == "joint":
        # a penalty is on the first specialist's prompt and on the response; raw is what `input_ids` are
        for raw, penalty in ((False, 1.5), (True, 1.0)):
            extra = ["--raw"] if raw else ["--repetition-penalty", str(penalty)]
            other = records("--max-new-tokens", "20", *extra)
            for record in other[:4]:
                expected = exported.complete(record["prompt"], raw, 20, repetition_penalty=penalty)
                assert (record["completion"], record["finish_reason"]) == expected


def test_standard_output_is_the_completion(trained: Path, capfd: pytest.CaptureFixture[str]) -> None:
    arguments = ["--prompt", QUESTIONS[0], "--max-new-tokens", "6", "device=cpu"]
    assert generate(trained, "joint", *arguments) == 0
    first = capfd.readouterr()
    assert first.out.endswith("\n")
    assert generate(trained, "joint", *arguments, "--show-gate") == 0
    second = capfd.readouterr()
    assert second.out == first.out
    assert generate(trained, "joint", *arguments, "--system", "Be brief.") == 0
    assert capfd.readouterr().out != first.out
    lines = [line for line in second.err.splitlines() if re.search(r"text=0\.\d+ code=0\.\d+ math=0\.\d+$", line)]
    assert len(lines) == 6
    for line in lines:
        weights = {name: float(weight) for name, weight in re.findall(r"(\w+)=(\d\.\d+)", line)}
        assert sum(weights.values()) == pytest.approx(1.0, abs=2e-3)
        assert max(weights, key=weights.__getitem__) in line.split("=")[0]


def test_draws_repeat_and_chats_go_through_templates(trained: Path, tmp_path: Path) -> None:
    chat = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "One?"},
        {"role": "assistant", "content": "Two."},
        {"role": "user", "content": "Three?"},
    ]
    file = write_jsonl(tmp_path / "in.jsonl", [{"messages": chat}, {"prompt": "Three?"}])
    outs = []
    for number, seed in enumerate(("5", "5", "6")):
        out = tmp_path / f"{number}.jsonl"
        drawn = ["--temperature", "1.5", "--top-k", "100", "--seed", seed, "--max-new-tokens", "12", "--show-gate"]
        assert generate(trained, "warmup", "--file", file, "--out", str(out), *drawn) == 0
        outs.append([json.loads(line) for line in out.read_text("utf-8").splitlines()])
    assert outs[0] == outs[1] != outs[2]
    assert outs[0][0]["messages"] == chat
    gate = outs[0][0]["gate"]
    assert gate["specialists"] == list(SPECIALISTS)
    assert len(gate["tokens"]) == len(gate["weights"])
    assert "".join(gate["tokens"]) == outs[0][0]["completion"]


class Killed(BaseException):
    """Stands for a signal that nothing catches."""


def test_a_file_that_was_cut_off_goes_on(trained: Path, tmp_path: Path, monkeypatch, capfd) -> None:
    file = write_jsonl(tmp_path / "in.jsonl", [{"prompt": text, "id": n} for n, text in enumerate(QUESTIONS[:7])])
    settings = ["--temperature", "1.2", "--seed", "3", "--max-new-tokens", "6", "--show-gate", "--max-running", "2"]
    whole, out, partial = (tmp_path / name for name in ("whole.jsonl", "out.jsonl", "out.jsonl.partial"))
    assert generate(trained, "joint", "--file", file, "--out", str(whole), *settings) == 0

    kept, original = [], PartialAnswers.keep

    def keep(self: PartialAnswers, index: int, answer: dict) -> None:
        if len(kept) == 3:
            raise Killed
        kept.append(index)
        original(self, index, answer)

    command = ["--file", file, "--out", str(out), *settings]
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(PartialAnswers, "keep", keep)
        generate(trained, "joint", *command)
    assert not out.exists()
    assert len(partial.read_text("utf-8").splitlines()) == 4
    with partial.open("a") as torn:
        torn.write('{"index": 6, "answer": {"completion": "x", "fini')

    before = partial.read_bytes()
    write_jsonl(tmp_path / "other.jsonl", [{"prompt": text, "id": n} for n, text in enumerate(QUESTIONS[1:8])])
    for changed, key in (
        (["--seed", "4"], "seed"),
        (["--max-new-tokens", "7"], "max_new_tokens"),
        (["--stop", "q"], "stop"),
        (["--raw"], "raw"),
        (["--force", "code"], "force"),
        (["--file", str(tmp_path / "other.jsonl")], "file"),
        (["seed=7"], "overrides"),
    ):
        assert generate(trained, "joint", *command, *changed) == 2
        error = capfd.readouterr().err.strip().splitlines()[-1]
        assert f"{partial} holds unfinished answers with other settings ({key})" in error
    assert generate(trained, "warmup", *command) == 2
    assert "other settings (checkpoint)" in capfd.readouterr().err
    assert partial.read_bytes() == before

    asked: list[int] = []
    monkeypatch.setattr(
        PartialAnswers, "keep", lambda self, index, answer: (asked.append(index), original(self, index, answer))
    )
    # neither the layout nor what shares a step counts, nor how the file is written
    Path(file).write_text(Path(file).read_text().replace("\n", "\n\n"))
    assert generate(trained, "joint", *command, "--max-running", "5", "--cache-gib", "0.5") == 0
    assert sorted(kept + asked) == list(range(7))
    found, expected = ([json.loads(line) for line in path.read_text("utf-8").splitlines()] for path in (out, whole))
    for ours, theirs in zip(found, expected, strict=True):
        weights = [record["gate"].pop("weights") for record in (ours, theirs)]
        torch.testing.assert_close(*map(torch.tensor, weights), rtol=0, atol=1e-5)  # the last digit is rounding's
    assert found == expected
    assert not partial.exists()


def test_a_signal_ends_it_between_two_steps_and_the_same_command_goes_on(
    trained: Path, tmp_path: Path, monkeypatch, capfd
) -> None:
    file = write_jsonl(tmp_path / "in.jsonl", [{"prompt": text} for text in QUESTIONS[:5]])
    whole, out = tmp_path / "whole.jsonl", tmp_path / "out.jsonl"
    settings = ["--max-new-tokens", "6", "--max-running", "1"]
    assert generate(trained, "joint", "--file", file, "--out", str(whole), *settings) == 0
    original, ended = Engine._run, []

    def run(self: Engine, *arguments: Any) -> Any:
        if len(ended) == 13:  # of six tokens for each answer, and after the first of the third one
            os.kill(os.getpid(), signal.SIGTERM)
        found = original(self, *arguments)
        ended.append(None)
        return found

    command = ["--file", file, "--out", str(out), *settings]
    with monkeypatch.context() as patch:
        patch.setattr(Engine, "_run", run)
        assert generate(trained, "joint", *command) == 75
    assert len(ended) == 14, "it left in the middle of a step"
    said = f"generating stopped, since SIGTERM was received; 2 of 5 answers are in {out}.partial; run the same command"
    assert said in capfd.readouterr().err
    assert not out.exists() and len(Path(f"{out}.partial").read_text().splitlines()) == 3
    assert generate(trained, "joint", *command) == 0
    assert out.read_text() == whole.read_text()


def test_after_a_full_disk_the_same_command_goes_on(trained: Path, tmp_path: Path, monkeypatch, capfd) -> None:
    def full(self: AppendLog, record: Any) -> None:
        raise OSError(28, "No space left on device")

    file = write_jsonl(tmp_path / "in.jsonl", [{"prompt": "What is seven?"}])
    out = tmp_path / "out.jsonl"
    command = ["--file", file, "--out", str(out), "--max-new-tokens", "2"]
    with monkeypatch.context() as patch:
        patch.setattr(AppendLog, "append", full)
        assert generate(trained, "joint", *command) == 75
    error = capfd.readouterr().err.strip().splitlines()[-1]
    assert f"{out}.partial cannot be written (No space left on device); make room and run the same command" in error
    assert not out.exists()
    assert generate(trained, "joint", *command) == 0
    assert out.exists()


def test_a_partial_file_is_begun_again_or_left_alone(trained: Path, tmp_path: Path, monkeypatch, capfd) -> None:
    file = write_jsonl(tmp_path / "in.jsonl", [{"prompt": "What is seven?"}])
    out, partial = tmp_path / "out.jsonl", tmp_path / "out.jsonl.partial"
    command = ["--file", file, "--out", str(out), "--max-new-tokens", "2"]
    for content in ("", "something\n", "[]\n", '{"settings": {}}\n'):
        partial.write_text(content)
        for overwrite in ([], ["--overwrite"]):
            assert generate(trained, "joint", *command, *overwrite) == 2
            assert f"{partial} is in the way" in capfd.readouterr().err
            assert partial.read_text() == content
    partial.unlink()
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(PartialAnswers, "finish", lambda self, text: (_ for _ in ()).throw(Killed))
        generate(trained, "joint", *command)
    whole = partial.read_text()
    # a line of zeros, as a machine that went down may leave
    partial.write_text(whole.splitlines(keepends=True)[0] + "\0" * 20 + "\n" + whole.splitlines(keepends=True)[1])
    with partial.open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert generate(trained, "joint", *command) == 2
        assert "is being written by another process" in capfd.readouterr().err
    assert generate(trained, "joint", *command, "--max-new-tokens", "3", "--overwrite") == 0
    assert json.loads(out.read_text())["completion"] != json.loads(whole.splitlines()[1])["answer"]["completion"]
    assert not partial.exists()


@pytest.mark.parametrize("out", ["in.jsonl/out.jsonl", "/proc/nowhere/out.jsonl"])
def test_a_place_that_cannot_be_written_is_told_before_anything_is_generated(trained, tmp_path, capfd, out) -> None:
    file = write_jsonl(tmp_path / "in.jsonl", [{"prompt": "What is seven?"}])
    assert generate(trained, "joint", "--file", file, "--out", str(tmp_path / out)) == 2
    assert "cannot be written" in capfd.readouterr().err.strip().splitlines()[-1]


def test_what_is_no_file_is_not_replaced(trained: Path, tmp_path: Path, capfd) -> None:
    file = write_jsonl(tmp_path / "in.jsonl", [{"prompt": "What is seven?"}])
    pipe, directory, link, target = (tmp_path / name for name in ("pipe", "directory", "link.jsonl", "target.jsonl"))
    os.mkfifo(pipe)
    directory.mkdir()
    for out in (pipe, directory):
        assert generate(trained, "joint", "--file", file, "--out", str(out), "--overwrite") == 2
        assert f"--out {out} is not a file" in capfd.readouterr().err.strip().splitlines()[-1]
    assert pipe.is_fifo() and directory.is_dir()
    target.touch()
    link.symlink_to(target)
    command = ["--file", file, "--out", str(link), "--overwrite", "--max-new-tokens", "2"]
    assert generate(trained, "joint", *command) == 0
    assert link.is_symlink() and target.read_text()


def test_a_damaged_checkpoint_answers_nothing(trained: Path, tmp_path: Path, capfd) -> None:
    step = shutil.copytree(trained / "run" / "joint" / "step_000002", tmp_path / "step_000002")
    weights = max((step / "weights").iterdir(), key=lambda path: path.stat().st_size)
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 1
    weights.write_bytes(content)
    assert main(["generate", "--checkpoint", str(step), "--prompt", "What is seven?"]) == 2
    said = capfd.readouterr()
    assert not said.out
    assert "damaged" in said.err.strip().splitlines()[-1]


def test_a_reader_that_has_enough_is_no_error(trained: Path) -> None:
    command = [sys.executable, "-m", "megafuser", "generate", "--checkpoint", str(trained / "run"), "--prompt", "seven"]
    with subprocess.Popen([*command, "device=cpu"], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        error = process.stderr.read().decode()
    assert process.returncode == 0, error
    assert "Traceback" not in error and "BrokenPipe" not in error


def test_a_completion_has_the_room_that_the_context_leaves(trained: Path, capfd) -> None:
    """Prompt and tokens together, as in `serve`; the context is 256."""
    arguments = ["--raw", "--prompt", "a" * 30, "device=cpu"]
    length = 31  # a BOS, and a token for each letter
    assert generate(trained, "joint", *arguments, "--max-new-tokens", str(256 - length + 1)) == 2
    assert f"{length} tokens, so that the context of 256 has room for {256 - length} more" in capfd.readouterr().err
    assert generate(trained, "joint", *arguments, "--max-new-tokens", str(256 - length)) == 0


def as_if_trained_at(layout: dict[str, Any], checkpoint: Path, copy: Path) -> None:
    """Copies a checkpoint, with another layout in its configuration."""
    shutil.copytree(checkpoint, copy)
    values = yaml.safe_load((copy / "config.yaml").read_text())
    (copy / "config.yaml").write_text(yaml.safe_dump(values | {"parallel": layout}))
    write_manifest(copy, read_manifest(copy))


@pytest.mark.slow  # that ranks choose the same tokens, `tests/parallel/test_decoding.py` shows
@pytest.mark.parallel
def test_two_ranks_write_what_one_writes(trained: Path, tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "in.jsonl", [{"prompt": text} for text in QUESTIONS[:3]])
    common = ["generate", "--checkpoint", str(trained / "run"), "--file", file, "--max-new-tokens", "6"]
    assert main([*common, "--out", str(tmp_path / "one.jsonl")]) == 0
    commands = {size: [*common, f"--{size}", "2"] for size in ("tensor", "pipeline")}
    # a step of a token for each sequence cannot be cut into shares, as the rows of training were
    last, copy = (root / "joint" / "step_000002" for root in (trained / "run", tmp_path / "sequence"))
    as_if_trained_at({"tensor": 2, "sequence": True}, last, copy)
    commands["sequence"] = [word if word != str(trained / "run") else str(copy) for word in common]
    run_commands(2, [[*command, "--out", str(tmp_path / f"{name}.jsonl")] for name, command in commands.items()])
    one = (tmp_path / "one.jsonl").read_text()
    for name in commands:
        assert (tmp_path / f"{name}.jsonl").read_text() == one, name
