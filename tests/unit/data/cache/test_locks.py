"""Runs that share caches: one makes each, whoever has left the locks."""

import errno
import fcntl
import logging
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from megafuser.config.data import DomainConfig
from megafuser.data.cache import loading
from megafuser.data.cache.loading import load_data
from megafuser.errors import UserError
from megafuser.runtime import file_lock
from tests.unit.data.cache.cases import POSITIONS, ROWS, configuration, numbered, write_samples


def load(config, tokenizers, split="train"):
    return load_data(config, tokenizers, ROWS, POSITIONS, [split])[0]


def caches(config):
    return sorted(path.name for path in (Path(config.run_dir) / "data").iterdir() if path.is_dir())


def test_two_runs_make_a_shared_cache_once(tmp_path, tokenizers, caplog, monkeypatch):
    """Another process holds the lock and puts the cache there meanwhile."""
    path = write_samples(tmp_path / "a.jsonl", numbered(8))
    config = configuration(tmp_path, {"math": DomainConfig((path,), (path,))})
    load(config, tokenizers)
    parent = Path(config.run_dir) / "data"
    (name,) = caches(config)
    shutil.move(parent / name, tmp_path / "made")
    lock = parent / f".{name}.lock"
    script = (
        "import fcntl, os, sys; f = open(sys.argv[1], 'w'); fcntl.flock(f, fcntl.LOCK_EX);"
        "print('held', flush=True); sys.stdin.readline(); os.rename(sys.argv[2], sys.argv[3])"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", script, lock, tmp_path / "made", parent / name],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert other.stdout is not None and other.stdout.readline() == "held\n"
    with lock.open("w") as file, pytest.raises(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    before = time.time_ns()
    info = loading.logger.info

    def let_it_go_on(message: str, *arguments: object) -> None:
        info(message, *arguments)
        if message.startswith("waiting for another process") and not other.stdin.closed:
            other.stdin.close()

    monkeypatch.setattr(loading.logger, "info", let_it_go_on)
    with caplog.at_level(logging.INFO):
        (domain,) = load(config, tokenizers)
    assert other.wait() == 0 and len(domain) == 8
    assert "waiting for another process" in caplog.text
    assert (parent / name / "statistics.json").stat().st_mtime_ns < before, "it is the other's"


@pytest.mark.parametrize("reason", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_without_locks_a_run_goes_on_and_warns_once(tmp_path, tokenizers, monkeypatch, caplog, reason):
    def flock(*_: object) -> None:
        raise OSError(reason, os.strerror(reason))

    monkeypatch.setattr(file_lock.fcntl, "flock", flock)
    path = write_samples(tmp_path / "a.jsonl", numbered(3))
    domains = {name: DomainConfig((path,), (path,)) for name in ("math", "text")}
    config = configuration(tmp_path, domains)
    assert [len(domain) for domain in load(config, tokenizers)] == [3, 3]
    assert [len(domain) for domain in load(config, tokenizers, "valid")] == [3, 3]
    told = [record.getMessage() for record in caplog.records if "file locks" in record.getMessage()]
    parent = Path(config.run_dir) / "data"
    assert told == [
        f"{parent} has no file locks ({os.strerror(reason)}); start no other run that shares it before its samples are "
        "made"
    ]
    assert not list(parent.glob(".*")), "nothing is left of the locks"


def locked_by_another_user(config, monkeypatch, modes):
    """What opening a lock gives, which a colleague made; a test that is root may open all files."""
    original = Path.open
    opened = []

    def refusing(self, mode="r", *arguments, **options):
        if self.name.endswith(".lock"):
            opened.append(mode)
            if mode in modes:
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self))
        return original(self, mode, *arguments, **options)

    (Path(config.run_dir) / "data").mkdir(parents=True)
    monkeypatch.setattr(Path, "open", refusing)
    return opened


def test_a_lock_of_another_user_is_waited_for_as_any_other(tmp_path, tokenizers, monkeypatch):
    """Left by a run that was killed, or of one that makes the samples now."""
    path = write_samples(tmp_path / "a.jsonl", numbered(3))
    config = configuration(tmp_path, {"math": DomainConfig((path,), (path,))})
    assert list(map(len, load(config, tokenizers))) == [3]
    (name,) = caches(config)
    parent = Path(config.run_dir) / "data"
    shutil.rmtree(parent)
    opened = locked_by_another_user(config, monkeypatch, modes=("w",))
    lock = parent / f".{name}.lock"
    lock.touch()
    held = os.open(lock, os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)
    told = []

    def let_it_go_on(message, *_):
        told.append(message)
        if message.startswith("waiting for another process"):
            os.close(held)

    monkeypatch.setattr(loading.logger, "info", let_it_go_on)
    assert list(map(len, load(config, tokenizers))) == [3]
    assert opened == ["w", "r"] and caches(config) == [name]
    assert sum(message.startswith("waiting for another process") for message in told) == 1
    assert lock.exists(), "it is not ours to remove"


def test_a_lock_of_another_user_that_goes_meanwhile(tmp_path, tokenizers, monkeypatch):
    path = write_samples(tmp_path / "a.jsonl", numbered(3))
    config = configuration(tmp_path, {"math": DomainConfig((path,), (path,))})
    modes = ["w"]
    opened = locked_by_another_user(config, monkeypatch, modes)
    make = Path.mkdir

    def once(self, *arguments, **options):
        if opened:
            modes.clear()
        make(self, *arguments, **options)

    monkeypatch.setattr(Path, "mkdir", once)
    assert list(map(len, load(config, tokenizers))) == [3]
    assert opened == ["w", "r", "w"]


def test_a_lock_that_was_waited_for_may_be_gone_with_its_directory(tmp_path, tokenizers, monkeypatch):
    """Who has failed to make the first caches takes the empty directory away."""
    path = write_samples(tmp_path / "a.jsonl", numbered(3))
    config = configuration(tmp_path, {"math": DomainConfig((path,), (path,))})
    lock = loading._lock
    calls = []

    def after_a_failure(file, directory):
        calls.append(directory)
        if len(calls) == 1:
            shutil.rmtree(directory.parent)
        return lock(file, directory)

    monkeypatch.setattr(loading, "_lock", after_a_failure)
    assert list(map(len, load(config, tokenizers))) == [3]
    assert len(calls) == 2


def test_a_lock_in_the_network_that_may_only_be_read_is_shared(tmp_path, monkeypatch):
    """NFS refuses an exclusive one of a file that is not open to be written."""
    flock, asked = file_lock.fcntl.flock, []

    def as_in_the_network(file, kind):
        asked.append(kind)
        if kind & fcntl.LOCK_EX:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        flock(file, kind)

    monkeypatch.setattr(file_lock.fcntl, "flock", as_in_the_network)
    (tmp_path / "lock").touch()
    with (tmp_path / "lock").open() as file:
        assert loading._lock(file, tmp_path / "cache")
    assert asked == [fcntl.LOCK_EX | fcntl.LOCK_NB, fcntl.LOCK_SH | fcntl.LOCK_NB]


def test_a_lock_that_cannot_be_opened_is_told(tmp_path, tokenizers, monkeypatch):
    path = write_samples(tmp_path / "a.jsonl", numbered(3))
    config = configuration(tmp_path, {"math": DomainConfig((path,), (path,))})
    locked_by_another_user(config, monkeypatch, modes=("w", "r"))
    with pytest.raises(UserError, match=r"\.lock is another user's and cannot be opened; .* set data\.cache_dir"):
        load(config, tokenizers)
