"""Every format in blocks: the same rows as written, numbered, in bounded pieces, and what damage is told."""

import gzip
import json
import pickle
import tracemalloc
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from megafuser.config.data import SourceConfig
from megafuser.data.sources import arrays, jsonl
from megafuser.data.sources.files import size_bytes
from megafuser.data.sources.reading import BLOCK_BYTES, read_blocks
from megafuser.data.sources.records import BadRecord, Block
from megafuser.data.sources.samples import Sample, parse_block
from megafuser.errors import UserError

ROWS = [{"instruction": f"q{n} é \\ud \U0001f600", "response": "a" * (n % 50 + 1), "id": f"i{n}"} for n in range(700)]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS).encode()


def write(directory: Path, name: str, content: bytes) -> SourceConfig:
    (directory / name).write_bytes(content)
    return SourceConfig(path=str(directory / name))


def parse(source: SourceConfig, block_bytes: int = 4096) -> list[Sample | BadRecord]:
    return [
        one
        for block in read_blocks(source, block_bytes=block_bytes)
        for one in ([block] if isinstance(block, BadRecord) else parse_block(block, source.fields))
    ]


def kinds(source: SourceConfig, block_bytes: int = 4096) -> list[str | tuple[str, str]]:
    """Ids of samples; place behind the file's name and kind of the bad ones."""
    return [
        one.id if isinstance(one, Sample) else (one.where.removeprefix(str(source.path)), one.kind)
        for one in parse(source, block_bytes)
    ]


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "lines.json", "a.json", "a.json.gz", "a.parquet"])
def test_every_format_gives_the_same_samples(tmp_path, name):
    content = LINES if name.startswith(("a.jsonl", "lines")) else b"\xef\xbb\xbf \n" + json.dumps(ROWS).encode()
    source = write(tmp_path, name, gzip.compress(content) if name.endswith(".gz") else content)
    if name.endswith(".parquet"):
        parquet.write_table(pyarrow.Table.from_pylist(ROWS), source.path, row_group_size=100)
    samples = parse(source)
    assert [(one.id, one.turns[0]) for one in samples] == [(r["id"], (r["instruction"], r["response"])) for r in ROWS]
    unit = {"a.parquet": ": row ", "a.json": ": item ", "a.json.gz": ": item "}.get(name, ":")
    assert [one.where for one in samples] == [f"{source.path}{unit}{n + 1}" for n in range(len(ROWS))]
    blocks = list(read_blocks(source, block_bytes=4096))
    assert len(blocks) > (1 if name in ("a.json", "a.json.gz") else 5)
    assert sum(block.bytes_read for block in blocks) == size_bytes(source)
    assert pickle.loads(pickle.dumps(blocks)) == blocks


@pytest.mark.parametrize("block_bytes", [1, 7, 64, 10**6])
def test_lines_are_cut_at_any_block_size(tmp_path, block_bytes):
    source = write(
        tmp_path, "a.jsonl", b'\n{"instruction": "q", "response": "a"}\r\n\n\n{"instruction": "r", "response": "b"}'
    )
    assert [one.where[-2:] for one in parse(source, block_bytes)] == [":2", ":5"]


def test_a_line_that_is_too_long_is_skipped_and_never_held(tmp_path):
    source = write(tmp_path, "a.jsonl", b"")
    with open(source.path, "wb") as file:
        file.write(LINES[: LINES.index(b"\n") + 1])
        for _ in range(100):
            file.write(b"x" * (1 << 20))
        file.write(b"\n" + LINES)
    tracemalloc.start()
    told = kinds(source)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert told == ["i0", (":2", "line too long"), *(row["id"] for row in ROWS)]
    assert parse(source)[2].where.endswith(":3")
    assert peak < 48 << 20


@pytest.mark.parametrize("block_bytes", [3, 10, 1000])
def test_the_limit_of_a_line_is_the_same_at_any_block_size(tmp_path, monkeypatch, block_bytes):
    monkeypatch.setattr(jsonl, "LONGEST_RECORD", 40)
    fits, beyond = b"x" * 40 + b"\n", b"y" * 41 + b"\n"
    source = write(tmp_path, "a.jsonl", fits + beyond + fits + beyond + beyond + fits + b"y" * 41)
    blocks = list(read_blocks(source, block_bytes=block_bytes))
    lines = {b.first + n: item for b in blocks if isinstance(b, Block) for n, item in enumerate(b.items)}
    assert lines == {1: b"x" * 40, 3: b"x" * 40, 6: b"x" * 40}
    assert [b.where[-2:] for b in blocks if isinstance(b, BadRecord)] == [":2", ":4", ":5", ":7"]


