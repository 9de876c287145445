"""Comparing checkpoints with their manifests, every byte once: each rank reads its share of the files.

A checkpoint has hundreds of gigabytes, and all GPUs wait while it is read. Which checkpoint takes the place of a
damaged one is decided by `training.kept_checkpoints`.
"""

import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from megafuser.checkpoint.manifest import (
    Manifest,
    checkpoint_identity,
    content_hash,
    differences,
    first_harm,
    hash_files,
    list_files,
    read_manifest,
)
from megafuser.checkpoint.specialist_sources import SpecialistSource
from megafuser.errors import UserError
from megafuser.runtime.distributed import all_or_none, by_every_rank, on_rank_zero

# The index of a checkpoint, and the relative path of a file in it.
_File = tuple[int, str]


@dataclass(frozen=True)
class _Listing:
    """What rank 0 finds of a checkpoint before its files are read.

    Attributes:
        manifest: the checkpoint's.
        present: relative paths of the files that are there.
        sizes: of those among them that the manifest names, in bytes.
    """

    manifest: Manifest
    present: Sequence[str]
    sizes: Mapping[str, int]


@contextmanager
def disk_errors_told() -> Iterator[None]:
    """Makes one line of a disk that does not give what is on it, which says nothing of the checkpoint.

    Raises:
        UserError: in place of an `OSError`.
    """
    try:
        yield
    except OSError as error:
        raise UserError(
            f"a checkpoint cannot be read on {socket.gethostname()} ({error}); look after the disk and run it again"
        ) from None


def find_damage(checkpoints: Sequence[Path], kind: str | None = None) -> list[list[str]]:
    """Compares checkpoints with their manifests, reading every byte once; every rank calls it, and gets the same.

    Args:
        checkpoints: their directories.
        kind: the kind that is wanted; None for any.

    Returns:
        For each checkpoint the lines of `verify_files`.

    Raises:
        UserError: a manifest is missing, damaged or of another kind, or the disk does not give a file; on every rank.
    """
    # of one rank, so that all deal the same files
    listings = on_rank_zero(lambda: [_list(directory, kind) for directory in checkpoints])
    sizes = {(index, name): size for index, listing in enumerate(listings) for name, size in listing.sizes.items()}

    def hash_share(rank: int, ranks: int) -> list[dict[str, str]]:
        own = deal(sizes, ranks)[rank]
        with disk_errors_told():
            return [
                hash_files(directory, [name for of, name in own if of == index])
                for index, directory in enumerate(checkpoints)
            ]

    shares = by_every_rank(hash_share)
    return [
        differences(
            listing.manifest,
            listing.manifest.files,
            listing.present,
            {name: value for share in shares for name, value in share[index].items()},
        )
        for index, listing in enumerate(listings)
    ]


def refuse_damaged(checkpoints: Sequence[Path]) -> None:
    """Compares checkpoints with their manifests, reading every byte once; every rank calls it, and all agree.

    Raises:
        UserError: names the first file that is damaged or missing; a file too many does no harm. Or the ranks have
            different checkpoints, since each has found its own, and a stage went on or a file was replaced meanwhile.
    """
    _refuse_different(checkpoints)
    for directory, problems in zip(checkpoints, find_damage(checkpoints), strict=True):
        if (found := first_harm(problems)) is not None:
            raise UserError(f"damaged checkpoint {directory} ({found}); give an older one, or run its stage again")


def refuse_replaced(sources: Sequence[SpecialistSource]) -> None:
    """Refuses specialists that were converted anew since their sources were read; every rank calls it, and all agree.

    Conversion replaces a whole directory at once: asked after the weights were loaded, this tells whether all of them
    are what the sources say.

    Raises:
        UserError: names the first of them, or the disk does not give a manifest.
    """

    def compare() -> None:
        for source in sources:
            with disk_errors_told():
                now = content_hash(read_manifest(source.checkpoint, "specialist"))
            if now != source.content_hash:
                raise UserError(
                    f"specialist {source.name}: {source.checkpoint} was replaced while it was read; run it again"
                )

    all_or_none(compare)  # a file system in the network may not show all ranks the same yet


def deal(sizes: Mapping[_File, int], ranks: int) -> list[list[_File]]:
    """Shares of about the same number of bytes: the largest file goes first, each to who has least so far.

    Args:
        sizes: of the files, in bytes.
        ranks: number of shares.
    """
    shares: list[list[_File]] = [[] for _ in range(ranks)]
    held = [0] * ranks
    for file, size in sorted(sizes.items(), key=lambda item: (-item[1], item[0])):
        rank = held.index(min(held))
        shares[rank].append(file)
        held[rank] += size
    return shares


def _list(directory: Path, kind: str | None) -> _Listing:
    with disk_errors_told():
        manifest = read_manifest(directory, kind)
        present = list_files(directory)
        # others are looked at no closer: an editor's lock, for one, is a link to nothing
        sizes = {name: (directory / name).stat().st_size for name in present if name in manifest.files}
    return _Listing(manifest, present, sizes)


def _refuse_different(checkpoints: Sequence[Path]) -> None:
    """Every rank calls it with what it has found by itself."""
    ranks = by_every_rank(lambda *_: [_identified(directory) for directory in checkpoints])
    for found in zip(*ranks, strict=True):
        if len({identity for _, identity in found}) > 1:
            directories = sorted({directory for directory, _ in found})
            place = os.path.commonpath([directory.parent for directory in directories])
            names = ", ".join(os.path.relpath(directory, place) for directory in directories)
            raise UserError(
                f"the ranks found different checkpoints at {place} ({names}): it was being written; run it again"
            )


def _identified(directory: Path) -> tuple[Path, str]:
    """Where a checkpoint is, and what it is."""
    with disk_errors_told():
        read_manifest(directory)  # says what is wrong where there is none
        return directory.absolute(), checkpoint_identity(directory)
