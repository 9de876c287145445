"""Atomic directories and files: complete or absent, and nothing that was there is lost."""

import fcntl
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from megafuser.errors import UserError
from megafuser.runtime import atomic
from megafuser.runtime.atomic import atomic_directory, remove_leftovers, write_text_atomic


def _tree(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*"))


def test_directory_appears_only_when_complete(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "out"
    with atomic_directory(target) as temporary:
        assert temporary.parent == target.parent and temporary.name.startswith(f".out.tmp-{os.getpid()}-")
        (temporary / "sub").mkdir()
        (temporary / "sub" / "file").write_text("x")
        assert not target.exists()
    assert _tree(tmp_path) == ["deep", "deep/out", "deep/out/sub", "deep/out/sub/file"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_error_leaves_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    with pytest.raises(error), atomic_directory(tmp_path / "deep" / "er" / "out") as temporary:
        (temporary / "file").write_text("x")
        raise error
    assert _tree(tmp_path) == []


def test_existing_is_refused_and_kept(tmp_path: Path) -> None:
    target = tmp_path / "out"
    target.mkdir()
    (target / "old").write_text("old")
    with pytest.raises(UserError, match=r"out exists; .*--overwrite"), atomic_directory(target):
        pytest.fail("the block ran")
    (tmp_path / "file").write_text("a file")
    with pytest.raises(UserError, match="not a directory"), atomic_directory(tmp_path / "file", overwrite=True):
        pytest.fail("the block ran")
    with pytest.raises(UserError, match="cannot be made"), atomic_directory(tmp_path / "file" / "out"):
        pytest.fail("the block ran")
    assert _tree(tmp_path) == ["file", "out", "out/old"]


@pytest.fixture(params=["exchange", "two renames"])
def replacing(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Either way to replace a directory; there are file systems that have the second one only."""
    if request.param == "two renames":
        monkeypatch.setattr(atomic, "_exchange", lambda one, other: False)


@pytest.mark.usefixtures("replacing")
def test_overwrite_keeps_the_old_until_the_new_is_complete(tmp_path: Path) -> None:
    target = tmp_path / "out"
    target.mkdir()
    (target / "old").write_text("old")
    with pytest.raises(RuntimeError), atomic_directory(target, overwrite=True) as temporary:
        (temporary / "new").write_text("new")
        raise RuntimeError
    assert _tree(tmp_path) == ["out", "out/old"]
    with atomic_directory(target, overwrite=True) as temporary:
        (temporary / "new").write_text("new")
        assert (target / "old").read_text() == "old"
    assert _tree(tmp_path) == ["out", "out/new"]


def test_there_is_a_whole_directory_at_any_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The old one is there until the new one is, with no step in between."""
    target = tmp_path / "out"
    target.mkdir()
    (target / "old").write_text("old")

    def renamed(*_: object) -> None:
        raise AssertionError("not at once")

    monkeypatch.setattr(os, "rename", renamed)
    with atomic_directory(target, overwrite=True) as temporary:
        (temporary / "new").write_text("new")
    assert _tree(tmp_path) == ["out", "out/new"]


def test_directories_that_cannot_change_names_are_told(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    assert not atomic._exchange(tmp_path / "one", tmp_path / "nowhere")
    assert _tree(tmp_path) == ["one"]


def test_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with atomic_directory(tmp_path / "link", overwrite=True) as temporary:
        (temporary / "new").write_text("new")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "real" / "new").exists()


def test_what_a_killed_process_left_is_removed_and_a_living_one_spared(tmp_path: Path) -> None:
    code = """
        import os, signal, sys
        from megafuser.runtime.atomic import atomic_directory
        with atomic_directory(sys.argv[1]) as temporary:
            (temporary / "part").write_text("half")
            os.kill(os.getpid(), signal.SIGKILL)
    """
    root = Path(__file__).parents[3]
    subprocess.run([sys.executable, "-c", textwrap.dedent(code), str(tmp_path / "out")], cwd=root, check=False)
    (killed,) = tmp_path.iterdir()
    with atomic_directory(tmp_path / "out") as living:
        assert not killed.exists()
        with pytest.raises(RuntimeError), atomic_directory(tmp_path / "out"):
            assert living.exists()
            raise RuntimeError
    assert _tree(tmp_path) == ["out"]


def test_half_replaced_directory_is_brought_back(tmp_path: Path) -> None:
    old = tmp_path / ".out.old-1-0123abcd"
    old.mkdir()
    (old / "content").write_text("old")
    with pytest.raises(UserError, match="exists"), atomic_directory(tmp_path / "out"):
        pytest.fail("the block ran")
    assert _tree(tmp_path) == ["out", "out/content"]


def test_replaced_directory_goes_where_a_killed_process_left_it(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / ".out.old-1-0123abcd").mkdir()
    with pytest.raises(UserError, match="exists"), atomic_directory(tmp_path / "out"):
        pytest.fail("the block ran")
    assert _tree(tmp_path) == ["out"]


def test_directories_of_the_user_with_similar_names_are_spared(tmp_path: Path) -> None:
    mine = [".out.tmp-mine", ".out.old-mine", ".out.tmp-1-mine", ".out.v2.tmp-1-0123abcd"]
    for name in mine:
        (tmp_path / name).mkdir()
    with atomic_directory(tmp_path / "out"):
        pass
    assert _tree(tmp_path) == sorted([*mine, "out"])


def test_a_mount_point_is_refused_before_anything_is_made() -> None:
    with pytest.raises(UserError, match="/proc is a mount point"), atomic_directory("/proc", overwrite=True):
        pytest.fail("the block ran")


def test_text_is_replaced_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "latest"
    write_text_atomic(path, "step_000001\n")
    write_text_atomic(path, "Schritt zwölf\n")
    assert path.read_text(encoding="utf-8") == "Schritt zwölf\n"

    def fail(*_: object) -> None:
        raise OSError("no space")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="no space"):
        write_text_atomic(path, "lost")
    assert _tree(tmp_path) == ["latest"] and path.read_text(encoding="utf-8") == "Schritt zwölf\n"


def test_files_that_a_kill_has_left_are_removed_and_those_being_written_are_not(tmp_path: Path) -> None:
    left, written = tmp_path / ".latest.tmp-1-0123abcd", tmp_path / ".latest.tmp-2-0123abcd"
    for path in (left, written):
        path.write_text("step")
    others = [tmp_path / ".latest.tmp", tmp_path / "latest.tmp-1-0123abcd"]
    for path in others:
        path.write_text("the user's")
    with written.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        remove_leftovers(tmp_path)
        assert sorted(tmp_path.iterdir()) == sorted([written, *others])
    remove_leftovers(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted(others)


@pytest.fixture
def order(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """What is flushed, and what gets which name, by the last part of its path, in order."""
    done: list[tuple[str, str]] = []
    sync, rename, replace, exchange = os.fsync, os.rename, os.replace, atomic._exchange

    def name(path: object) -> str:
        return "temporary" if ".tmp-" in Path(str(path)).name else Path(str(path)).name

    def flushed(descriptor: int) -> None:
        done.append(("flushed", name(os.readlink(f"/proc/self/fd/{descriptor}"))))
        sync(descriptor)

    def named(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(one: object, other: object) -> Any:
            done.append(("named", name(other)))
            return original(one, other)

        return call

    monkeypatch.setattr(os, "fsync", flushed)
    monkeypatch.setattr(os, "rename", named(rename))
    monkeypatch.setattr(os, "replace", named(replace))
    monkeypatch.setattr(atomic, "_exchange", named(exchange))
    return done


@pytest.mark.parametrize("replaces", [False, True])
def test_a_directory_is_on_the_disk_before_it_has_its_name(
    tmp_path: Path, order: list[tuple[str, str]], replaces: bool
) -> None:
    """A machine that dies leaves a whole one: names may reach the disk before what they name."""
    target = tmp_path / "out"
    if replaces:
        target.mkdir()
    with atomic_directory(target, overwrite=True) as temporary:
        (temporary / "sub").mkdir()
        (temporary / "sub" / "file").write_text("x")
    flushed = [("flushed", name) for name in ("file", "sub", "temporary")]
    assert order == [*flushed, ("named", "out"), ("flushed", tmp_path.name)]


def test_a_text_is_on_the_disk_before_it_has_its_name(tmp_path: Path, order: list[tuple[str, str]]) -> None:
    write_text_atomic(tmp_path / "latest", "step_000001\n")
    assert order == [("flushed", "temporary"), ("named", "latest"), ("flushed", tmp_path.name)]
