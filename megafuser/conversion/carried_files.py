"""Which files beside the weights belong to a model, and travel with it byte for byte.

Weights are found by `conversion.weight_files`; code is never carried.
"""

import shutil
from fnmatch import fnmatchcase
from pathlib import Path, PurePath

from megafuser.errors import UserError

# In lower case. Configuration, generation, tokenizers of every kind, chat templates, licences and the model card.
_CARRIED = (
    "*.json",
    "*.model",
    "*.jinja",
    "*.txt",
    "*.tiktoken",
    "license*",
    "notice*",
    "use_policy*",
    "readme.md",
)
# Indexes of weights, code, and hidden files.
_LEFT = ("*.index.json", "*.py", ".*")
# Any one of these groups makes a tokenizer.
TOKENIZERS = (("tokenizer.json",), ("tokenizer.model",), ("vocab.json", "merges.txt"))
_TEMPLATES = "additional_chat_templates"
# The largest tokenizers take some 30 MB; what is larger holds weights, whatever it is called.
_LARGEST_BYTES = 256 << 20


def is_carried(name: str, nbytes: int) -> bool:
    """Whether a file belongs to those that are neither weights nor code.

    Args:
        name: its path in the model's directory.
        nbytes: its size.
    """
    path = PurePath(name.lower())
    if nbytes > _LARGEST_BYTES:
        return False
    if path.parent == PurePath(_TEMPLATES):
        return path.suffix == ".jinja"
    named = any(fnmatchcase(str(path), pattern) for pattern in _CARRIED)
    return len(path.parts) == 1 and named and not any(fnmatchcase(str(path), pattern) for pattern in _LEFT)


def carried_files(directory: Path) -> list[Path]:
    """The files of a model that are neither weights nor code, in order of their names.

    Args:
        directory: of a Hugging Face model; links, as in the hub's cache, count as what they lead to.

    Raises:
        UserError: one is a link that leads nowhere.
    """
    found = []
    for path in sorted([*directory.glob("*"), *directory.glob(f"{_TEMPLATES}/*")]):
        name = str(path.relative_to(directory))
        if path.is_symlink() and not path.exists() and is_carried(name, 0):
            raise UserError(f"{path} is a link to a file that is gone; download it again")
        if path.is_file() and is_carried(name, path.stat().st_size):
            found.append(path)
    return found


def copy_carried_files(directory: Path, target: Path) -> None:
    """Copies them byte for byte.

    Args:
        directory: of a Hugging Face model.
        target: an existing directory.
    """
    for path in carried_files(directory):
        copy = target / path.relative_to(directory)
        copy.parent.mkdir(exist_ok=True)
        shutil.copyfile(path, copy)


def has_tokenizer(directory: Path) -> bool:
    """Whether a Hugging Face directory has a tokenizer's files."""
    return any(all((directory / name).is_file() for name in names) for names in TOKENIZERS)
