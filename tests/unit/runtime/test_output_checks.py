"""Outputs never replace what is not an earlier output."""

from pathlib import Path

import pytest

from megafuser.errors import UserError
from megafuser.runtime.output_checks import Mark, check_output, disk_size


@pytest.mark.parametrize(
    ("mark", "earlier"),
    [
        (Mark("manifest.json", "kind", "specialist"), '{"format_version": 1, "kind": "specialist"}'),
        (Mark("config.json", "model_type"), '{"model_type": "llama"}'),
    ],
)
@pytest.mark.parametrize("content", [None, '{"name": "a web page"}', '{"kind": "joint"}', "[1]", "{", "[" * 100_000])
def test_a_file_of_the_same_name_makes_no_earlier_output(
    tmp_path: Path, mark: Mark, earlier: str, content: str | None
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    check_output(out, {"--hf": tmp_path / "model"}, True, mark)  # empty
    (out / "thesis.tex").write_text("mine")
    if content is not None:
        (out / mark.file).write_text(content)
    with pytest.raises(UserError, match=f"is not an earlier output .it has no {mark.file} with a {mark.field}"):
        check_output(out, {"--hf": tmp_path / "model"}, True, mark)
    (out / mark.file).write_text(earlier)
    check_output(out, {"--hf": tmp_path / "model"}, True, mark)


def test_what_is_kept_may_be_around_an_output_and_not_in_it(tmp_path: Path) -> None:
    mark, run = Mark("statistics.json", "splits"), tmp_path / "run"
    (run / "data").mkdir(parents=True)
    (tmp_path / "config.yaml").write_text("")
    kept = [("run_dir", run), ("--config", tmp_path / "config.yaml")]
    check_output(run / "data" / "statistics", {}, False, mark, kept=kept)
    with pytest.raises(UserError, match=f"^--out {run} holds run_dir {run}, which would be replaced; choose another"):
        check_output(run, {}, True, mark, kept=kept)
    with pytest.raises(UserError, match=f"holds --config {tmp_path}/config.yaml"):
        check_output(run / "..", {}, True, mark, kept=kept[1:])
    (tmp_path / "link").symlink_to(run)
    with pytest.raises(UserError, match="which would be replaced"):
        check_output(tmp_path / "link", {}, True, mark, kept=kept)


def test_a_file_is_no_output(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="exists; choose another output or pass --overwrite"):
        check_output(tmp_path / "file", {}, False, Mark("report.json", "recipe"))
    with pytest.raises(UserError, match="exists and is not a directory; choose another output"):
        check_output(tmp_path / "file", {}, True, Mark("report.json", "recipe"))


@pytest.mark.parametrize(
    ("size", "shown"),
    [
        (0, "0.0 MB"),
        (34_400_000, "34.4 MB"),
        (1e9, "1.0 GB"),
        (46e9, "46.0 GB"),
        (547.4e9, "547 GB"),
        (2.19e12, "2.2 TB"),
    ],
)
def test_sizes_of_disks_are_in_powers_of_ten(size: float, shown: str) -> None:
    assert disk_size(size) == shown
