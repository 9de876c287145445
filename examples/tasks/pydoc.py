"""The pages of Python's own manual that the interpreter carries along, as text to be predicted."""

from pydoc_data.topics import topics
from typing import Any

from datasets import Dataset


def load(size: int, characters: int, **_: Any) -> dict[str, Dataset]:
    """The beginnings of so many pages; which text they have depends on Python's version."""
    pages = [{"page": name, "text": topics[name].strip()[:characters]} for name in sorted(topics)[:size]]
    return {"test": Dataset.from_list(pages)}
