"""What a plan says of tokenizers before conversion, against the functions that a stage uses and ids by hand."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from megafuser.config.data import DataConfig, DomainConfig
from megafuser.config.schema import RunConfig
from megafuser.config.specialists import SpecialistConfig
from megafuser.errors import UserError
from megafuser.planning.cards import read_cards
from megafuser.planning.vocabularies import compare_tokenizers
from tests.cli.test_startup import huggingface_configuration
from tests.tiny_models import make_tokenizer


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    """Two Hugging Face directories, without weights; the second has two tokens more."""
    for name, extra in (("text", 0), ("code", 2)):
        (tmp_path / name).mkdir()
        make_tokenizer(tmp_path / name, extra)
        (tmp_path / name / "config.json").write_text(json.dumps(huggingface_configuration(extra)))
    return RunConfig(
        run_dir="run",
        specialists=tuple(SpecialistConfig(name, str(tmp_path / name), "plain") for name in ("text", "code")),
        data=DataConfig(domains={"text": DomainConfig(("a.jsonl",), ("b.jsonl",))}),
    )


def test_what_agrees_is_said_with_its_numbers(config: RunConfig, tmp_path: Path) -> None:
    shared = len(json.loads((tmp_path / "text" / "tokenizer.json").read_text())["model"]["vocab"])
    *notes, last = read_cards(config)[1]
    assert [note.endswith("not converted yet") for note in notes] == [True, True]
    assert last == f"the specialists' tokenizers agree: {shared:,} shared ids; responses end with '</s>' (id 2)"


def test_an_end_token_that_not_all_have_is_refused(config: RunConfig) -> None:
    other = replace(config, data=replace(config.data, end_token="<extra_0>"))
    with pytest.raises(UserError, match=r"ids of data\.end_token '<extra_0>' differ \(text: none, code: \d+\)"):
        read_cards(other)


def test_tokenizers_that_differ_are_refused(config: RunConfig, tmp_path: Path) -> None:
    path = tmp_path / "code" / "tokenizer.json"
    content = json.loads(path.read_text())
    vocabulary = content["model"]["vocab"]
    a, b = (next(token for token, own in vocabulary.items() if own == one) for one in (10, 11))
    vocabulary[a], vocabulary[b] = 11, 10
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match="shared vocabulary is not a prefix of their ids: id 10 is"):
        read_cards(config)


def test_nothing_is_compared_where_a_tokenizer_is_missing(config: RunConfig, tmp_path: Path) -> None:
    (tmp_path / "code" / "tokenizer.json").unlink()
    cards, notes = read_cards(config)
    assert len(notes) == 2 and notes[1].endswith("not converted yet, without a tokenizer to compare")
    assert compare_tokenizers(config, cards) is None
