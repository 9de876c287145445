"""`manifest.json`: what a checkpoint is, and a hash of every file in it.

The manifest is written last, so a directory without one is not a checkpoint, and a damaged file is found before use.
Hashes are XXH3 (128 bits): they find damage at the speed of the disk, and are no defence against an adversary. What its
`content` means is `checkpoint.manifest_content`; all ranks share the reading in `checkpoint.damage`.
"""

import dataclasses
import errno
import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, cast

import xxhash

from megafuser.checkpoint.manifest_content import RunContent, SpecialistContent
from megafuser.config.gate import GateConfig
from megafuser.config.run_directory import MANIFEST
from megafuser.config.values import is_safe_name
from megafuser.errors import UserError
from megafuser.runtime.atomic import write_text_atomic

FORMAT_VERSION = 2
KINDS = ("specialist", "warmup", "joint")
_CHUNK_BYTES = 4 << 20
# A manifest says what architecture the weights are of, or at which step a run goes on, so a flipped bit of its own must
# not pass either.
_OWN_HASH = "hash"


@dataclass(frozen=True)
class Manifest:
    """The description of one checkpoint directory.

    Attributes:
        format_version: version of the layout, `FORMAT_VERSION` when written by this package.
        kind: `specialist`, `warmup` or `joint`.
        dtype: dtype of the weights: `fp32`, `bf16`, `fp16`, or `mixed` where the source mixed them.
        content: what depends on the kind; every key is declared in `megafuser.checkpoint.manifest_content`.
        files: relative POSIX path → XXH3 hash of every file but the manifest itself.
    """

    format_version: int
    kind: str
    dtype: str
    content: SpecialistContent | RunContent
    files: dict[str, str] = field(default_factory=dict)

    @property
    def specialist(self) -> SpecialistContent:
        """The content of a specialist's manifest; the caller knows that it is one."""
        return cast(SpecialistContent, self.content)

    @property
    def run(self) -> RunContent:
        """The content of the manifest of a run's checkpoint; the caller knows that it is one."""
        return cast(RunContent, self.content)


class OtherVersionError(UserError):
    """A manifest of a version of megafuser that this one cannot read; the checkpoint may well be intact."""


def gate_config(manifest: Manifest) -> GateConfig:
    """The size and the temperature of a run's gate; checkpoints that do not say were trained at temperature 1."""
    gate = manifest.run["gate"]
    return GateConfig(gate["hidden_size"], float(gate.get("temperature", 1.0)))


def write_manifest(directory: str | Path, manifest: Manifest, known: Mapping[str, str] | None = None) -> Manifest:
    """Hashes every file under `directory` and writes its manifest.

    Args:
        directory: a complete checkpoint without its manifest.
        manifest: its description; `files` is filled here.
        known: hashes that were computed while the files were written; the others are computed here.

    Returns:
        The manifest as written.

    Raises:
        OSError: a file that was written is not there.
    """
    directory = Path(directory)
    names, known = list_files(directory), dict(known or {})
    if absent := known.keys() - set(names):
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(directory / min(absent)))
    hashes = known | hash_files(directory, [name for name in names if name not in known])
    manifest = dataclasses.replace(manifest, files={name: hashes[name] for name in names})
    values = dataclasses.asdict(manifest)
    values[_OWN_HASH] = _hash_values(values)
    write_text_atomic(directory / MANIFEST, json.dumps(values, indent=2) + "\n")
    return manifest


def read_manifest(directory: str | Path, kind: str | None = None) -> Manifest:
    """Reads a checkpoint's manifest; the files are not looked at (see `verify_files`).

    Args:
        directory: the checkpoint.
        kind: the kind that is wanted; None for any.

    Raises:
        UserError: no such directory, no manifest, an unreadable one, or one of another version or kind.
    """
    path = Path(directory) / MANIFEST
    if not Path(directory).is_dir():
        raise UserError(f"{directory} is not a directory; give a checkpoint")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        remedy = (
            "convert it with tools/convert_hf_to_mcore.py" if (path.parent / "config.json").exists() else "give one"
        )
        raise UserError(f"{directory} is not a megafuser checkpoint (it has no {MANIFEST}); {remedy}") from None
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}); make the checkpoint again") from None
    manifest = _parse(values, path)
    if kind is not None and manifest.kind != kind:
        raise UserError(f"{directory} is a {manifest.kind} checkpoint; give a {kind} checkpoint")
    return manifest


def verify_files(directory: str | Path, manifest: Manifest, but_under: str | None = None) -> list[str]:
    """Compares a directory with its manifest, reading every byte.

    Args:
        directory: the checkpoint.
        manifest: its manifest.
        but_under: leaves out the files whose relative path begins so; they are large.

    Returns:
        One line for each difference, `damaged: PATH`, `missing: PATH` or `extra: PATH`; empty if all is well.
    """
    directory = Path(directory)

    def wanted(names: Iterable[str]) -> list[str]:
        return sorted(name for name in names if but_under is None or not name.startswith(but_under))

    present, described = wanted(list_files(directory)), wanted(manifest.files)
    hashes = hash_files(directory, [name for name in present if name in manifest.files])
    return differences(manifest, described, present, hashes)


