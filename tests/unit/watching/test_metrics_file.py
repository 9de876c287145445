"""Lines of metrics.jsonl: what they say, and that no step stands there twice, whenever the process dies."""

import json
import os
from io import RawIOBase
from pathlib import Path

import pytest

from megafuser.watching.metrics_file import MetricsFile


def line(stage: str, step: int, split: str = "train") -> dict[str, object]:
    return {"stage": stage, "split": split, "step": step, "loss": 1.0 / step}


def write(path: Path, stage: str, last_step: int, steps: range) -> None:
    file = MetricsFile(path, stage, last_step)
    for step in steps:
        file.write(line(stage, step))
        file.write(line(stage, step, "valid"))
    file.close()


def read(path: Path) -> list[tuple[str, int, str]]:
    lines = map(json.loads, path.read_text().splitlines())
    return [(line["stage"], line["step"], line["split"]) for line in lines]


def expected(stage: str, steps: range) -> list[tuple[str, int, str]]:
    return [(stage, step, split) for step in steps for split in ("train", "valid")]


@pytest.mark.parametrize("cut", [1, 20, 70])
def test_a_kill_in_the_middle_of_a_line(tmp_path: Path, cut: int) -> None:
    """Back at the checkpoint of step 4, with six steps and a piece of the seventh written."""
    path = tmp_path / "metrics.jsonl"
    write(path, "warmup", 0, range(1, 4))
    write(path, "joint", 0, range(1, 7))
    path.write_text(path.read_text() + json.dumps(line("joint", 7))[:cut])
    write(path, "joint", 4, range(5, 9))
    assert read(path) == expected("warmup", range(1, 4)) + expected("joint", range(1, 9))


def test_a_kill_between_a_line_and_its_end(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write(path, "joint", 0, range(1, 3))
    path.write_text(path.read_text().removesuffix("\n"))
    write(path, "joint", 1, range(2, 4))
    assert read(path) == expected("joint", range(1, 4))


def test_the_other_stage_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write(path, "warmup", 0, range(1, 9))
    write(path, "joint", 0, range(1, 3))
    assert read(path) == expected("warmup", range(1, 9)) + expected("joint", range(1, 3))


def test_what_is_no_json_is_not_kept(tmp_path: Path) -> None:
    """Older versions wrote NaN, at which other readers stop."""
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"stage": "joint", "split": "train", "step": 1, "loss": NaN, "samples": 3}\n')
    MetricsFile(path, "joint", 1).close()
    assert path.read_text() == '{"stage": "joint", "split": "train", "step": 1, "samples": 3}\n'


def test_a_line_is_visible_at_once(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    file = MetricsFile(path, "joint", 0)
    file.write(line("joint", 1))
    assert read(path) == [("joint", 1, "train")]
    file.close()


class Disk:
    """A file on a disk with so many bytes of room."""

    def __init__(self, file: RawIOBase, room: int) -> None:
        self._file, self.room = file, room

    def write(self, content: bytes) -> int:
        if not self.room:
            raise OSError(28, "No space left on device")
        count = self._file.write(content[: self.room])
        self.room -= count or 0
        return count or 0

    def __getattr__(self, name: str) -> object:
        return getattr(self._file, name)


def test_lines_wait_for_room_on_a_full_disk(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Every line is there once and whole, though the disk took a part of one."""
    path = tmp_path / "metrics.jsonl"
    file = MetricsFile(path, "joint", 0)
    disk = file._file = Disk(file._file, 100)
    for step in range(1, 5):
        file.write(line("joint", step))
    file.flush()
    assert len(path.read_bytes()) == 100
    assert [entry.message for entry in caplog.records] == [
        f"{path} cannot be written ([Errno 28] No space left on device); its lines wait for room"
    ]
    disk.room = 10_000
    file.write(line("joint", 5))
    assert read(path) == [("joint", step, "train") for step in range(1, 6)]
    disk.room = 0
    file.write(line("joint", 6))
    file.close()
    assert caplog.records[-1].message == f"{path} lacks its last lines, for which there was no room"


def test_lines_are_on_the_disk_before_a_checkpoint_goes_on_after_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a node that dies then takes steps with it that no later start does again."""
    file = MetricsFile(tmp_path / "metrics.jsonl", "joint", 0)
    file.write(line("joint", 1))
    flushed = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: flushed.append(os.path.samestat(os.fstat(descriptor), status)))
    status = (tmp_path / "metrics.jsonl").stat()
    file.flush()
    assert flushed == [True]


def test_a_line_that_is_none_is_left_out(tmp_path: Path) -> None:
    """As a node that dies may leave it, in a file whose length reached the disk before its content."""
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(json.dumps(line("joint", 1)).encode() + b"\n" + bytes(50) + b"\n")
    write(path, "joint", 1, range(2, 3))
    assert read(path) == [("joint", 1, "train"), *expected("joint", range(2, 3))]


def test_going_on_does_not_make_old_lines_new(tmp_path: Path) -> None:
    """The file's time is that of its last line, for `megafuser status`."""
    path = tmp_path / "metrics.jsonl"
    write(path, "joint", 0, range(1, 3))
    os.utime(path, (1000, 1000))
    MetricsFile(path, "joint", 1).close()
    assert path.stat().st_mtime == 1000
