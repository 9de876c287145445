"""The hooks that mkdocs calls: they add the generated pages, and lead links out of docs/ to pages of those files."""

import logging
import sys
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

DOCS = Path(__file__).resolve().parents[1]
for directory in (DOCS.parent, DOCS):
    if str(directory) not in sys.path:
        sys.path.insert(0, str(directory))

from generator import checkpoint_format, commands, configuration, metrics, python  # noqa: E402
from generator.repository import outside_links, page_of, relative, to_page  # noqa: E402

REFERENCE = {
    "reference/configuration.md": configuration.page,
    "reference/recipe.md": configuration.recipe_page,
    "reference/commands.md": commands.page,
    "reference/checkpoint-format.md": checkpoint_format.page,
    "reference/metrics.md": metrics.page,
    "reference/python.md": python.page,
}
logger = logging.getLogger("mkdocs.hooks.megafuser")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the reference, and a page for each file of the repository that a page links to."""
    for name, page in REFERENCE.items():
        files.append(File.generated(config, name, content=page()))
    unread = list(files.documentation_pages())
    seen: set[str] = set()
    while unread:  # guides link to further files
        file = unread.pop()
        for target in sorted(set(outside_links(file.content_string, file.src_uri)) - seen):
            seen.add(target)
            path = DOCS.parent / target
            if path.exists():
                unread.append(File.generated(config, page_of(target), content=to_page(path, DOCS.parent)))
                files.append(unread[-1])
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Replaces each link to a file of the repository by one to its page; a file that is not there is a warning."""
    source = page.file.src_uri

    def warn(target: str) -> None:
        logger.warning("%s links to %s, which the repository does not have", source, target)

    return relative(markdown, source, DOCS.parent, warn)
