"""A file of records, as one killed process after another leaves it."""

import json
from pathlib import Path

import pytest

from megafuser.runtime import file_lock
from megafuser.runtime.append_log import AppendLog
from tests.full_disk import full_disk


def _open(path: Path, *, exclusive: bool = False) -> AppendLog:
    return AppendLog(path, lambda record: "a" in record, exclusive=exclusive)


def test_records_are_on_disk_while_the_log_is_open(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "log.jsonl"
    log = _open(path)
    assert log.records == [] and not log.damaged
    log.append({"a": "ünd"})
    assert path.read_text("utf-8") == '{"a": "ünd"}\n'
    log.close()
    log = _open(path)
    assert log.records == [{"a": "ünd"}] and not log.damaged
    log.append({"a": 2})
    log.close()
    assert [json.loads(line) for line in path.read_text("utf-8").splitlines()] == [{"a": "ünd"}, {"a": 2}]


@pytest.mark.parametrize("rest", [b'{"a": 1}', b"\0\0\n", b"[1]\n", b'{"b": 1}\n', b"nonsense\n", b"\xff\n"])
def test_what_is_damaged_is_cut_off_with_what_follows(tmp_path: Path, rest: bytes) -> None:
    path = tmp_path / "log.jsonl"
    path.write_bytes(b'{"a": 0}\n' + rest + (b'{"a": 2}\n' if rest.endswith(b"\n") else b""))
    log = _open(path)
    assert log.records == [{"a": 0}] and log.damaged and path.read_bytes() == b'{"a": 0}\n'
    log.append({"a": 3})
    log.close()
    assert path.read_bytes() == b'{"a": 0}\n{"a": 3}\n'


def test_an_exclusive_one_keeps_others_out_and_is_not_harmed_by_them(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    log = _open(path, exclusive=True)
    log.append({"a": 1})
    with pytest.raises(BlockingIOError):
        _open(path, exclusive=True)
    log.append({"a": 2})
    log.close()
    assert len(_open(path, exclusive=True).records) == 2


def test_where_there_are_no_locks_it_opens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def without_locks(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(file_lock.fcntl, "flock", without_locks)
    assert _open(tmp_path / "log.jsonl", exclusive=True).records == []


def test_what_a_full_disk_took_of_a_record_is_cut_off_and_nothing_comes_later(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    log = _open(path)
    log.append({"a": 1})
    whole = path.read_bytes()
    with full_disk(len(whole) + 5), pytest.raises(OSError, match="too large"):
        log.append({"a": "second"})
    log.close()
    assert path.read_bytes() == whole + b'{"a":'
    log = _open(path)
    assert log.records == [{"a": 1}] and log.damaged and path.read_bytes() == whole
