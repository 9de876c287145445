"""Whatever is wrong with a request is told by an object with the right status, and nobody else notices."""

import contextlib
import hmac
import json
import logging
import socket

import pytest

from megafuser.runtime.logs import configure_logs
from megafuser.serving import guard
from tests.unit.inference.case import LIMIT
from tests.unit.serving.case import NAME, running_server

GOOD = {"prompt": "The fox", "max_tokens": 4, "temperature": 0}
CHAT = {"messages": [{"role": "user", "content": "The fox"}], "max_tokens": 4, "temperature": 0}


@pytest.fixture(scope="module", autouse=True)
def unharmed(server):
    """After all of these the server still answers as before, and has nothing left."""
    before = server.complete(**GOOD)["choices"]
    yield
    assert server.complete(**GOOD)["choices"] == before
    server.wait_until_free()
    assert 'status="5' not in server.http.get("/metrics").text


def refused(response, status, message="", param=None):
    error = response.json()["error"]
    assert response.status_code == status, response.text
    assert set(error) == {"message", "type", "param", "code"}
    assert message in error["message"]
    assert "\n" not in error["message"].strip()
    if param is not None:
        assert error["param"] == param


@pytest.mark.parametrize(
    ("changes", "message", "param"),
    [
        ({"prompt": ""}, "'prompt' must not be empty", "prompt"),
        ({"prompt": []}, "'prompt' must not be empty", "prompt"),
        ({"prompt": [[]]}, "", "prompt"),
        ({"prompt": [""]}, "", "prompt"),
        ({"prompt": None}, "'prompt' must be text or a list, not null", "prompt"),
        ({"prompt": 5}, "'prompt' must be text or a list, not 5", "prompt"),
        ({"prompt": [1, "a"]}, "'prompt.1' must be an integer, not the text 'a'", "prompt"),
        ({"prompt": ["a", 1]}, "'prompt.1' must be text, not 1", "prompt"),
        ({"prompt": [-1]}, "", "prompt"),
        ({"prompt": [320]}, "token 320, outside the 320", None),
        ({"prompt": [10**30]}, "", "prompt"),
        ({"prompt": [True]}, "", "prompt"),
        ({"prompt": "fox " * 400}, "the context has", "prompt"),
        ({"max_tokens": LIMIT}, "the context has", "max_tokens"),
        ({"max_tokens": -1}, "", "max_tokens"),
        ({"max_tokens": 0}, "echo", "max_tokens"),
        ({"max_tokens": "5"}, "", "max_tokens"),
        ({"max_tokens": 10**30}, "'max_tokens' must be at most", "max_tokens"),
        ({"temperature": -0.1}, "'temperature' must be at least 0, not -0.1", "temperature"),
        ({"temperature": "1"}, "", "temperature"),
        ({"temperature": True}, "", "temperature"),
        ({"top_p": 0}, "'top_p' must be above 0, not 0", "top_p"),
        ({"top_p": 1.01}, "", "top_p"),
        ({"top_k": -1}, "", "top_k"),
        ({"repetition_penalty": 0}, "", "repetition_penalty"),
        ({"frequency_penalty": 2.5}, "", "frequency_penalty"),
        ({"presence_penalty": -2.5}, "", "presence_penalty"),
        ({"seed": -1}, "", "seed"),
        ({"seed": 2**63}, "", "seed"),
        ({"n": 0}, "", "n"),
        ({"n": 10**6}, "", "n"),
        ({"n": 2, "best_of": 3}, "best_of must equal n", "best_of"),
        ({"prompt": ["a"] * 200, "n": 2}, "at most", None),
        ({"stop": ""}, "", "stop"),
        ({"stop": ["a"] * 33}, "'stop' must have at most 32 items, not 33", "stop"),
        ({"stop": [1]}, "", "stop"),
        ({"logprobs": 21}, "", "logprobs"),
        ({"logprobs": True}, "", "logprobs"),
        ({"suffix": "end"}, "", "suffix"),
        ({"logit_bias": {"5": 1}}, "'logit_bias' must be empty", "logit_bias"),
        ({"stream_options": {"include_usage": True}}, "stream only", "stream_options"),
        ({"stream": "yes"}, "", "stream"),
        ({"temperatures": 1}, "; the nearest valid one is 'temperature'", "temperatures"),
        ({"messages": []}, "unknown parameter", "messages"),
        # what a union's alternatives are called, too
        ({"list": 1}, "unknown parameter 'list'", "list"),
        ({"a[0]": 1}, "unknown parameter 'a[0]'", "a[0]"),
    ],
)
def test_completions(server, changes, message, param):
    refused(server.post("/v1/completions", **GOOD | changes), 400, message, param)


