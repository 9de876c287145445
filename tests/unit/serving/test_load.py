"""Many requests at once: full queues, clients that go, time-outs, the end; no sequence is ever left behind."""

import asyncio
import random
import socket
import ssl
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from megafuser.serving.stream import _CancellingResponse
from tests.unit.serving.case import WAIT, running_server

# one for all clients: each would read the machine's certificates
NO_CERTIFICATES = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
LONG = {"prompt": "The fox", "max_tokens": 200, "temperature": 1.0, "seed": 1}


class Gate:
    """Holds the engine before each step until it is opened."""

    def __init__(self, monkeypatch, engine):
        self.is_open = threading.Event()
        self.steps = 0
        step = engine.step

        def waiting(asks):
            self.steps += 1
            assert self.is_open.wait(WAIT)
            return step(asks)

        monkeypatch.setattr(engine, "step", waiting)


def wait_for(condition):
    pause = threading.Event()
    for _ in range(int(WAIT / 0.02)):
        if condition():
            return
        pause.wait(0.02)
    raise AssertionError("it did not come to that")


def test_a_full_queue_says_when_to_come_again(model, monkeypatch):
    with running_server(model, max_running=1, max_queue=2) as server, ThreadPoolExecutor(3) as pool:
        gate = Gate(monkeypatch, model.engine)
        short = {"prompt": "The fox", "max_tokens": 3, "temperature": 0}
        waiting = [pool.submit(server.complete, **short) for _ in range(3)]
        wait_for(lambda: server.serving.service.engine.taken == 3 and gate.steps)
        response = server.post("/v1/completions", **short)
        assert response.status_code == 429
        assert response.json()["error"]["type"] == "rate_limit_error"
        assert 1 <= int(response.headers["Retry-After"]) <= 60
        assert server.post("/v1/completions", **short, n=4).status_code == 400
        assert server.metric("megafuser_running_requests") == 1
        assert server.metric("megafuser_waiting_requests") == 2
        gate.is_open.set()
        assert len({one.result(WAIT)["choices"][0]["text"] for one in waiting}) == 1
        server.complete(**short)
        server.wait_until_free()


def test_what_is_being_encoded_counts_as_queued(model, monkeypatch):
    with running_server(model, max_running=1, max_queue=2) as server, ThreadPoolExecutor(3) as pool:
        goes_on, begun = threading.Event(), threading.Event()
        raw = model.prompts.raw

        def slow(text, specialists):
            begun.set()
            assert goes_on.wait(WAIT)
            return raw(text, specialists)

        monkeypatch.setattr(model.prompts, "raw", slow)
        short = {"prompt": "The fox", "max_tokens": 3, "temperature": 0}
        waiting = [pool.submit(server.complete, **short) for _ in range(3)]
        assert begun.wait(WAIT)
        wait_for(lambda: server.serving.service._being_encoded == 3)
        response = server.post("/v1/completions", **short)
        assert response.status_code == 429
        assert response.headers["Retry-After"]
        chat = server.post("/v1/chat/completions", messages=[{"role": "user", "content": "a"}], max_tokens=2)
        assert chat.status_code == 429
        goes_on.set()
        for one in waiting:
            one.result(WAIT)
        server.chat("a", max_tokens=2)
        server.wait_until_free()
        assert server.serving.service._being_encoded == 0


def test_sequences_wait_for_room_in_the_caches(root, model, monkeypatch):
    taken = model.engine.extents.take(model.engine.extents.capacity - 250)
    try:
        with running_server(model) as server, ThreadPoolExecutor(3) as pool:
            answers = list(pool.map(lambda _: server.complete(**LONG | {"max_tokens": 130}), range(3)))
            assert len({answer["choices"][0]["text"] for answer in answers}) == 1
            response = server.post("/v1/completions", prompt="The fox", max_tokens=5)
            assert response.status_code == 200
            # an answer is out a moment before its place is given back
            wait_for(lambda: server.metric("megafuser_kv_positions_used") == model.engine.extents.capacity - 250)
    finally:
        model.engine.extents.give_back(taken)


def test_a_chat_without_a_limit_takes_what_the_caches_have(model, monkeypatch):
    with running_server(model) as server:
        length = server.chat("a", max_tokens=1)["usage"]["prompt_tokens"]
        monkeypatch.setattr(model.engine.extents, "capacity", length + 4)
        assert 1 <= server.chat("a")["usage"]["completion_tokens"] <= 5
        response = server.post("/v1/chat/completions", messages=[{"role": "user", "content": "a"}], max_tokens=6)
        assert response.status_code == 400
        assert f"the caches have {length + 4}" in response.json()["error"]["message"]


@pytest.mark.parametrize("streams", [False, True])
def test_who_goes_gives_the_place_back(model, monkeypatch, streams):
    with running_server(model) as server:
        gate = Gate(monkeypatch, model.engine)
        host, port = server.url.removeprefix("http://").split(":")
        body = httpx.Request("POST", server.url, json=LONG | {"stream": streams}).read()
        with socket.create_connection((host, int(port))) as connection:
            head = f"POST /v1/completions HTTP/1.1\r\nHost: {host}\r\nContent-Length: {len(body)}\r\n\r\n"
            connection.sendall(head.encode() + body)
            wait_for(lambda: gate.steps == 1)
            assert server.metric("megafuser_kv_positions_used") > 0
        wait_for(lambda: server.serving.service.engine._inbox)  # the word that the client has gone
        gate.is_open.set()
        server.wait_until_free()
        assert gate.steps < 5
        assert 'status="499"' in server.http.get("/metrics").text or streams


