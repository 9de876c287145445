"""Pages that show files of the repository, so that links out of docs/ work in the site, too, and without a network.

Guides that stand beside what they are about, such as slurm/README.md, are pages like those of docs/.
"""

import posixpath
import re
from collections.abc import Callable, Iterator
from pathlib import Path

_LINK = re.compile(r"\]\((?![a-z]+:|#)(?P<target>[^)#\s]+)(?P<anchor>#[^)\s]*)?\)")
_FENCE = re.compile(r"^ *(```|~~~).*?^ *\1[`~]* *$", re.MULTILINE | re.DOTALL)
_LANGUAGES = {".py": "python", ".sh": "bash", ".yaml": "yaml", ".yml": "yaml", ".md": "markdown", ".toml": "toml"}


def links(markdown: str, source: str) -> Iterator[tuple[re.Match[str], str]]:
    """Every relative link outside code blocks, with its target seen from docs/.

    Args:
        markdown: a page's text.
        source: the page's path in docs/.
    """
    fences = [match.span() for match in _FENCE.finditer(markdown)]
    for match in _LINK.finditer(markdown):
        if not any(start <= match.start() < end for start, end in fences):
            yield match, posixpath.normpath(posixpath.join(posixpath.dirname(source), match["target"]))


def outside_links(markdown: str, source: str) -> list[str]:
    """Paths in the repository that a page links to beyond docs/."""
    return [target.removeprefix("../") for _, target in links(markdown, source) if target.startswith("../")]


def page_of(path: str) -> str:
    """Where the site shows a file of the repository."""
    return f"repository/{path}.md"


def relative(markdown: str, source: str, root: Path, warn: Callable[[str], None]) -> str:
    """A page with its links beyond docs/ led to the pages of those files; `warn` hears of files that are not there."""
    for match, target in reversed(list(links(markdown, source))):
        if not target.startswith("../"):
            continue
        path = target.removeprefix("../")
        if not (root / path).exists():
            warn(path)
            continue
        link = posixpath.relpath(page_of(path), posixpath.dirname(source) or ".")
        if path.endswith(".md"):  # nothing else has headings
            link += match["anchor"] or ""
        markdown = f"{markdown[: match.start()]}]({link}){markdown[match.end() :]}"
    return markdown


def to_page(path: Path, root: Path) -> str:
    """A guide as it is, its links led on; of anything else the text, or what a directory holds."""
    name = path.relative_to(root).as_posix()
    if path.suffix == ".md":
        return _from_there(path.read_text(encoding="utf-8"), name)
    if path.is_dir():
        entries = sorted(f"{entry.name}/" if entry.is_dir() else entry.name for entry in path.iterdir())
        text, language = "\n".join(entry for entry in entries if not entry.startswith(("__", "."))), ""
    else:
        text, language = path.read_text(encoding="utf-8"), _LANGUAGES.get(path.suffix, "")
    fence = "~" * 8
    return f"---\nsearch:\n  exclude: true\n---\n# `{name}`\n\n{fence}{language}\n{text.rstrip()}\n{fence}\n"


def _from_there(markdown: str, name: str) -> str:
    """A guide that stands elsewhere in the repository, with its links as from its page below docs/."""
    here = posixpath.dirname(page_of(name))
    for match, target in reversed(list(links(markdown, name))):
        inside = target.removeprefix("docs/") if target.startswith("docs/") else f"../{target}"
        link = posixpath.relpath(inside, here) + (match["anchor"] or "")
        markdown = f"{markdown[: match.start()]}]({link}){markdown[match.end() :]}"
    return markdown
