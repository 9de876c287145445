"""From the configuration to tokenized domains: opened where there are caches of them, else made first.

Making one is `data.cache.building`; its files are `data.cache.store`.
"""

import contextlib
import errno
import functools
import logging
import os
import shutil
import socket
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from megafuser.config.run_directory import RunDirectory
from megafuser.config.schema import RunConfig
from megafuser.data.cache.building import build
from megafuser.data.cache.key import Task, cache_key, cache_name
from megafuser.data.cache.store import DamagedCache, open_cache
from megafuser.data.shared_vocabulary import end_id, shared_vocabulary
from megafuser.data.sources.files import check_sources
from megafuser.data.templates import CHAT_DATE, asks_for_the_date, get_template
from megafuser.data.tokenization import EncoderSpec, front_tokens
from megafuser.data.tokenized import TokenizedDomain
from megafuser.errors import UserError, is_full_disk
from megafuser.runtime.atomic import atomic_directory
from megafuser.runtime.distributed import all_or_none, on_rank_zero
from megafuser.runtime.file_lock import attempt, has_name
from megafuser.runtime.world import detect_world

logger = logging.getLogger(__name__)

# At a lock that comes and goes; more often it does not while one waits for nothing.
_ATTEMPTS = 100


def load_data(
    config: RunConfig,
    tokenizers: Mapping[str, Any],
    rows: Mapping[str, int],
    max_positions: Mapping[str, int],
    splits: Sequence[str],
    expected: Mapping[str, Mapping[str, str]] | None = None,
) -> list[list[TokenizedDomain]]:
    """Opens the tokenized samples of every domain, in the configuration's order, split by split.

    What is missing is made first: all of it, or nothing where something is wrong. Where several ranks call it inside
    `distributed`, rank 0 makes it while the others wait.

    Args:
        config: the run.
        tokenizers: by specialist name, as `load_tokenizers` gives them.
        rows: embedding rows of each specialist.
        max_positions: `max_position_embeddings` of each specialist.
        splits: of "train" and "valid", those wanted.
        expected: domain → split → key (see `TokenizedDomain.key`), where the samples must be those of a former run.

    Raises:
        UserError: the samples are not those expected, the vocabularies or end ids do not agree, a template or a source
            is wrong, nothing is left of a domain, the caches' directory cannot be written, or a rank does not see it.
    """
    if not set(splits) <= {"train", "valid"}:
        raise ValueError(f"splits must be of 'train' and 'valid', not {splits!r}")
    names = [specialist.name for specialist in config.specialists]
    ordered = {name: tokenizers[name] for name in names}

    def make() -> list[str]:
        check_sources(config.data, splits)
        check_templates(config, ordered)
        _tell_of_dates(config, ordered)
        tasks = [task for split in splits for task in _tasks(config, ordered, rows, max_positions, split)]
        return [str(directory) for directory in _make_missing(tasks, ordered, config, expected)]

    opened = iter(_open_on_every_rank([Path(directory) for directory in on_rank_zero(make)]))
    found = [[next(opened) for _ in config.data.domains] for _ in splits]
    for split, domains in zip(splits, found, strict=True):
        for domain in domains:
            logger.info("%s %s: %s", domain.name, split, _told(domain))
    return found


def _open_on_every_rank(directories: Sequence[Path]) -> list[TokenizedDomain]:
    """Opens on each rank what rank 0 has made or found; on all ranks, or on none.

    Raises:
        UserError: a rank does not see it, as where nodes share no file system.
    """

    def open_all() -> list[TokenizedDomain]:
        try:
            return list(map(open_cache, directories))
        except DamagedCache as damage:
            raise UserError(
                f"rank {detect_world().rank} on {socket.gethostname()} does not see the samples as rank 0 does: "
                f"{damage}; set data.cache_dir (without it, run_dir) to a directory on a file system that all nodes "
                "share"
            ) from damage

    return all_or_none(open_all)


def missing_caches(
    config: RunConfig,
    tokenizers: Mapping[str, Any],
    rows: Mapping[str, int],
    max_positions: Mapping[str, int],
    splits: Sequence[str],
) -> list[Path]:
    """The caches that `load_data` would make; the arguments are the same.

    Nothing is opened or written, but all sources are read: their contents' hashes are in the caches' names.

    Raises:
        UserError: the vocabularies or end ids do not agree, or a source is missing.
    """
    ordered = {specialist.name: tokenizers[specialist.name] for specialist in config.specialists}
    tasks = [task for split in splits for task in _tasks(config, ordered, rows, max_positions, split)]
    return [directory for directory in _directories(tasks, ordered, config) if not directory.is_dir()]


def cache_directory(config: RunConfig) -> Path:
    """Where a run's caches lie."""
    return Path(config.data.cache_dir or RunDirectory(Path(config.run_dir)).samples)


def _directories(tasks: Sequence[Task], tokenizers: Mapping[str, Any], config: RunConfig) -> list[Path]:
    return [cache_directory(config) / cache_name(task, list(tokenizers.values())) for task in tasks]


def _told(domain: TokenizedDomain) -> str:
    """How many samples a domain has, and what was left out."""
    told = [f"{len(domain)} samples"]
    for what, counts in (("refused", domain.refused), ("skipped", domain.statistics["bad"])):
        if counts:
            told.append(f"{what} " + ", ".join(f"{count} ({reason})" for reason, count in counts.items()))
    return "; ".join(told)


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