def differences(
    manifest: Manifest, described: Iterable[str], present: Iterable[str], hashes: Mapping[str, str]
) -> list[str]:
    """What of a checkpoint is not as its manifest says, in the lines of `verify_files`.

    Args:
        manifest: says which hash each file has.
        described: the files that should be there.
        present: those that are.
        hashes: of those that should be there and are.
    """
    damaged = sorted(name for name, value in hashes.items() if value != manifest.files[name])
    missing, extra = sorted(set(described) - set(present)), sorted(set(present) - set(described))
    groups = (("damaged", damaged), ("missing", missing), ("extra", extra))
    return [f"{what}: {name}" for what, names in groups for name in names]


def first_harm(problems: Iterable[str]) -> str | None:
    """The first of `verify_files`' lines that keeps a checkpoint from being used: a file too many does not."""
    return next((line for line in problems if not line.startswith("extra")), None)


def content_hash(manifest: Manifest) -> str:
    """A short name for the weights and the architecture of a checkpoint, whatever its path.

    Returns:
        32 hexadecimal digits over the card and the hashes of the tensors' files (`weights/*.distcp`). Their index is
        left out: it holds a random id, and the same conversion made twice shall have one name.
    """
    weights = {name: value for name, value in manifest.files.items() if PurePosixPath(name).match("weights/*.distcp")}
    text = json.dumps([weights, manifest.specialist.get("card")], sort_keys=True)
    return xxhash.xxh3_128(text.encode()).hexdigest()


def checkpoint_identity(directory: Path) -> str:
    """A name for a whole checkpoint, whatever its path: what was made with one of another name may differ.

    Returns:
        64 hexadecimal digits, SHA-256 of the manifest, in which the hash of every file is.
    """
    return hashlib.sha256((directory / MANIFEST).read_bytes()).hexdigest()


def hash_file(path: str | Path) -> str:
    """XXH3 hash of a file, 32 hexadecimal digits, read in chunks."""
    digest = xxhash.xxh3_128()
    with open(path, "rb", buffering=0) as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def list_files(directory: Path) -> list[str]:
    """The relative POSIX paths of all files of a checkpoint but its manifest, sorted."""
    found = (Path(folder, name) for folder, _, names in os.walk(directory) for name in names)
    names = (path.relative_to(directory).as_posix() for path in found)
    return sorted(name for name in names if name != MANIFEST)


def hash_files(directory: Path, names: list[str]) -> dict[str, str]:
    """The XXH3 hashes of files of a directory, by name."""
    # xxhash lets go of the interpreter lock, so threads hash as fast as the disk reads
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        return dict(zip(names, pool.map(lambda name: hash_file(directory / name), names), strict=True))


def _parse(values: Any, path: Path) -> Manifest:
    version = values.get("format_version") if isinstance(values, dict) else None
    if not isinstance(version, int):
        raise UserError(f"{path} is not a megafuser manifest (no format_version); make the checkpoint again")
    if version != FORMAT_VERSION:
        remedy = "update megafuser" if version > FORMAT_VERSION else "use the release that wrote it, or make it again"
        raise OtherVersionError(
            f"{path}: format version {version}, but this megafuser reads {FORMAT_VERSION}; {remedy}"
        )
    types = {"kind": str, "dtype": str, "content": dict, "files": dict}
    for key, wanted in types.items():
        if not isinstance(values.get(key), wanted):
            raise UserError(f"{path}: field {key!r} is missing or damaged; make the checkpoint again")
    for name, value in values["files"].items():
        if not isinstance(value, str) or PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise UserError(f"{path}: the entry for file {name!r} is damaged; make the checkpoint again")
    for key in ("cards", "references"):  # of a run, by the specialists' names, which become names of files
        named = values["content"].get(key, {})
        if not isinstance(named, dict) or not all(map(is_safe_name, named)):
            raise UserError(f"{path}: the entries of {key!r} are damaged; make the checkpoint again")
    own = values.get(_OWN_HASH)  # older ones have none, specialists' above all
    if own is not None and own != _hash_values({key: value for key, value in values.items() if key != _OWN_HASH}):
        raise UserError(f"{path} is damaged (it is not what was written); make the checkpoint again")
    if values["kind"] not in KINDS:
        raise OtherVersionError(
            f"{path}: unknown kind {values['kind']!r} (known: {', '.join(KINDS)}); update megafuser, or make the "
            "checkpoint again"
        )
    return Manifest(format_version=version, **{key: values[key] for key in types})


def _hash_values(values: Mapping[str, Any]) -> str:
    """Of what JSON makes of the values, whatever their order."""
    text = json.dumps(json.loads(json.dumps(values)), sort_keys=True)
    return xxhash.xxh3_128(text.encode()).hexdigest()
