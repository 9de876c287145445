"""The documentation as a site: it builds strictly, its links hold, it loads nothing from other hosts."""

import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import yaml

from tests.parallel.launch import ROOT


class _Page(HTMLParser):
    """What a page loads, where its links lead, and which anchors it has."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.classes: set[str] = set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {key: value or "" for key, value in attrs}
        self.anchors |= {values[key] for key in ("id", "name") if key in values}
        self.classes |= set(values.get("class", "").split())
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
        elif tag == "link" and values.get("rel") not in ("canonical", "next", "prev"):
            self.loads.append(values["href"])
        elif "src" in values:
            self.loads.append(values["src"])


def _build(root: Path, directory: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(directory)]
    return subprocess.run(command, cwd=root, capture_output=True, text=True)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site as `mkdocs build --strict` makes it; any warning of a link, page or key ends that.

    Not with `--quiet`, which keeps warnings from being counted.
    """
    directory = tmp_path_factory.mktemp("site")
    done = _build(ROOT, directory)
    assert done.returncode == 0, done.stdout + done.stderr
    return directory


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, _Page]:
    return {path: _Page(path) for path in site.rglob("*.html")}


def test_it_loads_nothing_from_other_hosts(site: Path, pages: dict[Path, _Page]) -> None:
    loads = {(path.name, load) for path, page in pages.items() for load in page.loads}
    assert len(loads) > len(pages)
    assert [load for load in loads if urlsplit(load[1]).netloc] == []
    for sheet in site.rglob("*.css"):
        assert not re.search(r"(?:@import|url\()\s*[\"']?(?:https?:)?//", sheet.read_text(encoding="utf-8")), sheet
    # Material's script would fetch mermaid for a page that has a diagram of it: none has.
    assert not any("mermaid" in page.classes for page in pages.values())


def test_every_link_within_it_leads_to_a_page_and_an_anchor(site: Path, pages: dict[Path, _Page]) -> None:
    lost = []
    for path, page in pages.items():
        for link in [*page.links, *page.loads]:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc or path.name == "404.html":
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            target = target / "index.html" if target.is_dir() else target
            fragment = unquote(parts.fragment)
            if not target.is_file() or (fragment and target in pages and fragment not in pages[target].anchors):
                lost.append((path.relative_to(site).as_posix(), link))
    assert not lost


def test_links_lead_into_the_guides_that_stand_beside_what_they_are_about(site: Path, pages: dict[Path, _Page]) -> None:
    anchor = "repository/slurm/README.md.html#how-long-a-save-may-take"
    assert anchor in pages[site / "your-own.html"].links
    assert "../../serving.html" in pages[site / "repository/slurm/README.md.html"].links


def test_the_navigation_has_every_page_once() -> None:
    class Loader(yaml.SafeLoader):
        """Takes what mkdocs' own tags would bring."""

    navigation = yaml.load((ROOT / "mkdocs.yml").read_text("utf-8"), Loader)["nav"]

    def leaves(tree: object) -> list[str]:
        if isinstance(tree, str):
            return [tree]
        parts = tree.values() if isinstance(tree, dict) else tree
        return [leaf for part in parts for leaf in leaves(part)]  # type: ignore[union-attr]

    listed = leaves(navigation)
    assert len(listed) == len(set(listed))
    written = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").glob("*.md")}
    assert written <= set(listed)
    guides = {f"repository/{path.relative_to(ROOT)}.md" for path in ROOT.glob("[es]*/**/README.md")}
    assert {page for page in listed if page not in written} - guides == {
        f"reference/{page}.md"
        for page in ("configuration", "recipe", "commands", "checkpoint-format", "metrics", "python")
    }


def test_links_that_lead_nowhere_end_the_build(tmp_path: Path) -> None:
    """A site of one page with the same strictness, which counts warnings, and the hook for links out of docs/."""
    gone = {
        "../megafuser/none.py": "megafuser/none.py, which the repository does not have",
        "none.md": "'none.md'",
        "data.md#no-such-heading": "no-such-heading",
    }
    (tmp_path / "docs").mkdir()
    text = "\n\n".join(f"[gone]({link})" for link in gone)
    (tmp_path / "docs" / "index.md").write_text(f"# Page\n\n{text}\n", encoding="utf-8")
    (tmp_path / "docs" / "data.md").write_text("# Data\n", encoding="utf-8")
    hook = tmp_path / "links.py"
    hook.write_text(
        f"import sys\nsys.path.insert(0, {str(ROOT / 'docs' / 'generator')!r})\nfrom hooks import on_page_markdown\n"
    )
    settings = yaml.safe_load((ROOT / "mkdocs.yml").read_text("utf-8"))
    small = {"site_name": "small", "hooks": [str(hook)], "validation": settings["validation"]}
    (tmp_path / "mkdocs.yml").write_text(yaml.safe_dump(small), encoding="utf-8")
    done = _build(tmp_path, tmp_path / "site")
    warnings = [line for line in done.stderr.splitlines() if "WARNING" in line]
    assert done.returncode == 1, done.stderr
    assert all(any(said in line for line in warnings) for said in gone.values()), done.stderr
