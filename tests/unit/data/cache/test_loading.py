"""Tokenized samples by way of the disk: equal to those made in memory, made once, and made again when they must be."""

import logging
import os
from pathlib import Path

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from megafuser.config.data import DomainConfig, LengthConfig, SourceConfig
from megafuser.config.specialists import TemplateConfig
from megafuser.data.cache import building, loading
from megafuser.data.cache.building import SPELLED_OUT
from megafuser.data.cache.loading import encoder_spec, load_data
from megafuser.data.first_samples import first_kept
from megafuser.data.sources.split import in_valid
from megafuser.errors import UserError
from tests.small_domain import read_samples, tokenize_domain
from tests.tiny_models import make_tokenizer
from tests.unit.data.cache.cases import POSITIONS, ROWS, configuration, numbered, write_samples


def load(config, tokenizers, split="train", positions=POSITIONS):
    return load_data(config, tokenizers, ROWS, positions, [split])[0]


def caches(config):
    return sorted(path.name for path in (Path(config.run_dir) / "data").iterdir() if path.is_dir())


def assert_same(domain, expected):
    assert [domain.sample_id(i) for i in range(len(domain))] == [expected.sample_id(i) for i in range(len(expected))]
    np.testing.assert_array_equal(domain.lengths, expected.lengths)
    np.testing.assert_array_equal(domain.response_lengths, expected.response_lengths)
    for sample in range(len(expected)):
        np.testing.assert_array_equal(domain.targets(sample), expected.targets(sample))
        for specialist in range(expected.lengths.shape[1]):
            for one, other in zip(domain.view(sample, specialist), expected.view(sample, specialist), strict=True):
                np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_cache_holds_what_memory_would(tmp_path, tokenizers, monkeypatch, workers):
    """In this process, and in two others, whose blocks come back in order."""
    monkeypatch.setattr(building, "_ALONE_BYTES", 0)
    monkeypatch.setattr(building, "_BLOCK_BYTES", 300)
    first = write_samples(tmp_path / "a.jsonl", numbered(70))
    second = write_samples(tmp_path / "b.jsonl", numbered(30, 100))
    config = configuration(tmp_path, {"math": DomainConfig((first, second), (second,))}, workers=workers)
    (domain,) = load(config, tokenizers)
    spec = encoder_spec(config, "math", tokenizers, ROWS, POSITIONS)
    expected = tokenize_domain("math", read_samples([first, second]), spec, list(tokenizers.values()))
    assert_same(domain, expected)
    assert domain.source_sizes == (70, 30) and domain.name == "math" and len(domain._batches) > 5


def test_it_is_made_once_and_both_splits_of_all_domains_lie_side_by_side(tmp_path, tokenizers, monkeypatch):
    path = write_samples(tmp_path / "a.jsonl", numbered(5))
    config = configuration(
        tmp_path, {"math": DomainConfig((path,), (path, path)), "text": DomainConfig((path,), (path,))}
    )
    train = load(config, tokenizers)
    assert [(domain.name, len(domain)) for domain in train] == [("math", 5), ("text", 5)]
    assert [len(domain) for domain in load(config, tokenizers, "valid")] == [10, 5]
    assert [name.rsplit("-", 1)[0] for name in caches(config)] == [
        "math-train",
        "math-valid",
        "text-train",
        "text-valid",
    ]
    monkeypatch.setattr(loading, "build", None)
    assert_same(load(config, tokenizers)[0], train[0])
    with pytest.raises(ValueError, match="splits must be"):
        load(config, tokenizers, "test")


def test_a_place_of_its_own_for_caches(tmp_path, tokenizers):
    path = write_samples(tmp_path / "a.jsonl", numbered(5))
    config = configuration(tmp_path, {"math": DomainConfig((path,), (path,))}, cache_dir=str(tmp_path / "shared"))
    load(config, tokenizers)
    assert len([path for path in (tmp_path / "shared").iterdir() if path.is_dir()]) == 1
    assert not Path(config.run_dir).exists()


@pytest.mark.parametrize(
    "change",
    [
        {"sequence_length": 400},
        {"too_long": "truncate"},
        {"on_error": "skip"},
        {"fields": {"instruction": "response", "response": "instruction"}},
        {"lengths": LengthConfig(max_response_tokens=8)},
    ],
)
def test_what_changes_the_samples_makes_another_cache(tmp_path, tokenizers, change):
    path = write_samples(tmp_path / "a.jsonl", numbered(9))
    domain_keys = {key: value for key, value in change.items() if key in ("fields", "lengths")}
    data_keys = {key: value for key, value in change.items() if key not in domain_keys}
    load(configuration(tmp_path, {"math": DomainConfig((path,), (path,))}), tokenizers)
    config = configuration(tmp_path, {"math": DomainConfig((path,), (path,), **domain_keys)}, **data_keys)
    load(config, tokenizers)
    assert len(caches(config)) == 2


