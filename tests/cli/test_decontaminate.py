"""tools/decontaminate.py: planted leaks go, everything else stays byte for byte, and every mistake is one line."""

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.tools import refusal

TOOL = Path(__file__).resolve().parents[2] / "tools" / "decontaminate.py"
QUESTION = (
    "Janet’s ducks lay 16 eggs per day. She eats three for breakfast every morning, and bakes muffins for her friends "
    "with (what is) left over!"
)
CODE = 'def has_close_elements(numbers, threshold):\n    """ Check if in given list of numbers, are any two close."""\n'
TWELVE = "this is one of the things that people have to do with"  # a benchmark has them, too, and one more


def decontaminate(*arguments: object) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    command = [sys.executable, str(TOOL), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)


@pytest.fixture
def benchmarks(tmp_path: Path) -> list[Path]:
    humaneval, gsm8k = tmp_path / "HumanEval.jsonl.gz", tmp_path / "gsm8k.jsonl"
    with gzip.open(humaneval, "wt") as file:
        file.write(json.dumps({"task_id": "HumanEval/0", "prompt": CODE, "canonical_solution": "    return 1"}) + "\n")
    items = [{"question": QUESTION, "answer": "18"}, {"question": f"{TWELVE} today, my dear friend", "answer": "no"}]
    gsm8k.write_text("".join(json.dumps(item) + "\n" for item in items))
    return [humaneval, gsm8k]


def line(instruction: str, response: str = "an answer", **more: object) -> bytes:
    return json.dumps({"instruction": instruction, "response": response, **more}, ensure_ascii=False).encode()


LEAKS = [
    line(QUESTION.upper().replace(" ", "  \n").replace("’", "'")),
    line("write it", "word " * 3000 + CODE.replace("\n", " ; ") + "word " * 3000),
    json.dumps({"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": QUESTION}]}).encode(),
    json.dumps({"instruction": "solve", "input": QUESTION, "output": "18"}).encode(),
]
KEPT = [
    line("what are ducks?", id=1),
    b'{"instruction":  "odd   spacing", "response": "kept \\u00e9", "id": 7.0}\r',
    b"",
    line(f"so {TWELVE} so"),
    line("the end"),
]


def test_leaks_go_and_the_rest_stays_byte_for_byte(tmp_path, benchmarks):
    plain, packed = tmp_path / "text.jsonl", tmp_path / "code.jsonl.gz"
    plain.write_bytes(b"\xef\xbb\xbf" + b"\n".join([KEPT[0], *LEAKS[:2], *KEPT[1:4], LEAKS[2], KEPT[4]]))
    packed.write_bytes(gzip.compress(b"\n".join([LEAKS[3], KEPT[0], b""])))
    before = plain.read_bytes(), packed.read_bytes()
    out = tmp_path / "out"
    done = decontaminate("--input", plain, packed, "--benchmarks", *benchmarks, "--out", out)
    assert done.returncode == 0, done.stderr
    assert (plain.read_bytes(), packed.read_bytes()) == before
    # no line end behind the last line, as it was
    assert (out / "text.jsonl").read_bytes() == b"\xef\xbb\xbf" + b"\n".join(KEPT)
    assert gzip.decompress((out / "code.jsonl.gz").read_bytes()) == KEPT[0] + b"\n"

    dropped = [json.loads(one) for one in (out / "dropped.jsonl").read_text("utf-8").splitlines()]
    assert [one["line"] for one in dropped] == [f"{plain}:2", f"{plain}:3", f"{plain}:7", f"{packed}:1"]
    hits = [hit for one in dropped for hit in one["hits"]]
    assert [hit["field"] for hit in hits] == ["instruction", "response", "messages[1].content", "input"]
    assert [hit["benchmark"]["text"] for hit in hits] == [QUESTION, CODE, QUESTION, QUESTION]
    assert hits[0]["benchmark"]["item"] == f"{benchmarks[1]}:1" and len(hits[0]["ngram"].split()) == 13
    assert dropped[0]["texts"]["instruction"] == json.loads(LEAKS[0])["instruction"]

    told = json.loads((out / "report.json").read_text())
    assert [(file["kept"], file["benchmark"], file["bad"]) for file in told["files"]] == [(4, 3, 0), (1, 1, 0)]
    assert [(file["texts"], file["too_short"], file["items_found"]) for file in told["benchmark_files"]] == [
        (1, 1, 1),
        (2, 2, 1),
    ]
    assert sorted(path.name for path in out.iterdir()) == [
        "code.jsonl.gz",
        "dropped.jsonl",
        "report.json",
        "text.jsonl",
    ]
    assert "text.jsonl" in done.stdout and "HumanEval.jsonl.gz" in done.stdout


