"""Fetching from the hub: what is fetched and what is not, from a small hub on this machine; one line for each fault."""

import errno
import hashlib
import json
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
import torch
from huggingface_hub import close_session, constants

from megafuser.conversion.hub import ModelLocation, resolve_model
from megafuser.conversion.huggingface import HuggingFaceCheckpoint
from megafuser.errors import NotSavedError, UserError
from tests.ports import free_ports
from tests.tiny_models import make_llama

MAIN, OLD = "a" * 40, "b" * 40
NOWHERE = "http://127.0.0.1:9"


@dataclass
class Hub:
    """A hub with one repository, which says no when told to.

    Attributes:
        commits: commit → path → content.
        branches: name → commit.
        refusal: status and `X-Error-Code` of every answer, where there is one.
        broken: a file whose download ends too early.
        fetched: the files that were downloaded.
    """

    commits: dict[str, dict[str, bytes]]
    branches: dict[str, str]
    refusal: tuple[int, str] | None = None
    broken: str | None = None
    fetched: list[str] = field(default_factory=list)
    endpoint: str = ""

    def answer(self, path: str) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body, as huggingface_hub's `model_info`, `list_repo_tree` and `hf_hub_url` want them."""
        match path.strip("/").split("/", 5):
            case _ if self.refusal:
                status, code = self.refusal
                return status, {"X-Error-Code": code}, b""
            case ["api", "models", "org", "tiny", *rest]:
                return self._describe(rest)
            case ["org", "tiny", "resolve", commit, *name]:
                name = "/".join(name)
                content = self.commits[commit][name]
                tag = hashlib.sha256(content).hexdigest()
                return 200, {"ETag": f'"{tag}"', "X-Repo-Commit": commit, "name": name}, content
        return 404, {"X-Error-Code": "RepoNotFound"}, b""

    def _describe(self, rest: list[str]) -> tuple[int, dict[str, str], bytes]:
        kind, revision = rest if len(rest) == 2 else ("revision", "main")
        commit = self.branches.get(unquote(revision), unquote(revision))
        if commit not in self.commits:
            return 404, {"X-Error-Code": "RevisionNotFound"}, b""
        if kind == "revision":
            return 200, {}, json.dumps({"id": "org/tiny", "sha": commit}).encode()
        files = [
            {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
            for name, content in self.commits[commit].items()
        ]
        return 200, {}, json.dumps(files).encode()


def _serve(hub: Hub) -> ThreadingHTTPServer:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            status, headers, body = hub.answer(urlsplit(self.path).path)
            name = headers.pop("name", None)
            self.send_response(status)
            for key, value in headers.items():
                self.send_header(key, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "GET":
                broken = name is not None and name == hub.broken
                # before the client has it, and looks
                hub.fetched += [name] if name else []
                self.wfile.write(body[: len(body) // 2] if broken else body)
                self.close_connection |= broken

        do_HEAD = do_GET

        def log_message(self, *arguments: object) -> None:
            """Nothing on the tests' standard error."""

    return ThreadingHTTPServer(("127.0.0.1", int(free_ports(1)[0])), Handler)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """A model as published: both kinds of weights, code, and what other programs want."""
    directory = make_llama(tmp_path_factory.mktemp("models") / "llama")
    state = HuggingFaceCheckpoint(directory)
    torch.save({key: state.tensor(key) for key in state.shapes}, directory / "pytorch_model.bin")
    (directory / "additional_chat_templates").mkdir()
    (directory / "onnx").mkdir()
    for name in (
        "modeling_llama.py",
        "LICENSE",
        "README.md",
        "additional_chat_templates/rag.jinja",
        "onnx/config.json",
        "onnx/model.onnx",
        "model.gguf",
        "training_args.bin",
        ".gitattributes",
    ):
        (directory / name).write_text(f"content of {name}")
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


@pytest.fixture
def hub(files: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.chdir(tmp_path)
    old = {name: content for name, content in files.items() if name != "model.safetensors"}
    hub = Hub({MAIN: dict(files), OLD: old}, {"main": MAIN, "v1": OLD, "refs/pr/1": OLD})
    with _serve(hub) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        hub.endpoint = f"http://127.0.0.1:{server.server_port}"
        yield hub
        close_session()  # a later hub on the same port would be asked through this one's open connection
        server.shutdown()
        thread.join()


def _resolve(hub: Hub, name: str) -> ModelLocation:
    return resolve_model(name, endpoint=hub.endpoint)


def _present(directory: Path) -> set[str]:
    return {str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file()}


CARRIED = {
    "LICENSE",
    "README.md",
    "additional_chat_templates/rag.jinja",
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
}


def test_only_what_is_read_is_fetched(hub: Hub, files: dict[str, bytes]) -> None:
    found = _resolve(hub, "org/tiny")
    assert (found.repository, found.revision) == ("org/tiny", MAIN)
    assert _present(found.directory) == CARRIED | {"model.safetensors"}
    assert set(hub.fetched) == _present(found.directory)
    assert all((found.directory / name).read_bytes() == files[name] for name in _present(found.directory))
    assert HuggingFaceCheckpoint(found.directory).shapes
    hub.fetched.clear()
    assert _resolve(hub, "org/tiny") == found
    assert hub.fetched == []


@pytest.mark.parametrize("revision", ["v1", "refs/pr/1", OLD])
def test_a_revision_and_pickles_where_there_is_nothing_else(hub: Hub, revision: str) -> None:
    found = _resolve(hub, f"org/tiny@{revision}")
    assert (found.repository, found.revision) == ("org/tiny", OLD)
    assert _present(found.directory) == CARRIED | {"pytorch_model.bin"}


@pytest.mark.parametrize("kind", ["model{}.safetensors", "pytorch_model{}.bin"])
def test_the_shards_that_the_index_names(hub: Hub, kind: str) -> None:
    first, second, stale = (kind.format(f"-0000{number}-of-00002") for number in (1, 2, 3))
    commit = {name: content for name, content in hub.commits[MAIN].items() if name in CARRIED}
    index = {"weight_map": {"x": first, "y": second, "z": first}}
    commit |= {first: b"1", second: b"2", stale: b"3", kind.format("") + ".index.json": json.dumps(index).encode()}
    hub.commits[MAIN] = commit
    found = _resolve(hub, "org/tiny")
    assert _present(found.directory) == commit.keys() - {stale}


def test_the_cache_is_used_without_a_network(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    found = _resolve(hub, "org/tiny")
    dead = Hub({}, {}, endpoint=NOWHERE)
    assert _resolve(dead, "org/tiny") == found
    assert _resolve(dead, f"org/tiny@{MAIN}") == found
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert _resolve(hub, "org/tiny") == found
    (found.directory / "tokenizer.json").unlink()
    with pytest.raises(UserError, match="not complete in the cache and HF_HUB_OFFLINE forbids"):
        _resolve(hub, "org/tiny")


@pytest.mark.parametrize("refusal", [(401, "GatedRepo"), (500, "")])
def test_the_cache_is_used_where_the_hub_refuses(hub: Hub, refusal: tuple[int, str]) -> None:
    found = _resolve(hub, "org/tiny")
    hub.refusal = refusal
    assert _resolve(hub, "org/tiny") == found
    (found.directory / "model.safetensors").unlink()
    _assert_refused(hub, "org/tiny", "is gated|answers 500")


def test_what_another_program_cached_is_used_without_a_network(hub: Hub) -> None:
    """Older ones keep no list of the files."""
    found = _resolve(hub, "org/tiny")
    (listing,) = (found.directory.parents[1] / "trees").glob("*.json")
    renamed = found.directory.parents[1].rename(found.directory.parents[2] / "models--org--other")
    (renamed / "trees" / listing.name).unlink()
    other = _resolve(Hub({}, {}, endpoint=NOWHERE), "org/other")
    assert (other.repository, other.revision) == ("org/other", MAIN)
    assert _present(other.directory) == CARRIED | {"model.safetensors"}


def test_a_broken_download_is_told_and_goes_on(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.broken = "model.safetensors"
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda seconds: None)
    _assert_refused(hub, "org/tiny", "cannot be reached|answers|try again")
    hub.broken = None
    assert _present(_resolve(hub, "org/tiny").directory) == CARRIED | {"model.safetensors"}


def test_a_directory_wins(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "org/tiny").mkdir(parents=True)
    assert _resolve(hub, "org/tiny") == ModelLocation(Path("org/tiny"))
    assert _resolve(hub, str(tmp_path)) == ModelLocation(tmp_path)
    assert hub.fetched == []


@pytest.mark.parametrize(
    ("name", "refusal", "message"),
    [
        ("org/none", None, "no such directory, and the Hugging Face hub shows no org/none"),
        (
            "org/tiny",
            (401, "RepoNotFound"),
            "shows no org/tiny; correct the name, or log in .hf auth login. if it is private",
        ),
        ("org/tiny", (401, "GatedRepo"), "org/tiny is gated; ask for access on its page .* log in .hf auth login."),
        ("org/tiny", (403, "GatedRepo"), "org/tiny is gated"),
        ("org/tiny", (401, ""), r"refuses org/tiny \(401\); log in"),
        ("org/tiny", (403, ""), r"refuses org/tiny \(403\); log in"),
        ("org/tiny", (500, ""), "answers 500 for org/tiny; try again later"),
        ("org/tiny@v9", None, "org/tiny has no revision v9"),
        (f"org/tiny@{'c' * 40}", None, f"org/tiny has no revision {'c' * 40}"),
        ("org/ti..ny", None, "org/ti..ny is not a name that"),
        ("gpt2", None, "gpt2: no such directory"),
        ("./models/tiny", None, "./models/tiny: no such directory"),
        ("/nowhere/tiny", None, "/nowhere/tiny: no such directory"),
        ("a/b/c", None, "a/b/c: no such directory"),
        ("org/tiny@", None, "org/tiny@: no such directory"),
    ],
)
def test_refusals(hub: Hub, name: str, refusal: tuple[int, str] | None, message: str) -> None:
    hub.refusal = refusal
    _assert_refused(hub, name, message)
    assert hub.fetched == []


def test_no_network(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.endpoint = NOWHERE
    for name in ("org/tiny", f"org/tiny@{MAIN}"):
        _assert_refused(hub, name, "the Hugging Face hub cannot be reached .ConnectError.; .* give its directory")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    _assert_refused(hub, "org/tiny", "HF_HUB_OFFLINE forbids fetching")


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ({"config.json"}, "org/tiny on the Hugging Face hub has no config.json"),
        ({"model.safetensors", "pytorch_model.bin"}, "org/tiny on the Hugging Face hub has no weights of a kind"),
    ],
)
def test_nothing_to_convert(hub: Hub, missing: set[str], message: str) -> None:
    hub.commits[MAIN] = {name: content for name, content in hub.commits[MAIN].items() if name not in missing}
    _assert_refused(hub, "org/tiny", message)
    assert "model.safetensors" not in hub.fetched


@pytest.mark.parametrize(
    ("change", "missing", "message"),
    [
        ({"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2"}, "", "GPT2LMHeadModel is not supported"),
        ({"hidden_act": "gelu"}, "", "hidden_act 'gelu' is not supported"),
        ({"quantization_config": {"quant_method": "gptq"}}, "", r"is quantized .quant_method gptq."),
        ({}, "tokenizer.json", "has no tokenizer"),
    ],
)
def test_what_cannot_be_converted_is_refused_before_its_weights_are_fetched(
    hub: Hub, change: dict[str, Any], missing: str, message: str
) -> None:
    commit = {name: content for name, content in hub.commits[MAIN].items() if name != missing}
    hub.commits[MAIN] = commit | {"config.json": json.dumps(json.loads(commit["config.json"]) | change).encode()}
    _assert_refused(hub, "org/tiny", message)
    assert "config.json" in hub.fetched and "model.safetensors" not in hub.fetched


def test_a_file(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "model.gguf").touch()
    _assert_refused(hub, "model.gguf", "model.gguf is a file")


def test_a_cache_that_cannot_be_written(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **more: object) -> str:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(tmp_path / "cache"))

    monkeypatch.setattr("megafuser.conversion.hub.snapshot_download", refuse)
    _assert_refused(hub, "org/tiny", "cannot be saved in Hugging Face's cache: Read-only file system .* set HF_HOME")


def test_a_cache_whose_disk_is_full(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object, **more: object) -> str:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(tmp_path / "cache"))

    monkeypatch.setattr("megafuser.conversion.hub.snapshot_download", full)
    with pytest.raises(NotSavedError, match=r"cache: No space left .* make room, or set HF_HOME, and run the same"):
        _resolve(hub, "org/tiny")


def _assert_refused(hub: Hub, name: str, message: str) -> None:
    start = time.monotonic()
    with pytest.raises(UserError, match=message) as caught:
        _resolve(hub, name)
    assert "\n" not in str(caught.value)
    assert time.monotonic() - start < 20, "huggingface_hub tries again for 23 s unless told otherwise"


@pytest.mark.parametrize("name", ["", " "])
def test_an_empty_name_is_not_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="the name of the model is empty"):
        resolve_model(name)
