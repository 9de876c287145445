"""From the configuration to tokenized domains: opened where there are caches of them, else made first."""

import contextlib
import fcntl
import logging
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from megafuser.checkpoint.atomic import atomic_directory
from megafuser.config.schema import RunConfig
from megafuser.data.cache.building import build
from megafuser.data.cache.key import Task, cache_name
from megafuser.data.cache.store import DamagedCache, open_cache
from megafuser.data.sources.files import check_sources
from megafuser.data.templates import get_template
from megafuser.data.tokenization import EncoderSpec
from megafuser.data.tokenized import TokenizedDomain
from megafuser.data.vocabulary import end_id, shared_vocabulary
from megafuser.errors import UserError
from megafuser.runtime.distributed import on_rank_zero

logger = logging.getLogger(__name__)


def load_data(
    config: RunConfig,
    tokenizers: Mapping[str, Any],
    rows: Mapping[str, int],
    max_positions: Mapping[str, int],
    split: str,
) -> list[TokenizedDomain]:
    """Opens the tokenized samples of one split of every domain, in the configuration's order.

    Where several ranks call it inside `distributed`, rank 0 makes what is missing while the others wait.

    Args:
        config: the run.
        tokenizers: by specialist name, as `load_tokenizers` gives them.
        rows: embedding rows of each specialist.
        max_positions: `max_position_embeddings` of each specialist.
        split: "train" or "valid".

    Raises:
        UserError: the vocabularies or end ids do not agree, a template or a source is wrong, nothing is left of a
            domain, or the caches' directory cannot be written.
    """
    if split not in ("train", "valid"):
        raise ValueError(f"split must be 'train' or 'valid', not {split!r}")
    names = [specialist.name for specialist in config.specialists]
    ordered = {name: tokenizers[name] for name in names}

    def make() -> list[str]:
        check_sources(config.data)
        _check_templates(config, ordered)
        tasks = _tasks(config, ordered, rows, max_positions, split)
        return [str(_cache(task, ordered, _directory(config), config.data.workers)) for task in tasks]

    domains = [open_cache(Path(directory)) for directory in on_rank_zero(make)]
    for domain in domains:
        told = ", ".join(f"{count} ({reason})" for reason, count in domain.refused.items())
        bad = ", ".join(f"{count} ({kind})" for kind, count in domain.statistics["bad"].items())
        told = "; ".join(part for part in (f"refused {told}" if told else "", f"skipped {bad}" if bad else "") if part)
        logger.info("%s %s: %d samples%s", domain.name, split, len(domain), f", {told}" if told else "")
    return domains


def encoder_spec(
    config: RunConfig,
    domain: str,
    tokenizers: Mapping[str, Any],
    rows: Mapping[str, int],
    max_positions: Mapping[str, int],
) -> EncoderSpec:
    """How a domain's samples become ids; the arguments are those of `load_data`.

    Raises:
        UserError: the vocabularies or end ids do not agree.
    """
    names = [specialist.name for specialist in config.specialists]
    shared = shared_vocabulary(tokenizers, rows)
    return EncoderSpec(
        templates=tuple(specialist.template for specialist in config.specialists),
        end_id=end_id(tokenizers, config.data.end_token, shared),
        shared_vocabulary=shared,
        limit=min(config.data.sequence_length, *(max_positions[name] for name in names)),
        rows=tuple(rows[name] for name in names),
        too_long=config.data.too_long,
        lengths=config.data.domains[domain].lengths,
    )


def _tasks(
    config: RunConfig,
    tokenizers: Mapping[str, Any],
    rows: Mapping[str, int],
    max_positions: Mapping[str, int],
    split: str,
) -> list[Task]:
    return [
        Task(
            domain=name,
            split=split,
            sources=domain.sources(split if domain.valid else "train"),
            specialists=tuple(tokenizers),
            keep="all" if domain.valid else split,
            valid_fraction=config.data.valid_fraction,
            on_error=config.data.on_error,
            encoder=encoder_spec(config, name, tokenizers, rows, max_positions),
        )
        for name, domain in config.data.domains.items()
    ]


def _check_templates(config: RunConfig, tokenizers: Mapping[str, Any]) -> None:
    """Tells what is wrong with a template with its specialist's name."""
    for specialist in config.specialists:
        try:
            get_template(specialist.template, tokenizers[specialist.name])
        except UserError as error:
            raise UserError(f"specialist {specialist.name}: {error}") from error


def _directory(config: RunConfig) -> Path:
    return Path(config.data.cache_dir or Path(config.run_dir) / "data")


def _cache(task: Task, tokenizers: Mapping[str, Any], parent: Path, workers: int | None) -> Path:
    """The complete cache of a task, made where it is not there."""
    directory = parent / cache_name(task, list(tokenizers.values()))
    if _is_complete(directory):
        return directory
    try:
        parent.mkdir(parents=True, exist_ok=True)
        lock_file = (parent / f".{directory.name}.lock").open("w")
    except OSError as error:
        raise UserError(f"{parent} cannot be written ({error.strerror}); set data.cache_dir to another") from None
    with lock_file, _locked(lock_file, directory):
        if not _is_complete(directory):
            # Only this process may touch it now; what is there is damaged.
            shutil.rmtree(directory, ignore_errors=True)
            with atomic_directory(directory) as temporary:
                build(task, tokenizers, temporary, workers)
    return directory


def _is_complete(directory: Path) -> bool:
    if not directory.exists():
        return False
    try:
        open_cache(directory)
    except DamagedCache as damage:
        logger.warning("%s; making it again", damage)
        return False
    return True


@contextlib.contextmanager
def _locked(file: Any, directory: Path) -> Iterator[None]:
    """Two runs that share caches make each of them once."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        logger.info("waiting for another process that makes %s", directory)
        fcntl.flock(file, fcntl.LOCK_EX)
    try:
        yield
    finally:
        fcntl.flock(file, fcntl.LOCK_UN)
