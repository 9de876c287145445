"""Outputs never replace what is not an earlier output."""

from pathlib import Path

import pytest

from megafuser.conversion.output import Mark, check_output
from megafuser.errors import UserError


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
