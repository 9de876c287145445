"""Versions of what a run is made with.

Whether all nodes have the same ones is found by `preflight.report`.
"""

from collections.abc import Iterable
from importlib import metadata

_PACKAGES = (
    *("megafuser", "torch", "megatron-core", "transformers", "tokenizers", "safetensors", "numpy"),
    *("transformer-engine", "transformer-engine-torch", "apex"),
)


def library_versions(packages: Iterable[str] = _PACKAGES) -> dict[str, str | None]:
    """Package → its version, None where it is not installed; nothing is imported.

    Args:
        packages: names as pip knows them.
    """
    return {package: _version(package) for package in packages}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
