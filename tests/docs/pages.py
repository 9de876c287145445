"""The documentation as its tests read it: pages, their code blocks, and what else they say in code."""

import re
from dataclasses import dataclass
from pathlib import Path

from tests.parallel.launch import ROOT

PAGES = sorted(
    path for pattern in ("*.md", "docs/*.md", "slurm/*.md", "examples/*/README.md") for path in ROOT.glob(pattern)
)
_FENCE = re.compile(
    r"^(?P<indent> *)(?P<fence>```+|~~~+)(?P<language>\w*)[^\n]*\n(?P<text>.*?)^ *(?P=fence) *$", re.M | re.S
)
_NEEDS = re.compile(r"# needs: (.+)\n")


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        page: its page's path in the repository.
        line: where it begins.
        language: what stands behind the fence.
        text: without the page's indentation, and without the line that says what it needs.
        needs: what it needs, where it says so: `network`, `GPU`, `cluster with GPUs`.
    """

    page: str
    line: int
    language: str
    text: str
    needs: frozenset[str]

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path, text: str | None = None) -> list[Block]:
    """The fenced blocks of a page."""
    text = page.read_text(encoding="utf-8") if text is None else text
    found = []
    for match in _FENCE.finditer(text):
        indent = len(match["indent"])
        body = "".join(line[indent:] if line.strip() else line for line in match["text"].splitlines(keepends=True))
        needs = _NEEDS.match(body)
        found.append(
            Block(
                name(page),
                text[: match.start()].count("\n") + 1,
                match["language"],
                body[needs.end() :] if needs else body,
                frozenset(needs[1].split(", ")) if needs else frozenset(),
            )
        )
    return found


def without_blocks(page: Path) -> str:
    return _FENCE.sub("", page.read_text(encoding="utf-8"))


def inline_code(page: Path) -> list[str]:
    """What stands between single backticks, line breaks as blanks."""
    return [" ".join(code.split()) for code in re.findall(r"(?<!`)`([^`]+)`(?!`)", without_blocks(page))]