def test_contents_count_and_places_do_not(tmp_path, tokenizers):
    path = write_samples(tmp_path / "a.jsonl", numbered(5))
    config = configuration(tmp_path, {"math": DomainConfig((path,), (path,))})
    load(config, tokenizers)
    moved = write_samples(tmp_path / "elsewhere" / "b.jsonl", numbered(5))
    load(configuration(tmp_path, {"math": DomainConfig((moved,), (path,))}), tokenizers)
    assert len(caches(config)) == 1
    write_samples(tmp_path / "a.jsonl", numbered(6))
    (domain,) = load(config, tokenizers)
    assert len(domain) == 6 and len(caches(config)) == 2


def test_the_smallest_limit_of_all_counts(tmp_path, tokenizers):
    samples = [{"instruction": "q", "response": "a"}, {"instruction": "q", "response": "seven " * 40}]
    path = write_samples(tmp_path / "a.jsonl", samples)
    config = configuration(tmp_path, {"math": DomainConfig((path,), (path,))})
    assert load(config, tokenizers, positions={"text": 512, "code": 40})[0].refused == {"longer than 40 positions": 1}
    config = configuration(tmp_path, {"math": DomainConfig((path,), (path,))}, sequence_length=20)
    (domain,) = load(config, tokenizers)
    assert domain.refused == {"longer than 20 positions": 1}
    assert domain.statistics["examples"] == {"longer than 20 positions": [f"{path}:2"]}


def test_without_validation_files_instructions_are_split(tmp_path, tokenizers):
    """Two answers to each question: both go to the same side."""
    samples = [sample | {"response": f"{answer}"} for sample in numbered(200) for answer in range(2)]
    path = write_samples(tmp_path / "a.jsonl", samples)
    config = configuration(tmp_path, {"math": DomainConfig((path,))}, valid_fraction=0.25)
    (train,), (valid,) = load(config, tokenizers), load(config, tokenizers, "valid")
    assert len(train) + len(valid) == 400 and len(valid) % 2 == 0 and 60 < len(valid) < 140
    expected = [sample.id for sample in read_samples([path]) if in_valid(sample, 0.25)]
    assert [valid.sample_id(i) for i in range(len(valid))] == expected
    assert not set(expected) & {train.sample_id(i) for i in range(len(train))}


BAD = [
    {"instruction": "q", "response": "a", "id": "one"},
    {"instruction": "q", "response": " "},
    {"instruction": "r", "response": "a", "id": "one"},
    {"instruction": "q", "response": None},
    {"instruction": "q", "response": "a"},
]


def test_bad_lines_stop_everything_and_leave_nothing(tmp_path, tokenizers):
    path = write_samples(tmp_path / "a.jsonl", BAD)
    good = write_samples(tmp_path / "b.jsonl", numbered(3))
    config = configuration(tmp_path, {"code": DomainConfig((good,), (good,)), "math": DomainConfig((path,), (path,))})
    with pytest.raises(UserError, match=r"a\.jsonl:2: `response` is empty.*data\.on_error=skip"):
        load(config, tokenizers)
    assert not Path(config.run_dir).exists()


def test_bad_lines_are_skipped_and_counted(tmp_path, tokenizers, caplog):
    path = write_samples(tmp_path / "a.jsonl", BAD)
    config = configuration(tmp_path, {"math": DomainConfig((path,), (path,))}, on_error="skip")
    with caplog.at_level(logging.INFO):
        (domain,) = load(config, tokenizers)
    assert [domain.sample_id(i) for i in range(len(domain))] == ["one", "a.jsonl:5"]
    counted = domain.statistics
    assert counted["bad"] == {"empty response": 1, "duplicate id": 1, "`response` is not text": 1}
    assert counted["examples"]["duplicate id"] == [f"{path}:3"]
    assert counted["duplicates"] == 1, "the last line says what the first does"
    assert "math train: 2 samples; skipped" in caplog.text


def test_a_used_id_is_told_with_its_place(tmp_path, tokenizers):
    path = write_samples(tmp_path / "a.jsonl", [BAD[0], BAD[2]])
    config = configuration(tmp_path, {"math": DomainConfig((path,), (path,))})
    with pytest.raises(UserError, match=r"a\.jsonl:2: the id 'one' was used before"):
        load(config, tokenizers)