@pytest.mark.parametrize(
    ("changes", "message", "param"),
    [
        ({"messages": []}, "", "messages"),
        ({"messages": "a"}, "", "messages"),
        ({"messages": [{"role": "user"}]}, "missing", "messages.0.content"),
        ({"messages": [{"role": "poet", "content": "a"}]}, "must be 'system', 'developer'", "messages.0.role"),
        ({"messages": [{"role": "user", "content": " "}]}, "is empty", None),
        ({"messages": [{"role": "user", "content": None}]}, "", None),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}, "", None),
        (
            {"messages": [{"role": "user", "content": [{"type": "text"}]}]},
            "'messages.0.content.0.text' is missing; give it",
            "messages.0.content",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "a", "b": 1}]}]},
            "unknown parameter 'messages.0.content.0.b'; leave it out",
            "messages.0.content",
        ),
        (
            {"messages": [{"role": "user", "content": "a", "str": 1}]},
            "unknown parameter 'messages.0.str'; leave it out",
            "messages.0.str",
        ),
        ({"messages": [{"role": "assistant", "content": "a"}]}, "is expected", None),
        ({"messages": [*CHAT["messages"], {"role": "assistant", "content": "a"}]}, "nothing to answer", None),
        ({"messages": [{"role": "user", "content": "fox " * 400}]}, "the context has", None),
        ({"max_tokens": 0}, "", "max_tokens"),
        ({"max_completion_tokens": 5}, "differ", "max_tokens"),
        ({"max_tokens": None, "max_completion_tokens": LIMIT}, "the context has", "max_completion_tokens"),
        ({"top_logprobs": 2}, "goes with logprobs", "top_logprobs"),
        ({"logprobs": 1}, "", "logprobs"),
        ({"tools": [{"type": "function"}]}, "", "tools"),
        ({"response_format": {"type": "json_object"}}, "", "response_format.type"),
        ({"prompt": "a"}, "unknown parameter", "prompt"),
    ],
)
def test_chats(server, changes, message, param):
    refused(server.post("/v1/chat/completions", **CHAT | changes), 400, message, param)


def test_prompt_and_response_share_the_context(server):
    common = {"prompt": [5] * (LIMIT - 3), "temperature": 0, "echo": True, "logprobs": 0}
    whole = server.complete(**common, max_tokens=3)
    assert whole["usage"]["total_tokens"] <= LIMIT
    assert len(whole["choices"][0]["logprobs"]["tokens"]) == whole["usage"]["total_tokens"]
    refused(server.post("/v1/completions", **common, max_tokens=4), 400, f"{LIMIT - 3} tokens", "max_tokens")
    # where nothing is said, there is less than the usual 16
    assert server.complete(prompt=[5] * (LIMIT - 3), temperature=0)["usage"]["completion_tokens"] <= 3
    scored = server.complete(**common | {"prompt": [5] * LIMIT}, max_tokens=0)
    assert scored["usage"] == {"prompt_tokens": LIMIT, "completion_tokens": 0, "total_tokens": LIMIT}
    for changes in ({"max_tokens": 1}, {}, {"prompt": [5] * (LIMIT + 1), "max_tokens": 0}):
        refused(server.post("/v1/completions", **{**common, "prompt": [5] * LIMIT} | changes), 400, "", "prompt")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff\xfe{}",
        b'{"prompt": "\xff"}',
        b'{"prompt": "\\ud800"}',
        b'{"prompt": "a", "temperature": NaN}',
        b'{"prompt": "a", "temperature": Infinity}',
        b'{"prompt": "a", "top_p": -Infinity}',
        b'{"prompt": "a", "temperature": 1e999}',
        b'{"prompt": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"prompt": "a", "logit_bias": ' + b'{"a":' * 50_000 + b"1" + b"}" * 50_000 + b"}",
        b'{"prompt": "a", "' + b"x" * 1000 + b'": 1}',
    ],
)
def test_bodies_that_are_no_requests(server, body):
    for path in ("/v1/completions", "/v1/chat/completions"):
        response = server.http.post(path, content=body, headers={"Content-Type": "application/json"})
        refused(response, 400)
        assert len(response.text) < 2000


@pytest.mark.parametrize("prompt", [[-1] * 200_000, [[""]] * 100_000, ["a"] * 200_000, [[5]] * 150_000, [5] * 200_000])
def test_many_mistakes_are_as_soon_told_as_one(server, prompt):
    assert len(json.dumps(prompt, separators=(",", ":"))) > 300_000
    response = server.http.post("/v1/completions", content=json.dumps({"prompt": prompt}, separators=(",", ":")))
    refused(response, 400)
    assert len(response.text) < 2000