def check_templates(config: RunConfig, tokenizers: Mapping[str, Any]) -> None:
    """Refuses a template or a tokenizer that no sample could be encoded with, before worker processes meet it.

    Args:
        config: the run.
        tokenizers: by specialist.

    Raises:
        UserError: says what is wrong, with the name of the specialist.
    """
    for specialist in config.specialists:
        tokenizer = tokenizers[specialist.name]
        try:
            get_template(specialist.template, tokenizer)
            front_tokens(tokenizer)
        except UserError as error:
            raise UserError(f"specialist {specialist.name}: {error}") from error


def _tell_of_dates(config: RunConfig, tokenizers: Mapping[str, Any]) -> None:
    """Says whose prompts have a date in them that is not today's."""
    for specialist in config.specialists:
        if asks_for_the_date(specialist.template, tokenizers[specialist.name]):
            date = CHAT_DATE.date().isoformat()
            logger.info("specialist %s: its chat template asks for the date, and always gets %s", specialist.name, date)


def _make_missing(
    tasks: Sequence[Task],
    tokenizers: Mapping[str, Any],
    config: RunConfig,
    expected: Mapping[str, Mapping[str, str]] | None,
) -> list[Path]:
    """The complete caches of all tasks; those that are not there are made, and appear together or not at all."""
    parent = cache_directory(config)
    directories = _directories(tasks, tokenizers, config)
    _refuse_others(tasks, directories, expected or {})
    missing = [pair for pair in zip(directories, tasks, strict=True) if not _is_complete(pair[0])]
    if missing:
        with _parents(parent), contextlib.ExitStack() as stack:
            # In one order everywhere: two runs that wait for each other's locks would wait for ever.
            for directory in sorted({directory for directory, _ in missing}):
                stack.enter_context(_locked(directory))
            for directory, task in missing:
                if not _is_complete(directory):
                    # Only this process may touch it now; what is there is damaged.
                    shutil.rmtree(directory, ignore_errors=True)
                    build(task, tokenizers, stack.enter_context(atomic_directory(directory)), config.data.workers)
    return directories


def _refuse_others(
    tasks: Sequence[Task], directories: Sequence[Path], expected: Mapping[str, Mapping[str, str]]
) -> None:
    """Refuses samples that are not those of a former run, before anything is made of them."""
    for task, directory in zip(tasks, directories, strict=True):
        refuse_other_samples(task.domain, task.split, cache_key(directory), expected)


def refuse_other_samples(domain: str, split: str, key: str, expected: Mapping[str, Mapping[str, str]]) -> None:
    """Refuses samples that are not those that a run's checkpoint was made with.

    Args:
        domain: its name.
        split: `train` or `valid`.
        key: of the samples.
        expected: domain → split → key of the checkpoint's; what it does not say is not compared.

    Raises:
        UserError: they are others.
    """
    wanted = expected.get(domain, {}).get(split)
    if wanted not in (None, key):
        raise UserError(
            f"data.domains.{domain}: its {split} samples are not those that the run began with (key {wanted}, now "
            f"{key}; files, tokenizers, and the versions of transformers and tokenizers count); put them back or "
            "choose another run_dir"
        )


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
def _parents(directory: Path) -> Iterator[None]:
    """Makes a directory with all above it; takes away again what is left empty by an error."""
    made = [path for path in (directory, *directory.parents) if not path.exists()]
    try:
        directory.mkdir(parents=True, exist_ok=True)
        if not os.access(directory, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        if is_full_disk(error):
            raise
        raise UserError(f"{directory} cannot be written ({error.strerror}); set data.cache_dir to another") from None
    try:
        yield
    except BaseException:
        for path in made:
            with contextlib.suppress(OSError):
                path.rmdir()
        raise


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Two runs that share caches make each of them once; the file that says so is gone afterwards."""
    path = directory.parent / f".{directory.name}.lock"
    while True:
        with _open_lock(path) as file:
            locked = _lock(file, directory)
            # Who had it before has removed it, and somebody else may have made it anew meanwhile.
            if locked and not has_name(file, path):
                continue
            try:
                yield
            finally:
                if file.writable():  # another user's is theirs to remove
                    with contextlib.suppress(PermissionError):
                        path.unlink(missing_ok=True)
            return


def _open_lock(path: Path) -> TextIO:
    """The file to lock; somebody else's, who makes the cache now or was killed, may be open to be read only."""
    for _ in range(_ATTEMPTS):
        # whoever has failed to make the caches has taken away an empty directory
        path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(PermissionError):
            return path.open("w")
        try:
            return path.open()
        except FileNotFoundError:  # its owner has just removed it
            continue
        except PermissionError:
            break
    raise UserError(
        f"{path} is another user's and cannot be opened; wait for their run, remove it, or set data.cache_dir to "
        "another"
    )


def _lock(file: TextIO, directory: Path) -> bool:
    """Locks a file, after whoever has the lock; false on a file system without locks."""
    refused, shared = attempt(file), False
    if refused is not None and refused.errno == errno.EBADF:
        # In the network, what may only be read can only be shared: who makes the cache now is waited for, at least.
        refused, shared = attempt(file, shared=True), True
    if isinstance(refused, BlockingIOError):
        logger.info("waiting for another process that makes %s", directory)
        refused = attempt(file, shared=shared, wait=True)
    if refused is not None:
        _warn_of_no_locks(directory.parent, refused.strerror or str(refused))
    return refused is None


@functools.cache
def _warn_of_no_locks(parent: Path, reason: str) -> None:
    """Once for a directory, however many caches are made in it."""
    logger.warning(
        "%s has no file locks (%s); start no other run that shares it before its samples are made", parent, reason
    )
