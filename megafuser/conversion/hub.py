"""Where a model comes from: a directory, or a name on the Hugging Face hub, from where it is fetched once.

Only what a conversion reads is fetched: configuration, tokenizer, licence, and one kind of weights; never code. The
files lie in Hugging Face's own cache, which resumes a download that was broken off. Reading the model is
`conversion.huggingface`; data sets come by `data.sources.hub`.
"""

import errno
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import httpx2
from huggingface_hub import HfApi, get_cached_repo_tree, snapshot_download
from huggingface_hub.errors import (
    CachedRepoTreeNotFoundError,
    DisabledRepoError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from megafuser.conversion.carried_files import is_carried
from megafuser.conversion.huggingface import read_description
from megafuser.conversion.weight_files import KINDS, read_json_object
from megafuser.errors import NotSavedError, UserError, is_full_disk
from megafuser.families.config_json import card_from_hf_config

_NAME = re.compile(r"(?P<repository>[A-Za-z0-9][\w.-]*/[A-Za-z0-9_][\w.-]*)(?:@(?P<revision>\S+))?")
_LOG_IN = "log in (hf auth login)"
_BY_HAND = "or download the model elsewhere and give its directory"
_TIMEOUT_SECONDS = 10
_HUB_ERRORS = (
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    httpx2.TransportError,
)
# The cache cannot be written: what the user, and not this program, can change.
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS)


@dataclass(frozen=True)
class ModelLocation:
    """A model's directory, and where it came from.

    Attributes:
        directory: with configuration, weights and tokenizer.
        repository: `ORG/NAME` on the hub; None for a directory that was given.
        revision: the commit hash that was fetched; None for a directory that was given.
    """

    directory: Path
    repository: str | None = None
    revision: str | None = None


def resolve_model(name: str, *, endpoint: str | None = None) -> ModelLocation:
    """Finds a model's directory, fetching it from the hub where it is not one already.

    Args:
        name: a directory, or `ORG/NAME` or `ORG/NAME@REVISION` on the hub; a directory that exists wins.
        endpoint: the hub's address; None for Hugging Face's own setting.

    Raises:
        UserError: there is no such directory or model, it may not be read, the hub cannot be reached and the cache
            does not hold the whole model, or it has nothing that can be converted. Its weights are fetched last.
        NotSavedError: the cache's disk is full; what was fetched is not fetched again.
    """
    if not name.strip():  # as of a shell variable that is not set; the path of that name would be the working directory
        raise UserError("the name of the model is empty; give a directory or a name on the Hugging Face hub")
    if Path(name).is_dir():
        return ModelLocation(Path(name))
    if Path(name).exists():
        raise UserError(f"{name} is a file; give the directory of a Hugging Face model")
    if (parsed := _NAME.fullmatch(name)) is None:
        raise UserError(
            f"{name}: no such directory, and no name on the Hugging Face hub (ORG/NAME or ORG/NAME@REVISION); give "
            "one of them"
        )
    repository, revision = parsed["repository"], parsed["revision"]
    try:
        return _Snapshot(repository, revision, endpoint).fetch()
    except _HUB_ERRORS as error:
        raise UserError(f"{name}: no such directory, and {_explain(error, repository, revision)}") from None
    except OSError as error:
        if error.errno not in _DISK_ERRORS:
            raise
        place = f" ({error.filename})" if error.filename else ""
        if is_full_disk(error):
            raise NotSavedError(
                f"{name} cannot be saved in Hugging Face's cache: {error.strerror}{place}; make room, or set HF_HOME, "
                "and run the same command again"
            ) from None
        raise UserError(
            f"{name} cannot be saved in Hugging Face's cache: {error.strerror}{place}; set HF_HOME to a directory that "
            "can be written"
        ) from None


