"""Paths in the documentation: links, files that are named, and the tests that guard changes."""

import re
from pathlib import Path

import pytest

from tests.docs.pages import PAGES, inline_code, name, without_blocks
from tests.parallel.launch import ROOT

_LINK = re.compile(r"\]\((?![a-z]+:)([^)\s]*)\)")
_PATH = re.compile(r"(?:megafuser|tools|tests|examples|slurm|docs|benchmarks)/[\w./-]+\.(?:py|sh|md|yaml|j2)")
_ROW = re.compile(r"^\| (?P<change>[^|]+) \| (?P<files>[^|]+) \| (?P<tests>[^|]+) \|$", re.M)


def _anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and mkdocs make them of plain text."""
    titles = re.findall(r"^#+ (.+)$", without_blocks(page), re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_to_files_and_headings_of_the_repository(page: Path) -> None:
    lost = []
    for link in _LINK.findall(without_blocks(page)):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if "reference/" in path:  # made when the site is built, which checks these links
            continue
        if not target.exists() or (anchor and anchor not in _anchors(target)):
            lost.append(link)
    assert not lost


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_files_that_are_named_exist(page: Path) -> None:
    named = [path for code in inline_code(page) for path in _PATH.findall(code) if "out/" not in path]
    assert [path for path in named if not (ROOT / path).exists()] == []


def test_each_change_has_its_files_and_a_test_that_guards_it() -> None:
    page = ROOT / "docs" / "changes.md"
    rows = [row for row in _ROW.finditer(page.read_text("utf-8")) if not row["change"].startswith(("change", "---"))]
    assert len(rows) >= 20
    for row in rows:
        tests, files = _LINK.findall(row["tests"]), _LINK.findall(row["files"])
        assert files and tests, row["change"]
        assert len(files) <= 3, f"{row['change']}: more files than one can keep in mind"
        assert all(test.startswith("../tests/") and "/test_" in test for test in tests), row["change"]
        assert not any(file.startswith("../tests/") for file in files), row["change"]