def test_large_bodies(server):
    large = json.dumps(GOOD | {"prompt": "a" * 10_000_000})
    refused(server.http.post("/v1/completions", content=large), 413, "larger than 1048576 bytes")
    parts = (b"a" * 100_000 for _ in range(100))  # without a length
    refused(server.http.post("/v1/completions", content=parts), 413)
    refused(server.http.post("/health", content=large), 413)


def test_routes_methods_and_models(server):
    refused(server.http.get("/v1/completions"), 405)
    refused(server.http.get("/nowhere"), 404)
    refused(server.http.get("/v1/models/other"), 404)
    refused(server.post("/v1/completions", **GOOD, model="other"), 404, NAME, "model")
    refused(server.post("/v1/chat/completions", **CHAT, model="other"), 404, NAME, "model")


@pytest.mark.parametrize(
    "extreme",
    [
        {"temperature": 1e-300},
        {"temperature": 1e300},
        {"temperature": 1, "top_p": 1e-300},
        {"temperature": 1, "top_k": 2**63 - 1},
        {"temperature": 1, "repetition_penalty": 1e-300},
        {"temperature": 1, "repetition_penalty": 1e300},
        {"temperature": 0, "repetition_penalty": 1e300, "frequency_penalty": -2, "presence_penalty": 2},
        {"temperature": 1, "seed": 2**63 - 1, "n": 2},
    ],
)
def test_extreme_numbers_are_numbers(server, extreme):
    made = server.complete(**GOOD | extreme, logprobs=1)["choices"][0]["logprobs"]
    assert all(value <= 0 for value in made["token_logprobs"])
    if extreme == {"temperature": 1e-300}:
        assert made == server.complete(**GOOD, logprobs=1)["choices"][0]["logprobs"]


def test_bytes_that_are_no_http(server):
    host, port = server.url.removeprefix("http://").split(":")
    for sent in (b"\x16\x03\x01\x02\x00", b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\n\r\n", b"POST / HTTP/9\r\n\r\n"):
        with socket.create_connection((host, int(port))) as connection:
            with contextlib.suppress(OSError):  # it may have answered before it had all
                connection.sendall(sent)
                connection.shutdown(socket.SHUT_WR)
            assert connection.recv(100).startswith((b"HTTP/1.1 400", b"HTTP/1.1 404", b"HTTP/1.1 405"))


def test_keys(model, monkeypatch):
    compare, compared = hmac.compare_digest, []

    def seen(one, other):
        compared.append({one, other})
        return compare(one, other)

    monkeypatch.setattr(guard.hmac, "compare_digest", seen)
    with running_server(model, api_key="sesame") as server:
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic sesame"}, {"x-api-key": "a"}):
            for path in ("/v1/models", "/v1/nowhere"):
                response = server.http.get(path, headers=headers)
                refused(response, 401, "API key")
                assert response.headers["WWW-Authenticate"] == "Bearer"
            refused(server.http.post("/v1/completions", json=GOOD, headers=headers), 401)
        assert {b"wrong", b"sesame"} in compared  # in constant time
        assert server.http.get("/v1/models", headers={"Authorization": "bearer  sesame"}).status_code == 200
        good = {"Authorization": "Bearer sesame"}
        assert server.http.get("/v1/models", headers=good).status_code == 200
        assert server.http.post("/v1/completions", json=GOOD, headers=good).status_code == 200
        for open_path in ("/health", "/metrics", "/", "/openapi.json"):
            assert server.http.get(open_path).status_code == 200


def test_the_log_has_neither_prompts_nor_keys(model, capfd, monkeypatch):
    logger = logging.getLogger("megafuser")
    before = logger.level, logger.propagate, list(logger.handlers)
    configure_logs(0)
    try:
        with running_server(model, api_key="sesame") as server:
            headers = {"Authorization": "Bearer sesame"}
            server.http.post("/v1/completions?q=sesame", json=GOOD | {"prompt": "my secret"}, headers=headers)
            server.http.get("/a%0Ab")
    finally:
        logger.level, logger.propagate, logger.handlers = before
    log = capfd.readouterr().err
    assert "sesame" not in log and "secret" not in log
    assert "megafuser: POST /v1/completions 200 " in log
    assert "megafuser: GET /a%0Ab 404 " in log
    (line,) = [line for line in log.splitlines() if "POST" in line]
    assert line.endswith(" 4 tokens")


def test_a_cap_on_tokens(model):
    with running_server(model, max_tokens=3) as server:
        refused(server.post("/v1/completions", **GOOD), 400, "at most 3", "max_tokens")
        found = server.chat("The fox", temperature=0)
        assert found["usage"]["completion_tokens"] <= 3
