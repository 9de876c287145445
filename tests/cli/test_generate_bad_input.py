"""What `megafuser generate` refuses, in one line, with nothing written."""

import re
from pathlib import Path

import pytest

from tests.cli.generating import generate


@pytest.fixture(scope="module")
def trained(both_stages: Path) -> Path:
    return both_stages


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
        (["--prompt", "a", "--stop", ""], "--stop is empty"),
        (["--prompt", "a\udcff"], "no UTF-8"),
        (["--raw", "--prompt", "a\udcff"], "no UTF-8"),
        (["--prompt", "a", "--system", "a\udcff"], "no UTF-8"),
        (["--prompt", "a", "gate.temperature=2"], "would change nothing here: the gate is the checkpoint's"),
        (["--prompt", "a", "gate={temperature: 2}"], "would change nothing here: the gate is the checkpoint's"),
        (["--prompt", "a", "parallel={tensor: 1}"], "would change nothing here: use --tensor and --pipeline"),
        (["--prompt", "a", "parallel.tensor=2"], "would change nothing here: use --tensor and --pipeline"),
        (["--prompt", "a", "data.sequence_length=64"], "and the context has 64"),
        (["--prompt", "a", "data.end_token=<unk>"], "was trained with end id 2, but this configuration gives 0"),
        (["--prompt", "a", "--topp", "0.5"], "nearest valid one is '--top-p'"),
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


def test_the_prompt_and_the_response_share_the_context(trained: Path, capfd) -> None:
    arguments = ["--prompt", "fox " * 50, "--raw", "--max-new-tokens"]
    assert generate(trained, "joint", *arguments, "5000") == 2
    error = capfd.readouterr().err.splitlines()[-1]
    found = re.search(r"the prompt has (\d+) tokens, so that the context of (\d+) has room for (\d+) more", error)
    assert found is not None
    prompt, context, room = map(int, found.groups())
    assert prompt + room == context
    assert generate(trained, "joint", *arguments, str(room + 1)) == 2
    assert generate(trained, "joint", *arguments, str(room), "--stop", "\0", "--stop", "e") == 0


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "is not JSON"),
        ("[]", "is not a JSON object"),
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
        ('{"prompt": "a", "x": NaN}', "is not JSON"),
        ('{"prompt": "a", "x": 1e999}', "is not JSON"),
        ('{"prompt": "a", "x": "\\ud800"}', "is not JSON"),
        ('{"prompt": "\\ud800"}', "is not JSON"),
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


def test_paths_that_cannot_be_are_one_line(trained: Path, tmp_path: Path, capfd) -> None:
    (tmp_path / "in.jsonl").write_text('{"prompt": "a"}\n')
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    for name in ("x" * 300, "a", "a/out.jsonl"):
        assert generate(trained, "joint", "--file", str(tmp_path / "in.jsonl"), "--out", str(tmp_path / name)) == 2
        (error,) = capfd.readouterr().err.strip().splitlines()[-1:]
        assert error.startswith("megafuser: error: ") and str(tmp_path) in error
    assert {path.name for path in tmp_path.iterdir()} == {"in.jsonl", "a", "b"}
