"""A checkpoint stays while it is read, by this process or another."""

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from megafuser.checkpoint.read_lock import reading, remove_unless_read
from megafuser.runtime import file_lock

ROOT = Path(__file__).parents[3]


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    directory = tmp_path / "step_000001"
    (directory / "weights").mkdir(parents=True)
    (directory / "manifest.json").write_text("{}")
    return directory


def test_it_stays_while_it_is_read(checkpoint: Path) -> None:
    with reading(checkpoint):
        with reading(checkpoint):
            assert not remove_unless_read(checkpoint)
        assert not remove_unless_read(checkpoint)
        assert (checkpoint / "weights").is_dir()
    assert remove_unless_read(checkpoint)
    assert list(checkpoint.parent.iterdir()) == []


def test_another_process_reads_it(checkpoint: Path) -> None:
    code = """
        import sys
        from megafuser.checkpoint.read_lock import reading
        with reading(sys.argv[1]):
            print("reading", flush=True)
            sys.stdin.read()
    """
    command = [sys.executable, "-c", textwrap.dedent(code), str(checkpoint)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as reader:
        assert reader.stdout is not None and reader.stdout.readline() == "reading\n"
        assert not remove_unless_read(checkpoint)
        reader.communicate("")
    assert remove_unless_read(checkpoint)


def test_what_has_no_manifest_cannot_be_read(checkpoint: Path) -> None:
    (checkpoint / "manifest.json").unlink()
    with reading(checkpoint):
        assert remove_unless_read(checkpoint)


def test_where_there_are_no_locks_it_is_removed(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def without_locks(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(file_lock.fcntl, "flock", without_locks)
    with reading(checkpoint):
        assert remove_unless_read(checkpoint)
