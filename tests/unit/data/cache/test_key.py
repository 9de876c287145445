"""Every fact that decides a domain's samples or their counts is in their key: each alone makes another one."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from megafuser.config.data import LengthConfig, SourceConfig
from megafuser.config.specialists import TemplateConfig
from megafuser.data.cache import key
from megafuser.data.cache.key import Task, cache_key, cache_name
from megafuser.data.tokenization import EncoderSpec, load_tokenizers
from tests.tiny_models import make_tokenizer
from tests.unit.data.cache.cases import numbered, write_samples

CHAT = "{% for m in messages %}{{ m.content }}\n{% endfor %}"


@pytest.fixture
def own(tmp_path: Path) -> list[Any]:
    """Two tokenizers that differ in nothing, of this test's own."""
    for name in ("a", "b"):
        make_tokenizer(tmp_path / name)
    return list(load_tokenizers({name: tmp_path / name for name in ("a", "b")}).values())


@pytest.fixture
def task(tmp_path: Path) -> Task:
    encoder = EncoderSpec(("plain", "plain"), end_id=2, shared_vocabulary=320, limit=64, rows=(320, 320))
    source = SourceConfig(path=write_samples(tmp_path / "a.jsonl", numbered(3)))
    return Task("math", "train", (source,), ("a", "b"), "train", 0.25, "stop", encoder)


def encoder(**changes: Any) -> Callable[[Task], Task]:
    return lambda task: dataclasses.replace(task, encoder=dataclasses.replace(task.encoder, **changes))


def source(**changes: Any) -> Callable[[Task], Task]:
    return lambda task: dataclasses.replace(task, sources=(dataclasses.replace(task.sources[0], **changes),))


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(encoder(end_id=1), id="end id"),
        pytest.param(encoder(templates=("plain", "chatml")), id="template"),
        pytest.param(encoder(templates=(TemplateConfig("{{ instruction }}"), "plain")), id="template of one's own"),
        pytest.param(encoder(templates=(TemplateConfig(" {{ instruction }}"), "plain")), id="another of one's own"),
        pytest.param(encoder(shared_vocabulary=319), id="shared vocabulary"),
        pytest.param(encoder(limit=63), id="limit"),
        pytest.param(encoder(rows=(320, 319)), id="rows"),
        pytest.param(encoder(too_long="truncate"), id="too long"),
        pytest.param(encoder(lengths=LengthConfig(min_tokens=1)), id="lengths"),
        pytest.param(source(fields={"instruction": "question"}), id="fields"),
        pytest.param(lambda task: dataclasses.replace(task, sources=task.sources * 2), id="sources"),
        pytest.param(lambda task: dataclasses.replace(task, keep="valid"), id="side of the split"),
        pytest.param(lambda task: dataclasses.replace(task, keep="all"), id="no split"),
        pytest.param(lambda task: dataclasses.replace(task, valid_fraction=0.5), id="valid fraction"),
        pytest.param(lambda task: dataclasses.replace(task, on_error="skip"), id="on error"),
        pytest.param(lambda task: dataclasses.replace(task, specialists=("b", "a")), id="order of specialists"),
    ],
)
def test_a_changed_task_has_another_key(task: Task, own: list[Any], change: Callable[[Task], Task]) -> None:
    changed = change(task)
    assert changed != task
    assert cache_key(Path(cache_name(changed, own))) != cache_key(Path(cache_name(task, own)))


@pytest.mark.parametrize("library", ["tokenizers_library", "transformers"])
def test_versions_count(task: Task, own: list[Any], monkeypatch: pytest.MonkeyPatch, library: str) -> None:
    before = cache_name(task, own)
    monkeypatch.setattr(getattr(key, library), "__version__", "0.0.1")
    assert cache_name(task, own) != before


def test_the_format_counts(task: Task, own: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    before = cache_name(task, own)
    monkeypatch.setattr(key, "FORMAT", key.FORMAT + 1)
    assert cache_name(task, own) != before


def _another_token(tokenizer: Any) -> None:
    tokenizer.add_tokens(["seven"])


def _another_chat_template(tokenizer: Any) -> None:
    tokenizer.chat_template = CHAT


def _another_end(tokenizer: Any) -> None:
    tokenizer.eos_token = "<unk>"


def _nothing_in_front(tokenizer: Any) -> None:
    tokenizer.backend_tokenizer.post_processor = None


@pytest.mark.parametrize("change", [_another_token, _another_chat_template, _another_end, _nothing_in_front])
@pytest.mark.parametrize("which", [0, 1])
def test_tokenizers_count(task: Task, own: list[Any], change: Callable[[Any], None], which: int) -> None:
    before = cache_name(task, own)
    change(own[which])
    assert cache_name(task, own) != before


def test_the_order_of_tokenizers_counts(task: Task, own: list[Any]) -> None:
    _another_token(own[1])
    assert cache_name(task, own) != cache_name(task, own[::-1])


def test_the_date_that_a_chat_template_gets_counts(task: Task, own: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """And only there: other samples are not tokenized again when it changes."""
    own[0].chat_template = '{{ strftime_now("%d %b %Y") }}' + CHAT
    asking, others = encoder(templates=("hf", "plain"))(task), task
    before = cache_name(asking, own), cache_name(others, own)
    monkeypatch.setattr(key, "CHAT_DATE", key.CHAT_DATE.replace(year=2025))
    assert cache_name(asking, own) != before[0] and cache_name(others, own) == before[1]


def test_contents_and_suffix_count_and_the_place_does_not(tmp_path: Path, task: Task, own: list[Any]) -> None:
    before = cache_name(task, own)
    moved = source(path=write_samples(tmp_path / "elsewhere" / "b.jsonl", numbered(3)))(task)
    assert cache_name(moved, own) == before
    for other in (("c.jsonl", numbered(4)), ("d.json", numbered(3))):
        assert cache_name(source(path=write_samples(tmp_path / other[0], other[1]))(task), own) != before


def test_the_fraction_counts_only_where_it_splits(task: Task, own: list[Any]) -> None:
    whole = dataclasses.replace(task, keep="all")
    assert cache_name(whole, own) == cache_name(dataclasses.replace(whole, valid_fraction=0.5), own)


def test_domain_and_split_are_in_the_name(task: Task, own: list[Any]) -> None:
    assert cache_name(task, own).startswith("math-train-")
    assert cache_name(dataclasses.replace(task, domain="code", split="valid"), own).startswith("code-valid-")
