"""Numbers of a run's data: lengths, repeats, and the table."""

import json

import numpy as np
import pytest

from megafuser.config.load import load_config
from megafuser.data.statistics import gather, length_summary
from megafuser.data.statistics_table import reasons, rows, sources, to_text
from tests.fused_case import write_config
from tests.unit.data.statistics_case import configuration, made_up


@pytest.fixture
def document(tmp_path):
    return gather(load_config(write_config(tmp_path / "config.yaml", configuration()), []), *made_up())


def test_lengths_are_those_of_the_sorted_list():
    lengths = np.random.default_rng(1).integers(1, 500, 1000).astype(np.int32)
    ordered = sorted(lengths.tolist())
    expected = {"mean": sum(ordered) / 1000, "p50": ordered[499], "p95": ordered[949], "max": ordered[-1]}
    assert length_summary(lengths) == pytest.approx(expected)
    assert length_summary(lengths[:0]) == {"mean": 0, "p50": 0, "p95": 0, "max": 0}


def test_the_document_holds_the_caches_counts_and_the_repeats(document):
    assert json.loads(json.dumps(document)) == document
    text = document["splits"]["train"]["text"]
    assert (text["samples"], text["read"], text["tokens"]) == (4, 7, {"text": 180, "code": 220})
    assert text["length_summary"]["views"]["code"] == {"mean": 55, "p50": 40, "p95": 100, "max": 100}
    assert text["length_summary"]["responses"] == {"mean": 6.5, "p50": 6, "p95": 8, "max": 8}
    joint = document["stages"]["joint"]
    assert (joint["steps"], joint["samples_per_step"]) == (400, 10)
    assert [(own["domain"], own["source"], own["draws"], own["times"]) for own in joint["draws"]] == [
        ("text", None, 2000, 500),
        ("code", "data/a.jsonl", 1500, 750),
        ("code", "data/b.jsonl", 500, 500 / 3),
    ]


def test_the_table_has_a_column_for_each_domain(document):
    table = {row.title: row.cells for row in rows(document, "train")}
    assert table["samples"] == ["4", "5"] and table["read"] == ["7", "5"]
    assert table["dropped"] == ["2", "0"] and table["bad lines"] == ["1", "0"]
    assert table["duplicates (kept)"] == ["1", "0"] and table["truncated"] == ["1", "0"]
    assert table["tokens, code"] == ["220", "170"] and table["response tokens"] == ["26", "45"]
    assert table["length, text"] == ["45 / 30 / 90 / 90", "33 / 33 / 33 / 33"]
    assert table["length, responses"] == ["6 / 6 / 8 / 8", "9 / 9 / 9 / 9"]
    assert table["seen in warmup"] == ["5 times", "1.67 to 7.5 times"]
    assert not any(row.title.startswith("seen") for row in rows(document, "valid"))
    assert reasons(document, "train") == [
        ("text", "longer than 100 positions <b>", 2, ["data/text.jsonl:3"]),
        ("text", "empty response", 1, ["data/text.jsonl:5"]),
    ]
    assert sources(document, "train")[1] == ("code", "data/a.jsonl", 2, 2, "75.0% of the draws")


def test_the_text_is_aligned_and_names_places(document):
    lines = to_text(document).splitlines()
    assert lines[0].split() == ["train", "text", "code"]
    table = lines[: lines.index("")]
    assert len({len(line) for line in table}) == 1
    assert "train text: 2 left out: longer than 100 positions <b> (data/text.jsonl:3, …)" in lines
    assert "train text: 1 left out: empty response (data/text.jsonl:5)" in lines
    assert "train code: data/a.jsonl: 2 of 2 kept, 75.0% of the draws" in lines
    assert "Seen in joint: how often each sample is drawn in 400 steps of 10 samples." in lines


def test_names_and_weights_of_sources_are_the_configurations(tmp_path):
    """A cache serves runs with other ones, too; and what is split off for validation is not drawn by weight."""
    values = configuration()
    values["data"]["domains"]["code"] = {
        "train": [{"path": "moved/a.jsonl", "weight": 1.0}, {"path": "data/b.jsonl", "weight": 1.0}]
    }
    train, valid = made_up()
    valid[1] = train[1]
    found = gather(load_config(write_config(tmp_path / "config.yaml", values), []), train, valid)
    assert sources(found, "train")[1:] == [
        ("code", "moved/a.jsonl", 2, 2, "50.0% of the draws"),
        ("code", "data/b.jsonl", 3, 3, "50.0% of the draws"),
    ]
    assert sources(found, "valid")[1:] == [("code", "moved/a.jsonl", 2, 2, ""), ("code", "data/b.jsonl", 3, 3, "")]
