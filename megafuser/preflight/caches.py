"""Whether the samples of a run are tokenized already, so that no rank waits for that.

Nothing is tokenized here: `tools/prepare_data.py` does that, or else the stage at its start.
"""

from pathlib import Path

from megafuser.config.schema import RunConfig
from megafuser.data.cache.loading import cache_directory, missing_caches
from megafuser.training.session import Session

_SPLITS = ("train", "valid")
_HASHED_AT_MOST = 2 << 30  # bytes of the sources, whose hashes the names of their caches have; a few seconds


def untokenized(session: Session) -> list[str]:
    """A line where caches of the run are missing; none where all are there.

    Where the sources are large or on the hub, only whether a domain has a cache at all is looked at, and not whether it
    is one of these sources, tokenizers and settings.

    Args:
        session: of the run.
    """
    config = session.config
    directory = cache_directory(config)
    pairs = [(domain, split) for split in _SPLITS for domain in config.data.domains]
    missing = [f"{domain} {split}" for domain, split in pairs if not any(directory.glob(f"{domain}-{split}-*"))]
    if not missing and _is_hashed_soon(config):
        rows = {source.name: source.card.vocab_size for source in session.sources}
        positions = {source.name: source.card.max_position_embeddings for source in session.sources}
        found = missing_caches(config, session.tokenizers, rows, positions, _SPLITS)
        missing = [" ".join(path.name.rsplit("-", 2)[:2]) for path in found]
    if not missing:
        return []
    return [
        f"samples are not tokenized ({', '.join(missing)}; caches are in {directory}): rank 0 would do it while all "
        "others wait; run tools/prepare_data.py with the same arguments first"
    ]


def _is_hashed_soon(config: RunConfig) -> bool:
    size = 0
    for domain in config.data.domains.values():
        for split in _SPLITS:
            for source in domain.sources(split):
                if source.path is None or not Path(source.path).is_file():
                    return False
                size += Path(source.path).stat().st_size
    return size <= _HASHED_AT_MOST
