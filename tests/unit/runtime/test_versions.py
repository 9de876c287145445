"""Versions of packages, installed or not."""

from importlib import metadata

from megafuser.runtime.versions import library_versions


def test_what_is_installed_has_a_version_and_what_is_not_has_none() -> None:
    assert library_versions(("pytest", "megafuser-no-such-package")) == {
        "pytest": metadata.version("pytest"),
        "megafuser-no-such-package": None,
    }


def test_the_libraries_of_a_run() -> None:
    found = library_versions()
    assert found["torch"] and found["megatron-core"] and "transformer-engine" in found