def test_workers_change_nothing(tmp_path, benchmarks):
    data = tmp_path / "data.jsonl"
    lines = [line(f"question {number} " * 400) for number in range(600)]
    for place in (0, 250, 599):
        lines[place] = LEAKS[0]
    data.write_bytes(b"\n".join(lines) + b"\n")  # several blocks
    outs = [tmp_path / f"out{workers}" for workers in (1, 2)]
    for workers, out in zip((1, 2), outs, strict=True):
        done = decontaminate(
            *("--input", data, "--benchmarks", *benchmarks, "--out", out, "--workers", workers),
            *("--near-duplicates", "0.9"),
        )
        assert done.returncode == 0, done.stderr
    for name in ("data.jsonl", "dropped.jsonl"):
        assert (outs[0] / name).read_bytes() == (outs[1] / name).read_bytes()
    told = json.loads((outs[0] / "report.json").read_text())["files"][0]
    assert told["benchmark"] == 3 and told["near duplicate"] + told["kept"] == 597


def test_boilerplate_passes_and_near_duplicates_go(tmp_path, benchmarks):
    data, out = tmp_path / "data.jsonl", tmp_path / "out"
    words = [f"w{number}" for number in range(200)]
    twins = [line(" ".join(words)), line(" ".join([*words[:195], "end"]).upper(), id="twin")]
    data.write_bytes(
        b"\n".join([*twins, *(line(f"{TWELVE} today number {n}", f"{n} " * 50) for n in range(12)), LEAKS[0]])
    )
    arguments = ("--input", data, "--benchmarks", *benchmarks, "--frequent", "11", "--near-duplicates", "0.8")
    done = decontaminate(*arguments, "--out", out)
    assert done.returncode == 0, done.stderr
    told = json.loads((out / "report.json").read_text())
    assert {key: told["files"][0][key] for key in ("kept", "benchmark", "near duplicate")} == {
        "kept": 13,
        "benchmark": 1,
        "near duplicate": 1,
    }
    assert told["most_frequent_ngrams"][0] == {"ngram": f"{TWELVE} today", "samples": 12}
    assert told["ignored_ngrams"] == 1 and "12 samples: this is one" in done.stdout
    twin = json.loads((out / "dropped.jsonl").read_text().splitlines()[0])
    assert (twin["line"], twin["reason"], twin["repeats"]) == (f"{data}:2", "near duplicate", f"{data}:1")
    assert 0.8 <= twin["similarity"] <= 1 and twin["texts"]["id"] == "twin"


def test_a_text_that_many_items_have_is_told_ten_times(tmp_path):
    benchmark, data, out = tmp_path / "bench.jsonl", tmp_path / "data.jsonl", tmp_path / "out"
    benchmark.write_text("".join(json.dumps({"text": f"{TWELVE} today, item {n}"}) + "\n" for n in range(50)))
    data.write_bytes(line(f"{TWELVE} today") + b"\n")
    assert decontaminate("--input", data, "--benchmarks", benchmark, "--out", out).returncode == 0
    (dropped,) = map(json.loads, (out / "dropped.jsonl").read_text().splitlines())
    assert dropped["items"] == 50 and len(dropped["hits"]) == 10
    assert json.loads((out / "report.json").read_text())["benchmark_files"][0]["items_found"] == 50