def test_the_first_bad_line_is_told_whatever_its_kind(tmp_path, tokenizers):
    path = write_samples(tmp_path / "a.jsonl", [BAD[0], BAD[2], BAD[1]])
    config = configuration(tmp_path, {"math": DomainConfig((path,), (path,))})
    with pytest.raises(UserError, match=r"a\.jsonl:2: the id 'one' was used before"):
        load(config, tokenizers)


def test_only_kept_samples_are_counted_as_cut_or_as_spelling_control_tokens_out(tmp_path, tokenizers):
    long = "seven " * 60
    lines = [
        {"instruction": "q", "response": long, "id": "x"},
        {"instruction": "</s>", "response": long, "id": "x"},
        {"instruction": "</s>" * 100, "response": "a"},
        {"instruction": "what is </s>?", "response": "a"},
        {"instruction": "q", "response": "a"},
    ]
    path = write_samples(tmp_path / "a.jsonl", lines)
    domains = {"math": DomainConfig((path,), (path,))}
    config = configuration(tmp_path, domains, on_error="skip", too_long="truncate", sequence_length=40)
    (domain,) = load(config, tokenizers)
    counted = domain.statistics
    assert (len(domain), counted["truncated"], counted["spelled_out"]) == (3, 1, 1)
    assert counted["examples"][SPELLED_OUT] == [f"{path}:4"]


def test_counts_are_those_of_the_samples(tmp_path, tokenizers):
    path = write_samples(tmp_path / "a.jsonl", numbered(40))
    source = SourceConfig(path=path, weight=2.0)
    domains = {"math": DomainConfig((source,), (path,))}
    (whole,) = load(configuration(tmp_path, domains), tokenizers)
    config = configuration(tmp_path, domains, sequence_length=int(np.median(whole.lengths)))
    (domain,) = load(config, tokenizers)
    counted = domain.statistics
    assert 0 < len(domain) < 40 and sum(counted["dropped"].values()) == 40 - len(domain)
    assert (counted["samples"], counted["read"], counted["truncated"]) == (len(domain), 40, 0)
    assert counted["tokens"] == {"text": domain.lengths[:, 0].sum(), "code": domain.lengths[:, 1].sum()}
    assert counted["response_tokens"] == domain.response_lengths.sum()
    assert counted["longest_view_tokens"] == domain.lengths.max(axis=1).sum()
    assert counted["sources"] == [{"name": path, "read": 40, "kept": len(domain), "weight": 2.0}]
    assert sum(counted["lengths"]["responses"]) == len(domain)


def test_nothing_left_is_told(tmp_path, tokenizers):
    path = write_samples(tmp_path / "a.jsonl", [{"instruction": "q", "response": "seven " * 40}] * 3)
    config = configuration(tmp_path, {"math": DomainConfig((path,), (path,))}, sequence_length=20)
    with pytest.raises(UserError, match=r"no train sample of domain math is left: 3 \(longer than 20 positions\)"):
        load(config, tokenizers)
    few = write_samples(tmp_path / "b.jsonl", numbered(1))
    config = configuration(tmp_path, {"math": DomainConfig((few,))}, valid_fraction=1e-9)
    with pytest.raises(UserError, match="no valid sample of domain math is left, the share"):
        load(config, tokenizers, "valid")


def test_a_missing_source_is_told_with_its_key_before_anything_is_made(tmp_path, tokenizers):
    path = write_samples(tmp_path / "a.jsonl", numbered(3))
    domains = {"text": DomainConfig((path,), (path,)), "math": DomainConfig((path,), (str(tmp_path / "none.jsonl"),))}
    config = configuration(tmp_path, domains)
    with pytest.raises(UserError, match=r"none\.jsonl does not exist; correct data\.domains\.math\.valid\.0"):
        load(config, tokenizers, "valid")
    assert not Path(config.run_dir).exists()
    assert [len(domain) for domain in load(config, tokenizers)] == [3, 3], "which needs no validation file"


def test_a_template_that_fails_is_told_with_its_specialist(tmp_path, tokenizers):
    path = write_samples(tmp_path / "a.jsonl", numbered(3))
    config = configuration(tmp_path, {"text": DomainConfig((path,), (path,))})
    object.__setattr__(config.specialists[1], "template", "hf")
    with pytest.raises(UserError, match="specialist code: template 'hf': the tokenizer has no chat template"):
        load(config, tokenizers)
    with pytest.raises(UserError, match="specialist code: template 'hf': the tokenizer has no chat template"):
        first_kept(config, "text", tokenizers, ROWS, POSITIONS, 1)


