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
    linked: dict[str, Path] = {}
    for file in files.documentation_pages():
        for target in outside_links(file.content_string, file.src_uri):
            linked[page_of(target)] = DOCS.parent / target
    for name, path in sorted(linked.items()):
        if path.exists():
            files.append(File.generated(config, name, content=to_page(path, DOCS.parent)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Replaces each link to a file of the repository by one to its page; a file that is not there is a warning."""
    source = page.file.src_uri

    def warn(target: str) -> None:
        logger.warning("%s links to %s, which the repository does not have", source, target)

    return relative(markdown, source, DOCS.parent, warn)
