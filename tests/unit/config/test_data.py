"""The `data` section: what is refused, by its dotted key, and that sources survive writing and reading."""

from dataclasses import replace
from pathlib import Path

import pytest

from megafuser.config.data import DataConfig, DomainConfig, SourceConfig
from megafuser.config.load import differences, load_config, to_yaml
from megafuser.config.schema import RunConfig
from megafuser.errors import UserError

HEAD = """\
run_dir: runs/x
specialists:
  - {name: text, checkpoint: checkpoints/text, template: ultralm}
  - {name: code, checkpoint: checkpoints/code, template: codellama}
data:
"""
MINIMAL = HEAD + "  domains: {text: {train: [t.jsonl]}}\n"
FULL = (
    HEAD
    + """\
  too_long: truncate
  on_error: skip
  valid_fraction: 0.25
  cache_dir: cache
  workers: 3
  weights: {text: 2, math: 1.5}
  domains:
    text:
      fields: {instruction: problem, response: solution}
      lengths: {min_tokens: 5, max_tokens: 900, min_response_tokens: 2, max_response_tokens: 800}
      train:
        - {path: a.jsonl.gz, weight: 2}
        - {dataset: org/name, subset: main, files: [x.parquet], split: train_sft, revision: abc, weight: 1,
           fields: {messages: conversations, role: from, content: value}}
      valid: [v.jsonl, {path: w.parquet}]
    math: {train: [m.json]}
"""
)


def load(directory: Path, text: str, *overrides: str) -> RunConfig:
    path = directory / "config.yaml"
    path.write_text(text, "utf-8")
    return load_config(path, overrides)


def test_defaults(tmp_path: Path) -> None:
    assert load(tmp_path, MINIMAL).data == DataConfig(
        domains={"text": DomainConfig(train=("t.jsonl",), valid=(), fields={})},
        too_long="drop",
        on_error="stop",
        valid_fraction=0.01,
        cache_dir=None,
        workers=None,
        weights=None,
    )


def test_sources_have_their_own_field_names_or_the_domains(tmp_path: Path) -> None:
    text = load(tmp_path, FULL).data.domains["text"]
    files, dataset = text.sources("train")
    assert files == SourceConfig(path="a.jsonl.gz", weight=2, fields={"instruction": "problem", "response": "solution"})
    assert dataset.fields == {"messages": "conversations", "role": "from", "content": "value"}
    assert (dataset.dataset, dataset.subset, dataset.files, dataset.split) == (
        "org/name",
        "main",
        ("x.parquet",),
        "train_sft",
    )
    assert [(str(source), source.fields["response"]) for source in text.sources("valid")] == [
        ("v.jsonl", "solution"),
        ("w.parquet", "solution"),
    ]
    assert str(dataset) == "org/name (main)"


@pytest.mark.parametrize("text", [MINIMAL, FULL])
def test_round_trip(tmp_path: Path, text: str) -> None:
    config = load(tmp_path, text)
    again = load(tmp_path, to_yaml(config))
    assert again == config and differences(config, again) == []


def test_differences_name_what_changed_of_a_source(tmp_path: Path) -> None:
    told = differences(load(tmp_path, MINIMAL), load(tmp_path, MINIMAL, "data.domains.text.train=[{path: u.jsonl}]"))
    assert told[:2] == [
        'data.domains.text.train: ["t.jsonl"] → absent',
        'data.domains.text.train.0.path: absent → "u.jsonl"',
    ]
    told = differences(load(tmp_path, FULL), load(tmp_path, FULL, "data.domains.text.fields.response=answer"))
    assert told == ['data.domains.text.fields.response: "solution" → "answer"']


