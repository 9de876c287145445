"""Data sets, by the real library on a local directory, and what is told without it or without a network."""

import json
import sys
from pathlib import Path

import pytest

from megafuser.config.data import DataConfig, DomainConfig, SourceConfig
from megafuser.data.sources import hub
from megafuser.data.sources.files import check_sources, size_bytes, source_hash
from megafuser.data.sources.reading import read_blocks
from megafuser.data.sources.records import Block
from megafuser.errors import UserError
from tests.small_domain import read_samples

FIELDS = {"messages": "conversations", "role": "from", "content": "value"}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    hub._load.cache_clear()


def make(directory: Path, count: int = 300) -> SourceConfig:
    directory.mkdir(exist_ok=True)
    rows = [
        {
            "conversations": [{"from": "human", "value": f"q{n}"}, {"from": "gpt", "value": "a" * 100}],
            "source": "x",
            "score": n,
        }
        for n in range(count)
    ]
    (directory / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return SourceConfig(dataset=str(directory), fields=FIELDS)


def test_a_directory_gives_its_rows_in_blocks(tmp_path):
    source = make(tmp_path / "set")
    blocks = list(read_blocks(source, block_bytes=4096))
    assert len(blocks) > 3 and all(isinstance(block, Block) and block.bytes_read >= 4096 for block in blocks[:-1])
    assert set(blocks[0].items[0]) == {"conversations"}
    samples = read_samples([source])
    assert [one.turns for one in samples] == [((f"q{n}", "a" * 100),) for n in range(300)]
    assert samples[-1].where == f"{source.dataset}: row 300" and not samples[-1].named
    assert size_bytes(source) is None


def test_the_hash_is_that_of_the_rows(tmp_path, monkeypatch):
    import datasets

    first = source_hash(make(tmp_path / "set"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "other")
    hub._load.cache_clear()
    assert source_hash(make(tmp_path / "copy")) == first
    assert source_hash(make(tmp_path / "longer", count=301)) != first


def test_a_missing_split_and_a_missing_library_are_told(tmp_path, monkeypatch):
    source = make(tmp_path / "set")
    wrong = SourceConfig(dataset=source.dataset, split="trains")
    with pytest.raises(UserError, match=r"set does not load \(.*trains.*\); check `dataset`") as caught:
        list(read_blocks(wrong))
    assert "\n" not in str(caught.value)
    monkeypatch.setitem(sys.modules, "datasets", None)
    config = DataConfig(domains={"text": DomainConfig((source,))})
    for ask in (lambda: list(read_blocks(source)), lambda: check_sources(config)):
        with pytest.raises(UserError, match=r'pip install "megafuser\[datasets\]"'):
            ask()


def test_without_a_network_the_hub_is_told(tmp_path, monkeypatch):
    import datasets
    import huggingface_hub.constants

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"org/name \(main\) does not load \(.*check the network") as caught:
        list(read_blocks(SourceConfig(dataset="org/name", subset="main")))
    assert "\n" not in str(caught.value)