def test_who_goes_before_the_first_event_is_cancelled_too():
    class Cancelling:
        def __init__(self):
            self.cancelled = []

        def cancel(self, work):
            self.cancelled.append(work)

    async def events():
        yield "never sent"

    async def receive():
        return {"type": "http.disconnect"}

    async def send(message):
        await asyncio.Event().wait()

    service, work = Cancelling(), object()
    response = _CancellingResponse(events(), service, work)
    asyncio.run(asyncio.wait_for(response({"type": "http"}, receive, send), WAIT))
    assert service.cancelled == [work]


def test_a_request_that_takes_too_long_is_given_up(model, monkeypatch):
    with running_server(model, request_timeout=0.2) as server:
        gate = Gate(monkeypatch, model.engine)
        response = server.post("/v1/completions", **LONG)
        assert response.status_code == 504
        assert response.json()["error"]["code"] == "request_timeout"
        streamed = server.post("/v1/completions", **LONG, stream=True)
        assert streamed.status_code == 200
        assert '"code": "request_timeout"' in streamed.text
        gate.is_open.set()
        server.wait_until_free()


@pytest.mark.parametrize("kind", ["raw", "chat"])
def test_the_time_of_a_request_begins_before_it_is_encoded(model, monkeypatch, kind):
    encode = getattr(model.prompts, kind)

    def slow(*arguments):
        time.sleep(1.1)
        return encode(*arguments)

    with running_server(model, request_timeout=1.0) as server:
        monkeypatch.setattr(model.prompts, kind, slow)
        body = {"prompt": "a"} if kind == "raw" else {"messages": [{"role": "user", "content": "a"}]}
        path = "/v1/completions" if kind == "raw" else "/v1/chat/completions"
        response = server.post(path, **body, max_tokens=8, seed=1)
        assert response.status_code == 504
        assert response.json()["error"]["code"] == "request_timeout"
        server.wait_until_free()


def test_the_end_lets_requests_finish(model, monkeypatch):
    with running_server(model) as server, ThreadPoolExecutor(1) as pool:
        gate = Gate(monkeypatch, model.engine)
        answer = pool.submit(server.complete, prompt="The fox", max_tokens=3, temperature=0)
        wait_for(lambda: gate.steps)
        server.serving.stop()
        wait_for(lambda: server.http.get("/health").status_code == 503)
        late = server.post("/v1/completions", prompt="a")
        assert late.status_code == 503
        assert late.json()["error"]["code"] == "shutting_down"
        assert late.headers["Retry-After"]
        gate.is_open.set()
        assert answer.result(WAIT)["usage"]["completion_tokens"] == 3


def test_a_second_word_ends_it_at_once(model, monkeypatch):
    with running_server(model) as server, ThreadPoolExecutor(1) as pool:
        gate = Gate(monkeypatch, model.engine)
        answer = pool.submit(server.post, "/v1/completions", **LONG)
        wait_for(lambda: gate.steps)
        server.serving.stop()
        wait_for(lambda: server.http.get("/health").status_code == 503)
        server.serving.stop()
        wait_for(lambda: server.serving.service.engine._stops)
        gate.is_open.set()
        assert answer.result(WAIT).status_code == 503
    assert model.engine.extents.free == model.engine.extents.capacity


def one_of_many(server, number, seed):
    """A request of a random kind whose client may go in the middle; returns the number of those that went."""
    draw = random.Random(seed * 100_000 + number)
    body = {"max_tokens": draw.randint(1, 24), "temperature": 1.0, "stream": True, "n": draw.randint(1, 2)}
    path = draw.choice(["/v1/completions", "/v1/chat/completions"])
    text = "fox " * draw.randint(1, 20)
    body |= {"prompt": text} if path == "/v1/completions" else {"messages": [{"role": "user", "content": text}]}
    goes_after = draw.choice([None, None, 0, 1, 3])
    try:
        with httpx.stream(
            "POST", server.url + path, json=body, timeout=WAIT, trust_env=False, verify=NO_CERTIFICATES
        ) as response:
            if response.status_code == 429:
                return "full"
            assert response.status_code == 200, response.read()
            for index, _ in enumerate(response.iter_lines()):
                if goes_after is not None and index >= goes_after:
                    return "gone"
    except httpx.TransportError:
        return "lost"
    return "done"


def many(server, count, at_once, seed=0):
    with ThreadPoolExecutor(at_once) as pool:
        ended = list(pool.map(lambda number: one_of_many(server, number, seed), range(count)))
    server.wait_until_free()
    return {word: ended.count(word) for word in set(ended)}


def test_many_clients_leave_nothing_behind(model):
    with running_server(model, max_running=8) as server:
        ended = many(server, 60, 20)
        assert ended["gone"] >= 5 and ended["done"] >= 5
        assert "lost" not in ended
        server.complete(prompt="The fox", max_tokens=2)


@pytest.mark.slow
def test_a_thousand_clients_leave_nothing_behind(model):
    with running_server(model) as server:
        ended = many(server, 1000, 50)
        assert ended["gone"] > 100 and ended["done"] > 100
        assert "lost" not in ended
        assert server.metric("megafuser_kv_positions_used") == 0