def test_differences_tell_of_another_order_of_the_domains(tmp_path: Path) -> None:
    """The samples that are drawn depend on it; that of other mappings means nothing."""
    config = load(tmp_path, FULL)
    domains, weights = config.data.domains, config.data.weights
    assert weights is not None
    turned = replace(config.data, domains=dict(reversed(domains.items())), weights=dict(reversed(weights.items())))
    assert differences(config, replace(config, data=turned)) == ["data.domains: in the order text, math → math, text"]
    turned = replace(config.data, weights=dict(reversed(weights.items())))
    assert differences(config, replace(config, data=turned)) == []


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("data.domains={}", "data.domains: must hold at least one domain"),
        ("data.domains={a/b: {train: [t]}}", "data.domains: "),
        ("data.domains.text.train=[]", "data.domains.text.train: must list at least one file"),
        ("data.domains.text.train=['']", "data.domains.text.train.0: "),
        ("data.domains.text.valid=[v, '']", "data.domains.text.valid.1: "),
        ("data.domains.text.train=[t, {}]", "data.domains.text.train.1.path: give either `path` or `dataset`"),
        ("data.domains.text.train=[{path: a, dataset: b}]", "data.domains.text.train.0.path: give either"),
        ("data.domains.text.train=[{path: a, subset: b}]", "data.domains.text.train.0.subset: belongs to a `dataset`"),
        ("data.domains.text.train=[{path: a, files: [b]}]", "data.domains.text.train.0.files: belongs to"),
        ("data.domains.text.train=[{path: a, revision: b}]", "data.domains.text.train.0.revision: belongs to"),
        ("data.domains.text.train=[{path: a, weight: 0}]", "data.domains.text.train.0.weight: must be above 0"),
        ("data.domains.text.train=[{path: a, weight: .nan}]", "data.domains.text.train.0.weight: must be"),
        ("data.domains.text.train=[{path: a, weight: 1}, b]", "data.domains.text.train.1: needs a `weight`"),
        ("data.domains.text.train=[{path: a, weigths_: 1}]", "the nearest valid one is"),
        ("data.domains.text.valid=[{path: a, weight: 1}]", "data.domains.text.valid.0.weight: has no meaning"),
        ("data.domains.text.fields={respons_: b}", "data.domains.text.fields.respons_: unknown field; the nearest"),
        ("data.domains.text.fields={zzz: b}", "data.domains.text.fields.zzz: unknown field; valid are instruction,"),
        ("data.domains.text.fields={response: ''}", "data.domains.text.fields.response: "),
        (
            "data.domains.text.train=[{path: a, fields: {rol: b}}]",
            "data.domains.text.train.0.fields.rol: unknown field",
        ),
        ("data.domains.text.lengths={min_tokens: -1}", "data.domains.text.lengths.min_tokens: "),
        ("data.domains.text.lengths={max_tokens: 0}", "data.domains.text.lengths.max_tokens: "),
        ("data.domains.text.lengths={min_tokens: 9, max_tokens: 8}", "data.domains.text.lengths.max_tokens: "),
        (
            "data.domains.text.lengths={min_response_tokens: 9, max_response_tokens: 8}",
            "data.domains.text.lengths.max_response_tokens: ",
        ),
        ("data.sequence_length=0", "data.sequence_length: "),
        ("data.end_token=''", "data.end_token: "),
        ("data.cache_dir=''", "data.cache_dir: "),
        ("data.workers=0", "data.workers: "),
        ("data.valid_fraction=0", "data.valid_fraction: must be above 0 and below 1"),
        ("data.valid_fraction=1", "data.valid_fraction: must be above 0 and below 1"),
        ("data.too_long=cut", "data.too_long: "),
        ("data.on_error=ignore", "data.on_error: "),
        ("data.weights={code: 1}", "data.weights: must name every domain once: text"),
        ("data.weights={text: 0}", "data.weights.text: must be above 0"),
    ],
)
def test_refusals(tmp_path: Path, override: str, says: str) -> None:
    with pytest.raises(UserError) as caught:
        load(tmp_path, MINIMAL, override)
    assert says in str(caught.value) and "\n" not in str(caught.value)
