"""Versions of what a checkpoint was made with."""

import platform
from importlib.metadata import PackageNotFoundError, version

_PACKAGES = (
    *("megafuser", "torch", "megatron-core", "transformers", "tokenizers", "safetensors", "numpy"),
    *("transformer-engine", "transformer-engine-torch", "apex"),
)


def library_versions() -> dict[str, str]:
    """Package → version of Python and of those libraries that are installed."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
