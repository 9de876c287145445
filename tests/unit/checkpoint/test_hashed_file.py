"""Files that are hashed while they are written: on the disk with their hash, or given up."""

import os
from pathlib import Path

import pytest

from megafuser.checkpoint import hashed_file
from megafuser.checkpoint.hashed_file import HashedFile
from megafuser.checkpoint.manifest import hash_file


def test_the_hash_is_that_of_the_file_whatever_the_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hashed_file, "_BYTES_PER_CALL", 7)
    with HashedFile(tmp_path / "file") as file:
        for part in (b"short", b"", b"longer than a call", memoryview(b"seven!!")):
            assert file.write(part) == len(part)
    assert file.tell() == 30 and (tmp_path / "file").read_bytes() == b"shortlonger than a callseven!!"
    assert file.hash == hash_file(tmp_path / "file")


def test_it_is_finished_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed: list[int] = []
    sync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda descriptor: (flushed.append(descriptor), sync(descriptor)))
    with HashedFile(tmp_path / "file") as file:
        file.write(b"content")
        file.finish()
        assert file.closed and file.hash == hash_file(tmp_path / "file")
    assert len(flushed) == 1


def test_after_an_error_it_is_closed_without_a_hash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: pytest.fail("it was flushed"))
    with pytest.raises(KeyError), HashedFile(tmp_path / "file") as file:
        file.write(b"content")
        raise KeyError
    assert file.closed and file.hash == ""


def test_the_first_error_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    errors = [OSError(28, "No space left on device"), OSError(5, "Input/output error")]
    remaining = list(errors)

    def fail(*_: object) -> int:
        raise remaining.pop(0)

    monkeypatch.setattr(os, "write", fail)
    file = HashedFile(tmp_path / "file")
    for error in errors:
        with pytest.raises(OSError, match=error.strerror):
            file.write(b"content")
    file.close()
    assert file.error is errors[0]
