"""The part of a document that a run replaces."""

from pathlib import Path

import pytest

from examples.shared.marks import replace_marked
from megafuser.errors import UserError


def test_the_tables_take_the_marked_place(tmp_path: Path) -> None:
    (tmp_path / "plots").mkdir()
    (tmp_path / "plots" / "losses.svg").write_text("<svg/>", "utf-8")
    (tmp_path / "table.md").write_text("new ![losses](plots/losses.svg)", "utf-8")
    (tmp_path / "results.json").write_text("{}", "utf-8")
    file = tmp_path / "docs" / "results.md"
    file.parent.mkdir()
    text = "before\n<!-- miniature:begin -->\n{}<!-- miniature:end -->\n<!-- other:begin -->\n<!-- other:end -->\n"
    file.write_text(text.format("old\n"), "utf-8")
    for _ in range(2):
        replace_marked(file, tmp_path, "miniature")
        assert file.read_text("utf-8") == text.format("new ![losses](miniature/losses.svg)\n")
    assert {path.name for path in (file.parent / "miniature").iterdir()} == {"losses.svg", "results.json"}
    file.write_text("no marks", "utf-8")
    with pytest.raises(UserError, match="must have one line"):
        replace_marked(file, tmp_path, "miniature")
