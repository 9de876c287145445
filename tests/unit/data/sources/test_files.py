"""What is found out before anything is read: missing, empty and damaged sources, and hashes of contents."""

import pytest
import xxhash

from megafuser.config.data import DataConfig, DomainConfig, SourceConfig
from megafuser.data.sources.files import check_sources, size_bytes, source_hash
from megafuser.errors import UserError


def test_the_first_bad_source_is_told_with_its_key(tmp_path):
    for name, content in {"good.jsonl": b"{}", "empty.jsonl": b"", "bad.parquet": b"x" * 100, "a.csv": b"x"}.items():
        (tmp_path / name).write_bytes(content)

    def check(*train: str, valid: tuple[str, ...] = ()) -> None:
        paths = [tuple(str(tmp_path / name) for name in names) for names in (train, valid)]
        text = DomainConfig((str(tmp_path / "good.jsonl"),))
        check_sources(DataConfig(domains={"text": text, "math": DomainConfig(*paths)}))

    check("good.jsonl", valid=("good.jsonl",))
    for name, problem in {
        "none.jsonl": "does not exist",
        "empty.jsonl": "is empty",
        "bad.parquet": "is damaged, or no Parquet file",
        "a.csv": ".csv is not read",
        "": "is a directory",
    }.items():
        with pytest.raises(UserError) as caught:
            check("good.jsonl", name)
        assert problem in str(caught.value) and str(caught.value).endswith("; correct data.domains.math.train.1")
        with pytest.raises(UserError, match=r"data\.domains\.math\.valid\.0"):
            check("good.jsonl", valid=(name,))
    with pytest.raises(UserError, match="is not a directory"):
        check_sources(DataConfig(domains={"text": DomainConfig((SourceConfig(dataset=str(tmp_path / "none")),))}))


def test_the_hash_is_xxh3_of_the_bytes(tmp_path):
    content = bytes(range(256)) * 8192
    (tmp_path / "a.jsonl.gz").write_bytes(content)
    source = SourceConfig(path=str(tmp_path / "a.jsonl.gz"), fields={"response": "answer"})
    assert source_hash(source) == xxhash.xxh3_128_hexdigest(content)
    assert size_bytes(source) == len(content)
    with pytest.raises(UserError, match="does not exist"):
        source_hash(SourceConfig(path=str(tmp_path / "none")))