def test_an_item_that_is_too_long_ends_an_array(tmp_path):
    source = write(tmp_path, "a.json", json.dumps([ROWS[0], {"instruction": "x" * (18 << 20)}, ROWS[1]]).encode())
    assert kinds(source) == ["i0", (": item 2", "item too long")]


def test_a_torn_file_is_told_from_other_damage(tmp_path):
    source = write(tmp_path, "a.jsonl", LINES[:-9])
    assert kinds(source)[-2:] == ["i698", (":700", "torn last line")]
    assert kinds(write(tmp_path, "a.jsonl", LINES[:-1]))[-1] == "i699"
    assert kinds(write(tmp_path, "a.jsonl", LINES[:-9] + b"\n"))[-1] == (":700", "not JSON")
    assert kinds(write(tmp_path, "a.jsonl", b'{"instruction": "q", "response": "\xc3'))[-1] == (":1", "torn last line")
    array = json.dumps(ROWS).encode()
    assert kinds(write(tmp_path, "a.json", array[:-9]))[-2:] == ["i698", (": item 700", "torn file")]


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.json.gz"])
def test_a_damaged_gzip_gives_what_is_before_the_damage(tmp_path, name):
    content = LINES if "jsonl" in name else json.dumps(ROWS).encode()
    packed = gzip.compress(content * (20 if "jsonl" in name else 1))
    for damaged in (packed[:-20], packed[:-100] + b"\xff" * 60 + packed[-40:]):
        told = kinds(write(tmp_path, name, damaged))
        assert len(told) > (12_000 if "jsonl" in name else 300) and told[-1][1] == "damaged gzip"
    assert kinds(write(tmp_path, name, b"no gzip at all"))[-1][1] == "damaged gzip"


def test_damaged_parquet_is_told_with_its_row(tmp_path):
    source = write(tmp_path, "a.parquet", LINES)
    assert kinds(source) == [(": row 1", "damaged Parquet")]
    parquet.write_table(pyarrow.Table.from_pylist(ROWS), source.path, row_group_size=100)
    content = bytearray(Path(source.path).read_bytes())
    offset = parquet.ParquetFile(source.path).metadata.row_group(5).column(0).data_page_offset
    content[offset : offset + 40] = b"\xff" * 40
    Path(source.path).write_bytes(content)
    for block_bytes in (4096, BLOCK_BYTES):  # many blocks, and less than one
        told = kinds(source, block_bytes)
        assert told[:-1] == [row["id"] for row in ROWS[:500]] and told[-1] == (": row 501", "damaged Parquet")


@pytest.mark.parametrize(
    ("content", "place", "kind"),
    [
        (b'[{"instruction": "q", "response": "a"}, {"instruction": "\xe9"}]', ": item 2", "not UTF-8"),
        (b'[{"instruction": "q", "response": "a"} {}]', ": item 2", "not JSON"),
        (b'[{"instruction": "q", "response": "a"}, 3]', ": item 2", "not an object"),
        (b'[{"instruction": "\\udc00", "response": "a"}]', ": item 1", "not UTF-8"),
        (b'[{"instruction": "\\ud800 \\ud83d\\ude00", "response": "a"}]', ": item 1", "half a surrogate pair"),
    ],
)
def test_bad_items_of_an_array(tmp_path, content, place, kind):
    assert kinds(write(tmp_path, "a.json", content))[-1] == (place, kind)


class _Bytewise:
    """A file that gives a few bytes at a time."""

    def __init__(self, content: bytes, size: int) -> None:
        self.content, self.size = content, size

    def read(self, _: int) -> bytes:
        given, self.content = self.content[: self.size], self.content[self.size :]
        return given


@pytest.mark.parametrize("size", [1, 2, 5, 13, 1000])
@pytest.mark.parametrize(
    ("text", "half"),
    [
        (rb"\ud83d\ude00" * 9, False),
        (rb"\ud83d\uDE00\\ud800 \\\\ud800", False),
        (rb"x\ud83d", True),
        (b"x" * 40 + rb"\\\uD83Dx" + b"x" * 40, True),
        (rb"\ud83d\ud83d\ude00", True),
    ],
)
def test_half_pairs_are_found_wherever_the_bytes_are_cut(text, half, size):
    watched = arrays._Watched(_Bytewise(text, size))
    # What Python's own parser makes of it.
    assert any("\ud800" <= character <= "\udfff" for character in json.loads(b'"' + text + b'"')) == half
    found = False
    try:
        while watched.read(1):
            pass
    except arrays._HalfPair:
        found = True
    assert found == half


def test_only_files_that_can_be_samples_are_read(tmp_path):
    for name in ("a.csv", "a.jsonl.zst"):
        with pytest.raises(UserError, match="is not read; give JSONL"):
            list(read_blocks(write(tmp_path, name, b"x")))
