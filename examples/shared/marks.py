"""A part of a Markdown file that a run replaces: between `<!-- NAME:begin -->` and `<!-- NAME:end -->`."""

import shutil
from pathlib import Path

from examples.shared.files import write_by_rename
from megafuser.errors import UserError


def check_marks(file: Path, name: str) -> tuple[str, str]:
    """What is before the part and after it, the marks included.

    Raises:
        UserError: the file does not have both marks, in order.
    """
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    text = file.read_text("utf-8") if file.exists() else ""
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
        raise UserError(
            f"{file} must have one line {begin} and, after it, one line {end}; put them where the tables go"
        )
    return text[: text.index(begin) + len(begin)], text[text.index(end) :]


def replace_marked(file: Path, out: Path, name: str) -> None:
    """Puts `out`/table.md between the marks; the plots, and results.json if there is one, into NAME beside it."""
    before, after = check_marks(file, name)
    tables = (out / "table.md").read_text("utf-8").replace("](plots/", f"]({name}/")
    write_by_rename(file, f"{before}\n{tables}\n{after}")
    for made in (*sorted((out / "plots").glob("*.svg")), *out.glob("results.json")):
        (file.parent / name).mkdir(exist_ok=True)
        shutil.copyfile(made, file.parent / name / made.name)
