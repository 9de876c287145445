"""Event files, read back by TensorBoard's own reader."""

import threading
from pathlib import Path

import numpy as np
import pytest
from tensorboard.summary.writer import event_file_writer
from tensorboard.summary.writer.record_writer import RecordWriter

from megafuser.watching.excerpt_markdown import markdown
from megafuser.watching.gate_pictures import coloured_text, gate_matrix
from megafuser.watching.tensorboard import TensorBoardLog
from megafuser.watching.token_samples import Seen
from tests.unit.watching.made_up import excerpt, image, read_events, text

DOMAINS, SPECIALISTS = ["text", "code"], ["a", "b"]


@pytest.fixture(autouse=True)
def files_are_numbered_from_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    """TensorBoard reads the files of one second in the order of their numbers as text, 10 before 9."""
    monkeypatch.setattr(event_file_writer, "_global_uid", event_file_writer.AtomicCounter(0))


def line(step: int, split: str = "train", **more: float) -> dict[str, object]:
    return {"stage": "joint", "split": split, "step": step, "loss": 10.0 + step, **more}


def test_every_number_is_a_curve_and_nothing_else_is(tmp_path: Path) -> None:
    log = TensorBoardLog(tmp_path, 0, "joint")
    more = {"checkpoint_stall_seconds": 1.5, "grad_norm/gate": 0.25, "loss_spike": 1}
    log.write(line(1, **more) | {"note": "text", "nothing": None})
    log.write(line(2, "valid"))
    log.close()
    events = read_events(tmp_path / "joint")
    found = {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    assert found == {
        "train/loss": [(1, 11.0)],
        "train/checkpoint_stall_seconds": [(1, 1.5)],
        "train/grad_norm/gate": [(1, 0.25)],
        "train/loss_spike": [(1, 1.0)],
        "valid/loss": [(2, 12.0)],
    }


def test_steps_that_are_done_again_stand_there_once(tmp_path: Path) -> None:
    for done, steps in ((0, (1, 2, 3, 4)), (2, (3, 4, 5))):
        log = TensorBoardLog(tmp_path, done, "warmup")
        for step in steps:
            log.write(line(step) | {"loss": float(10 * done + step)})
            log.gate(line(step, "valid", **{"gate/text/a": 0.5}), DOMAINS, SPECIALISTS)
        log.close()
    events = read_events(tmp_path / "warmup")
    steps = [(e.step, e.value) for e in events.Scalars("train/loss")]
    assert steps == [(1, 1.0), (2, 2.0), (3, 23.0), (4, 24.0), (5, 25.0)]
    assert [e.step for e in events.Images("valid/gate_matrix")] == [1, 2, 3, 4, 5]


def test_a_full_disk_costs_curves_but_not_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    write, full = RecordWriter.write, [False]

    def may_be_full(self: RecordWriter, content: bytes) -> None:
        if full[0]:
            raise OSError(28, "No space left on device")
        write(self, content)

    monkeypatch.setattr(RecordWriter, "write", may_be_full)
    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    log = TensorBoardLog(tmp_path, 0, "joint")
    log.write(line(1))
    log.flush()
    full[0] = True
    for step in (2, 3):
        log.write(line(step))
        log.gate(line(step, "valid"), DOMAINS, SPECIALISTS)
        log.flush()
    assert len(caplog.records) == 1 and "curves are left out until there is room" in caplog.text
    full[0] = False
    log.flush()
    log.write(line(4))
    log.close()
    assert [e.step for e in read_events(tmp_path / "joint").Scalars("train/loss")] == [1, 4]


def test_the_gate_is_a_picture_by_domain_and_specialist(tmp_path: Path) -> None:
    log = TensorBoardLog(tmp_path, 0, "joint")
    log.gate(line(4, "valid", **{"gate/code/a": 0.2, "gate/code/b": 0.8}), DOMAINS, SPECIALISTS)
    log.close()
    weights = np.array([[np.nan, np.nan], [0.2, 0.8]])
    found = image(read_events(tmp_path / "joint"), "valid/gate_matrix")
    assert np.array_equal(found, gate_matrix(weights, DOMAINS, SPECIALISTS))


def test_weights_are_histograms_and_samples_texts_and_pictures(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    weights = [generator.dirichlet([1, 3], count).astype(np.float32) for count in (500, 300)]
    samples = [excerpt(["x", "y"], [[0.9, 0.1], [0.2, 0.8]], domain) for domain in ("text", "text", "code")]
    log = TensorBoardLog(tmp_path, 0, "joint")
    log.tokens(Seen(weights, samples), 8, DOMAINS, SPECIALISTS)
    log.close()
    events = read_events(tmp_path / "joint")
    together = np.concatenate(weights)
    groups = {"": together, "text/": weights[0], "code/": weights[1]}
    for prefix, values in groups.items():
        for k, name in enumerate(SPECIALISTS):
            (histogram,) = events.Histograms(f"valid/gate_weight/{prefix}{name}")
            found, expected = histogram.histogram_value, np.histogram(values[:, k], np.linspace(0, 1, 41))[0]
            assert histogram.step == 8 and found.num == len(values)
            assert found.sum == pytest.approx(float(values[:, k].sum()), rel=1e-5)
            limits = np.array(found.bucket_limit)
            for upper, count in zip(np.linspace(0, 1, 41)[1:], expected, strict=True):
                own = [c for limit, c in zip(limits, found.bucket, strict=True) if abs(limit - upper) < 1e-6]
                assert sum(own) == count, (prefix, name, upper)
    for index, tag in enumerate(("valid/sample/text/0", "valid/sample/text/1", "valid/sample/code/0")):
        assert text(events, tag) == markdown(samples[index], SPECIALISTS)
        assert np.array_equal(image(events, tag), coloured_text(samples[index], SPECIALISTS))


def test_a_domain_without_a_token_has_no_histogram(tmp_path: Path) -> None:
    log = TensorBoardLog(tmp_path, 0, "joint")
    log.tokens(Seen([np.full((3, 2), 0.5), np.zeros((0, 2))], []), 1, DOMAINS, SPECIALISTS)
    log.close()
    tags = read_events(tmp_path / "joint").Tags()["histograms"]
    assert sorted(tags) == [f"valid/gate_weight/{name}" for name in ("a", "b", "text/a", "text/b")]


def test_weights_that_are_no_numbers_end_no_run(tmp_path: Path) -> None:
    """As of a model that diverged: its samples are shown, histograms are of the tokens that have weights."""
    log = TensorBoardLog(tmp_path, 0, "joint")
    nan, half = np.full((3, 2), np.nan), np.full((4, 2), 0.5)
    log.tokens(Seen([nan, np.concatenate([nan, half])], [excerpt(["x"], [[np.nan, np.nan]])]), 1, DOMAINS, SPECIALISTS)
    log.close()
    events = read_events(tmp_path / "joint")
    tags = [f"valid/gate_weight/{prefix}{name}" for prefix in ("", "code/") for name in SPECIALISTS]
    assert events.Tags()["histograms"] == tags
    assert {events.Histograms(tag)[0].histogram_value.num for tag in tags} == {4}
    assert events.Tags()["images"] != []