def test_only_an_earlier_output_is_replaced(tmp_path, benchmarks):
    data, out = tmp_path / "data.jsonl", tmp_path / "out"
    data.write_bytes(KEPT[0] + b"\n")
    (tmp_path / "run" / "warmup").mkdir(parents=True)
    (tmp_path / "run" / "report.json").write_text('{"verdict": "go"}')
    arguments = ("--input", data, "--benchmarks", *benchmarks, "--overwrite", "--out")
    done = decontaminate(*arguments, tmp_path / "run")
    assert done.returncode == 2 and "is not an earlier output (it has no report.json with a ngram)" in done.stderr
    assert (tmp_path / "run" / "warmup").is_dir()
    assert decontaminate(*arguments, out).returncode == 0
    (out / "data.jsonl").unlink()
    assert decontaminate(*arguments, out).returncode == 0
    assert (out / "data.jsonl").is_file()


def test_lines_that_cannot_be_read(tmp_path, benchmarks):
    data, out = tmp_path / "data.jsonl", tmp_path / "out"
    bad = [b'{"instruction": "\xe9t\xe9"}', b'{"torn": "', b"[1]", b'{"instruction": "half \\ud83d"}']
    data.write_bytes(b"\n".join([KEPT[0], *bad, KEPT[4]]) + b"\n")
    arguments = ("--input", data, "--benchmarks", *benchmarks, "--out", out)
    done = decontaminate(*arguments)
    assert done.returncode == 2 and not out.exists()
    assert done.stderr.startswith(f"megafuser: error: {data}:2: not UTF-8") and done.stderr.count("\n") == 1
    done = decontaminate(*arguments, "--on-error", "skip")
    assert done.returncode == 0, done.stderr
    assert (out / "data.jsonl").read_bytes() == KEPT[0] + b"\n" + KEPT[4] + b"\n"
    dropped = [json.loads(one) for one in (out / "dropped.jsonl").read_text().splitlines()]
    assert [(one["line"], one["reason"]) for one in dropped] == [(f"{data}:{n}", "bad") for n in (2, 3, 4, 5)]


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"--input": ["none.jsonl"]}, "none.jsonl does not exist"),
        ({"--input": ["data.jsonl", "other/data.jsonl"]}, "has the name of"),
        ({"--input": ["dropped.jsonl"]}, "has the name of a file that is written"),
        ({"--input": ["array.json"]}, "holds no lines; give JSONL"),
        ({"--input": ["empty.jsonl"]}, "is empty"),
        ({"--input": ["gsm8k.jsonl"]}, "as input and as benchmark"),
        ({"--benchmarks": ["gsm8k.jsonl", "unknown.jsonl"]}, "the layout of no benchmark that is known"),
        ({"--out": ["there"]}, "exists; choose another output or pass --overwrite"),
        ({"--out": ["."], "--overwrite": []}, "which would be replaced; choose another output"),
        ({"--input": [".hits"]}, "has the name of a file that is written"),
        ({"--ngram": ["2"]}, "argument --ngram: must be from 3 to 100 words, not '2'"),
        ({"--near-duplicates": ["1.5"]}, "argument --near-duplicates: must be above 0 and at most 1, not '1.5'"),
        ({"--workers": ["0"]}, "argument --workers: must be a whole number of at least 1, not '0'"),
        ({"--frequent": ["x"]}, "argument --frequent: must be a whole number of at least 1, not 'x'"),
    ],
)
def test_mistakes_are_one_line(tmp_path, benchmarks, capsys, changed, told):
    (tmp_path / "other").mkdir()
    for name in ("data.jsonl", "other/data.jsonl", "dropped.jsonl", ".hits"):
        (tmp_path / name).write_bytes(KEPT[0] + b"\n")
    (tmp_path / "array.json").write_text("[{}]")
    (tmp_path / "empty.jsonl").write_text("\n\n")
    (tmp_path / "unknown.jsonl").write_text('{"query": "q"}\n')
    (tmp_path / "there").mkdir()
    given = {"--input": ["data.jsonl"], "--benchmarks": ["gsm8k.jsonl"], "--out": ["out"]} | changed
    paths = ("--input", "--benchmarks", "--out")
    arguments = [
        part
        for option, values in given.items()
        for part in (option, *(str(tmp_path / value) if option in paths else value for value in values))
    ]
    assert told in refusal(capsys, "decontaminate", *arguments)
    assert not (tmp_path / "out").exists() and not list((tmp_path / "there").iterdir())
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == [".hits"]