class _Snapshot:
    """One commit of a repository, in Hugging Face's cache."""

    def __init__(self, repository: str, revision: str | None, endpoint: str | None) -> None:
        """Asks the hub for the revision; where it does not answer, or refuses, the cache has to do.

        Raises:
            Exception: the hub's, where the cache lacks the revision.
        """
        self.repository, self._endpoint = repository, endpoint
        self._refusal: Exception | None = None
        try:
            # The library's own downloads would ask again and again, for half a minute.
            HfApi(endpoint=endpoint).model_info(repository, revision=revision, timeout=_TIMEOUT_SECONDS)
        except RevisionNotFoundError:
            raise
        except (HfHubHTTPError, OfflineModeIsEnabled, httpx2.TransportError) as error:
            self._refusal = error
        # Keeps the list of all files in the cache too, for when there is no network.
        self.directory = Path(self._download(["config.json", "README.md"], revision))
        self.commit = self.directory.name

    def fetch(self) -> ModelLocation:
        """Fetches what is not there yet of the files to be read."""
        sizes = self._sizes()
        if "config.json" not in sizes:
            raise UserError(
                f"{self.repository} on the Hugging Face hub has no config.json, so it is an adapter, GGUF files or no "
                "model at all; give the repository of the original weights"
            )
        self._download([name for name, size in sizes.items() if is_carried(name, size)], self.commit)
        # What cannot be converted is refused before the weights are fetched, which may take hours.
        card_from_hf_config(read_description(self.directory))
        self._download(self._weights(sizes), self.commit)
        return ModelLocation(self.directory, self.repository, self.commit)

    def _sizes(self) -> Mapping[str, int]:
        """Path → bytes of every file of the commit; of those in the cache alone, where another program put them."""
        try:
            return {file.path: file.size for file in get_cached_repo_tree(self.repository, revision=self.commit)}
        except CachedRepoTreeNotFoundError:
            files = [path for path in self.directory.rglob("*") if path.is_file()]
            return {path.relative_to(self.directory).as_posix(): path.stat().st_size for path in files}

    def _weights(self, names: Mapping[str, int]) -> list[str]:
        """The files of the first kind of weights that there is, in the order in which they are read."""
        for single, _ in KINDS:
            if single in names:
                return [single]
            if (index := f"{single}.index.json") in names:
                self._download([index], self.commit)
                places = read_json_object(self.directory / index).get("weight_map")
                shards = {str(name) for name in places.values()} if isinstance(places, dict) else set()
                return [index, *sorted(shards & names.keys())]
        raise UserError(
            f"{self.repository} on the Hugging Face hub has no weights of a kind that can be read (safetensors or "
            "PyTorch's .bin); give the repository of the original weights"
        )

    def _download(self, names: list[str], revision: str | None) -> str:
        """Fetches files, or makes sure that they are in the cache where the hub is no help."""
        # Names are taken for patterns; those that would match others besides themselves are rare and do no harm.
        try:
            return snapshot_download(
                self.repository,
                revision=revision,
                endpoint=self._endpoint,
                allow_patterns=names,
                local_files_only=self._refusal is not None,
            )
        except LocalEntryNotFoundError as error:
            raise self._refusal or error.__cause__ or error from None


def _explain(error: Exception, repository: str, revision: str | None) -> str:
    """What went wrong with the hub, and what to do, in half a line."""
    status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
    match error:
        case RevisionNotFoundError():
            return f"{repository} has no revision {revision} on the Hugging Face hub; correct what follows the @"
        case GatedRepoError():
            return f"{repository} is gated; ask for access on its page on the Hugging Face hub, then {_LOG_IN}"
        case DisabledRepoError():
            return f"{repository} is disabled on the Hugging Face hub; give another repository"
        case RepositoryNotFoundError():
            return f"the Hugging Face hub shows no {repository}; correct the name, or {_LOG_IN} if it is private"
        case HFValidationError():
            return f"{repository} is not a name that the Hugging Face hub could have; correct it"
        case HfHubHTTPError() if status in (401, 403):
            return f"the Hugging Face hub refuses {repository} ({status}); {_LOG_IN} with a token that may read it"
        case HfHubHTTPError():
            return f"the Hugging Face hub answers {status} for {repository}; try again later, {_BY_HAND}"
        case OfflineModeIsEnabled():
            return (
                f"{repository} is not complete in the cache and HF_HUB_OFFLINE forbids fetching; unset it, {_BY_HAND}"
            )
        case _:
            return (
                f"{repository} is not complete in the cache and the Hugging Face hub cannot be reached "
                f"({type(error).__name__}); try again with a network, which goes on where it stopped, {_BY_HAND}"
            )
