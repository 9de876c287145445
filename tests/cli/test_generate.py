"""`megafuser generate` as a user runs it: both stages' checkpoints, the exported model's own text, bad input."""

import json
import re
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from megafuser.checkpoint.export import export_checkpoint
from megafuser.cli.main import main
from tests.fused_case import SPECIALISTS, SUBJECTS, write_jsonl
from tests.parallel.launch import run_commands
from tests.reference import PROMPTS

QUESTIONS = [f"What is the {subject}?" for subject in SUBJECTS] + [f"print({number})" for number in range(10)]
TOKENS = 8


@pytest.fixture(scope="module")
def trained(both_stages: Path) -> Path:
    """The run that went through both stages, with a gate that prefers."""
    return both_stages


def generate(root: Path, stage: str, *arguments: str) -> int:
    return main(["generate", "--checkpoint", str(root / "run" / stage), *arguments])


@pytest.mark.parametrize("stage", ["warmup", "joint"])
def test_twenty_greedy_texts_are_the_exported_models(trained: Path, tmp_path: Path, stage: str) -> None:
    export_checkpoint(trained / "run" / stage, tmp_path / "fused", verify="none")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "fused", trust_remote_code=True, dtype=torch.float32)
    tokenizers = {
        name: AutoTokenizer.from_pretrained(tmp_path / "fused" / "specialists" / name) for name in SPECIALISTS
    }
    file = write_jsonl(tmp_path / "prompts.jsonl", [{"prompt": text, "id": n} for n, text in enumerate(QUESTIONS)])
    out = tmp_path / "out.jsonl"
    assert generate(trained, stage, "--file", file, "--out", str(out), "--max-new-tokens", str(TOKENS)) == 0
    records = [json.loads(line) for line in out.read_text("utf-8").splitlines()]
    assert [record["id"] for record in records] == list(range(20))
    for record in records:
        ids = {
            name: tokenizers[name](PROMPTS[name].format(instruction=record["prompt"]), return_tensors="pt").input_ids
            for name in SPECIALISTS
        }
        found = model.generate(ids["text"], specialist_input_ids=ids, max_new_tokens=TOKENS, do_sample=False)
        response = found[0, ids["text"].shape[1] :]
        assert record["completion"] == tokenizers["text"].decode(response, skip_special_tokens=True)
        assert record["finish_reason"] == ("stop" if 2 in response.tolist() else "length")
    assert len({record["completion"] for record in records}) > 5


def test_standard_output_is_the_completion(trained: Path, capfd: pytest.CaptureFixture[str]) -> None:
    arguments = ["--prompt", QUESTIONS[0], "--max-new-tokens", "6", "device=cpu"]
    assert generate(trained, "joint", *arguments) == 0
    first = capfd.readouterr()
    assert first.out.endswith("\n")
    assert generate(trained, "joint", *arguments, "--show-gate") == 0
    second = capfd.readouterr()
    assert second.out == first.out
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


@pytest.mark.parallel
def test_two_ranks_write_what_one_writes(trained: Path, tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "in.jsonl", [{"prompt": text} for text in QUESTIONS[:3]])
    common = ["generate", "--checkpoint", str(trained / "run"), "--file", file, "--max-new-tokens", "6"]
    assert main([*common, "--out", str(tmp_path / "one.jsonl")]) == 0
    run_commands(
        2, [[*common, "--out", str(tmp_path / f"{size}.jsonl"), f"--{size}", "2"] for size in ("tensor", "pipeline")]
    )
    one = (tmp_path / "one.jsonl").read_text()
    assert (tmp_path / "tensor.jsonl").read_text() == (tmp_path / "pipeline.jsonl").read_text() == one


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "either --prompt TEXT or --file FILE"),
        (["--prompt", "a", "--file", "b", "--out", "c"], "either --prompt"),
        (["--file", "b"], "--file and --out go together"),
        (["--prompt", " "], "--prompt is empty"),
        (["--prompt", "a", "--temperature", "nan"], "must be a number, not 'nan'"),
        (["--prompt", "a", "--temperature", "-1"], "temperature must be at least 0, not -1"),
        (["--prompt", "a", "--top-p", "0"], "top_p must be above 0 and at most 1, not 0"),
        (["--prompt", "a", "--top-k", "-2"], "top_k must be at least 0, not -2"),
        (["--prompt", "a", "--repetition-penalty", "0"], "repetition_penalty must be above 0"),
        (["--prompt", "a", "--seed", "-1"], "seed must be at least 0"),
        (["--prompt", "a", "--max-new-tokens", "0"], "whole number of at least 1"),
        (["--prompt", "a", "--max-new-tokens", "5000"], "has room for"),
        (["--prompt", "a " * 500], "the prompt has"),
        (["--prompt", "a", "--force", "poet"], "no specialist 'poet'; choose uniform or one of text, code, math"),
        (["--prompt", "a", "--tensor", "2"], "2"),
        (["--prompt", "a", "--raw", "--system", "b"], "--system goes with --prompt"),
        (["--prompt", "a", "--topp", "0.5"], "nearest valid one is --top-p"),
        (["--file", "missing.jsonl", "--out", "out.jsonl"], "cannot be read"),
    ],
)
def test_bad_input_is_one_line(trained: Path, tmp_path: Path, monkeypatch, capfd, arguments, message) -> None:
    monkeypatch.chdir(tmp_path)
    assert generate(trained, "joint", *arguments) == 2
    error = capfd.readouterr().err.strip().splitlines()
    assert error[-1].startswith("megafuser: error: ")
    assert message in error[-1]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "is no JSON"),
        ("[]", "is no JSON object"),
        ("{}", "either prompt or messages"),
        ('{"prompt": 3}', "prompt must be a text"),
        ('{"prompt": ""}', "prompt must be a text"),
        ('{"messages": []}', "messages must be a list"),
        ('{"messages": [{"role": "user"}]}', "messages.0 must have role and content"),
        ('{"messages": [{"role": "assistant", "content": "a"}]}', "where 'user' is expected"),
        (
            '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}',
            "nothing to answer",
        ),
        ('{"messages": [{"role": "user", "content": " "}]}', "message 0 is empty"),
        ('{"prompt": "a", "messages": []}', "either prompt or messages"),
    ],
)
def test_bad_lines_are_named(trained: Path, tmp_path: Path, capfd, line, message) -> None:
    file = tmp_path / "in.jsonl"
    file.write_text('{"prompt": "good"}\n\n' + line + "\n")
    assert generate(trained, "joint", "--file", str(file), "--out", str(tmp_path / "out.jsonl")) == 2
    error = capfd.readouterr().err.strip().splitlines()[-1]
    assert message in error
    assert f"{file}:3" in error
    assert not (tmp_path / "out.jsonl").exists()
