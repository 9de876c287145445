"""What the tokenized samples of a domain depend on, and the name that follows from it.

The files behind that name are `data.cache.store`.
"""

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizers as tokenizers_library
import transformers
import xxhash

from megafuser.config.data import SourceConfig
from megafuser.data.sources.files import source_hash
from megafuser.data.templates import CHAT_DATE, asks_for_the_date
from megafuser.data.tokenization import EncoderSpec

# Raised whenever the same inputs give other files: another layout of them, other templates, another rule.
FORMAT = 2
_DIGITS = 20
# Of a tokenizer without a Rust backend: vocabularies, merges, SentencePiece models, and settings.
_TOKENIZER_FILES = (".json", ".txt", ".model", ".jinja")


@dataclass(frozen=True)
class Task:
    """The samples of one domain and split, as they are to be made.

    Attributes:
        domain: its name.
        split: `train` or `valid`.
        sources: in order.
        specialists: names, for counts.
        keep: `all`, or which side of the split by hash.
        valid_fraction: share of the instructions that validate, where `keep` is not `all`.
        on_error: `stop` or `skip`.
        encoder: how samples become ids.
    """

    domain: str
    split: str
    sources: tuple[SourceConfig, ...]
    specialists: tuple[str, ...]
    keep: str
    valid_fraction: float
    on_error: str
    encoder: EncoderSpec


def cache_name(task: Task, tokenizers: Sequence[Any]) -> str:
    """Name of the directory that holds a task's samples: DOMAIN-SPLIT-KEY.

    Args:
        task: what is to be made. Its domain's and its specialists' names count, since counts are by name; where sources
            and tokenizers lie does not.
        tokenizers: of the specialists.

    Raises:
        UserError: a source is missing or does not load.
    """
    facts: dict[str, Any] = {
        "format": FORMAT,
        "tokenizers": tokenizers_library.__version__,
        "transformers": transformers.__version__,
        "specialists": task.specialists,
        "sources": [[source_hash(source), Path(source.path or "").suffix, source.fields] for source in task.sources],
        "keep": [task.keep, task.valid_fraction if task.keep != "all" else None],
        "on_error": task.on_error,
        "encoder": dataclasses.asdict(task.encoder),
        "vocabularies": [_tokenizer_hash(tokenizer) for tokenizer in tokenizers],
    }
    if any(map(asks_for_the_date, task.encoder.templates, tokenizers)):
        facts["date"] = CHAT_DATE.isoformat()
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    return f"{task.domain}-{task.split}-{digest[:_DIGITS]}"


def cache_key(directory: Path) -> str:
    """The part of a cache's name that follows from what its samples depend on."""
    return directory.name.rpartition("-")[2]


def _tokenizer_hash(tokenizer: Any) -> str:
    """Of everything that decides a tokenizer's ids and its chat template, wherever its files lie."""
    parts = [
        json.dumps(
            [tokenizer.chat_template, tokenizer("a")["input_ids"], tokenizer.special_tokens_map],
            sort_keys=True,
            default=str,
        ).encode()
    ]
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        parts.append(backend.to_str().encode())
    else:
        directory = Path(tokenizer.name_or_path)
        files = sorted(path for path in directory.iterdir() if path.is_file() and path.suffix in _TOKENIZER_FILES)
        parts += [path.name.encode() + path.read_bytes() for path in files]
    return xxhash.xxh3_128_hexdigest(b"".join(parts))