class Fickle(PreTrainedTokenizerFast):
    """Gives a text other ids where it adds special tokens."""

    def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
        return {"input_ids": [1, 0] if add_special_tokens else [5]}


def test_a_tokenizer_that_cannot_be_used_is_told_before_workers_meet_it(tmp_path, tokenizers, monkeypatch):
    monkeypatch.setattr(building, "_ALONE_BYTES", 0)
    path = write_samples(tmp_path / "a.jsonl", numbered(3))
    config = configuration(tmp_path, {"text": DomainConfig((path,), (path,))}, workers=2)
    make_tokenizer(tmp_path / "code", 16)
    other = Fickle.from_pretrained(tmp_path / "code")
    for load_some in (load, lambda config, own: first_kept(config, "text", own, ROWS, POSITIONS, 1)):
        with pytest.raises(UserError, match=r"specialist code: the tokenizer in .*code changes a text's ids"):
            load_some(config, tokenizers | {"code": other})
    assert not Path(config.run_dir).exists()


@pytest.mark.parametrize("name", ["samples.arrow", "lengths.arrow", "statistics.json"])
@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_a_damaged_cache_is_made_again(tmp_path, tokenizers, caplog, name, damage):
    path = write_samples(tmp_path / "a.jsonl", numbered(20))
    config = configuration(tmp_path, {"math": DomainConfig((path,), (path,))})
    (whole,) = load(config, tokenizers)
    copies = [whole.targets(sample).copy() for sample in range(20)]
    file = Path(config.run_dir) / "data" / caches(config)[0] / name
    if damage == "cut":
        contents = file.read_bytes()
        file.unlink()
        file.write_bytes(contents[: len(contents) // 2])
    else:
        file.unlink()
    (domain,) = load(config, tokenizers)
    assert "is damaged" in caplog.text
    for sample, expected in enumerate(copies):
        np.testing.assert_array_equal(domain.targets(sample), expected)


def test_a_place_that_cannot_be_written_is_told(tmp_path, tokenizers):
    path = write_samples(tmp_path / "a.jsonl", numbered(3))
    (tmp_path / "file").write_text("")
    config = configuration(tmp_path, {"text": DomainConfig((path,), (path,))}, cache_dir=str(tmp_path / "file" / "x"))
    with pytest.raises(UserError, match=r"cannot be written .*; set data\.cache_dir"):
        load(config, tokenizers)


def test_a_worker_that_dies_ends_the_build(tmp_path, tokenizers, monkeypatch):
    monkeypatch.setattr(building, "_ALONE_BYTES", 0)
    monkeypatch.setattr(building, "encode_in_worker", _die)
    path = write_samples(tmp_path / "a.jsonl", numbered(3))
    config = configuration(tmp_path, {"text": DomainConfig((path,), (path,))}, workers=2)
    with pytest.raises(RuntimeError, match=r"ended by itself.*data\.workers"):
        load(config, tokenizers)
    assert not Path(config.run_dir).exists()


def _die(*_: object) -> None:
    os._exit(9)


def test_the_first_bad_line_of_a_file_stops_whatever_is_wrong_with_it(tmp_path, tokenizers):
    path = write_samples(tmp_path / "a.jsonl", [*numbered(2), {"instruction": "fails", "response": "a"}, BAD[1]])
    config = configuration(tmp_path, {"math": DomainConfig((path,), (path,))})
    template = TemplateConfig("{% if instruction == 'fails' %}{{ 1 // 0 }}{% endif %}{{ instruction }}")
    object.__setattr__(config.specialists[0], "template", template)
    with pytest.raises(UserError, match=r"a\.jsonl:3: template prompt .* fails"):
        load(config, tokenizers)


def test_a_chat_template_that_asks_for_the_date_is_told_at_the_start(tmp_path, tokenizers, monkeypatch, caplog):
    path = write_samples(tmp_path / "a.jsonl", numbered(3))
    config = configuration(tmp_path, {"math": DomainConfig((path,), (path,))})
    object.__setattr__(config.specialists[1], "template", "hf")
    template = '{{ strftime_now("%d %b %Y") }} {{ messages[-1].content }}'
    monkeypatch.setattr(tokenizers["code"], "chat_template", template)
    with caplog.at_level(logging.INFO):
        (domain,) = load(config, tokenizers)
    told = [record.getMessage() for record in caplog.records if "asks for the date" in record.getMessage()]
    assert told == ["specialist code: its chat template asks for the date, and always gets 2024-07-26"]
    assert "26 Jul 2024 count to 0" in tokenizers["code"].decode(domain.view(0, 1)[0])
