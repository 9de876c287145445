"""Benchmark files with the layouts that their publishers give them."""

import csv
import gzip
import json

import pyarrow
import pytest
from pyarrow import parquet

from megafuser.data.decontamination import read_benchmarks
from megafuser.errors import UserError

LINES = {
    "HumanEval.jsonl": {
        "task_id": "HumanEval/0",
        "prompt": "p",
        "entry_point": "f",
        "canonical_solution": "s",
        "test": "t",
    },
    "gsm8k.jsonl": {"question": "p", "answer": "s"},
    "math.jsonl": {"problem": "p", "level": "Level 5", "type": "Algebra", "solution": "s"},
    "aqua.json": {"question": "p", "options": ["A)1"], "rationale": "s", "correct": "A"},
    "sat-math.jsonl": {"passage": None, "question": "p", "options": ["(A)1"], "label": "A", "other": {"solution": "x"}},
    "own.jsonl": {"text": "p"},
}


@pytest.mark.parametrize("name", LINES)
def test_lines(tmp_path, name):
    path = tmp_path / name
    path.write_text(f"{json.dumps(LINES[name])}\n" * 2)
    found = [(item.where, item.text) for item in read_benchmarks([path])]
    # options are short, and the index leaves them out by itself where they are too short
    options = {"aqua.json": ["A)1"], "sat-math.jsonl": ["(A)1"]}.get(name, [])
    texts = (["p"] if name in ("sat-math.jsonl", "own.jsonl") else ["p", "s"]) + options
    assert found == [(f"{path}:{line}", text) for line in (1, 2) for text in texts]


def test_compressed_lines_arrays_tables_and_directories(tmp_path):
    with gzip.open(tmp_path / "HumanEval.jsonl.gz", "wt") as file:
        file.write(json.dumps(LINES["HumanEval.jsonl"]) + "\n")
    (tmp_path / "alpaca_eval.json").write_text(json.dumps([{"instruction": "p", "output": "s", "dataset": "d"}] * 2))
    with (tmp_path / "TruthfulQA.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["Type", "Category", "Question", "Best Answer", "Correct Answers", "Source"])
        writer.writerow(["Adversarial", "Law", "a question,\nof two lines", "s", "x; y", ""])
    algebra = tmp_path / "MATH" / "algebra"
    algebra.mkdir(parents=True)
    for number in (1, 2):
        (algebra / f"{number}.json").write_text(json.dumps({"problem": f"p{number}", "solution": "s"}, indent=1))
    names = ["HumanEval.jsonl.gz", "alpaca_eval.json", "TruthfulQA.csv", "MATH"]
    found = [item.text for item in read_benchmarks([tmp_path / name for name in names])]
    answers = ["s", "x", " y"]
    assert found == ["p", "s", "p", "s", "p", "s", "a question,\nof two lines", *answers, "p1", "s", "p2", "s"]


@pytest.mark.parametrize(
    "record",
    [
        {"question": "q", "best_answer": "b", "correct_answers": ["c"], "incorrect_answers": ["d"], "source": "z"},
        {"question": "q", "mc1_targets": {"b": 1, "c": 0}, "mc2_targets": {"d": 1}},
        {
            "question": "q",
            "mc1_targets": {"choices": ["b", "c"], "labels": [1, 0]},
            "mc2_targets": {"choices": ["d"], "labels": [1]},
        },
    ],
)
def test_truthfulqa_in_its_other_forms(tmp_path, record):
    path = tmp_path / "truthfulqa.json"
    path.write_text(json.dumps([record]))
    assert [item.text for item in read_benchmarks([path])] == ["q", "b", "c", "d"]


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("a.jsonl", '{"query": "q"}\n', r"a\.jsonl:1: the layout of no benchmark that is known .*: it has query; give"),
        ("a.jsonl", '{"text": "q"}\n{"te', r"a\.jsonl:2: not JSON"),
        ("a.jsonl", "[1]\n", r"a\.jsonl:1: no JSON object"),
    ],
)
def test_what_is_no_benchmark_is_told(tmp_path, name, text, told):
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=told):
        list(read_benchmarks([tmp_path / name]))


def test_gsm8k_answers_are_sought_with_and_without_annotations(tmp_path):
    path = tmp_path / "test.jsonl"
    path.write_text(json.dumps({"question": "q", "answer": "48/2 = <<48/2=24>>24 clips\n#### 24"}))
    texts = [item.text for item in read_benchmarks([path])]
    assert texts == ["q", "48/2 =  24 clips\n  24", "48/2 = <<48/2=24>>24 clips\n#### 24"]


def test_directories_are_read_whole(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n')
    (tmp_path / "b.csv").write_text("Question,Best Answer\ntwo,three\n")
    parquet.write_table(pyarrow.Table.from_pylist([{"text": "four"}]), tmp_path / "c.parquet")
    with gzip.open(tmp_path / "d.jsonl.gz", "wt") as file:
        file.write('{"text": "five"}\n')
    (tmp_path / "README.md").write_text("no benchmark")
    assert [item.text for item in read_benchmarks([tmp_path])] == ["one", "two", "three", "four", "five"]


def test_a_file_without_a_text_is_told(tmp_path):
    (tmp_path / "a.jsonl").write_text("\n\n")
    with pytest.raises(UserError, match=r"a\.jsonl holds no text"):
        list(read_benchmarks([tmp_path]))


def test_missing_files_are_told(tmp_path):
    with pytest.raises(UserError, match=r"none\.jsonl does not exist"):
        list(read_benchmarks([tmp_path / "none.jsonl"]))
    with pytest.raises(UserError, match="holds no"):
        list(read_benchmarks([tmp_path]))
