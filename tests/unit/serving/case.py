"""A server of a small fusion in this process, on a port of its own."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from megafuser.config.schema import RunConfig
from megafuser.inference.open_model import FusedLanguageModel
from megafuser.serving.server import Serving, listen
from megafuser.serving.settings import Settings
from tests.fused_case import SPECIALISTS
from tests.tiny_models import SHARED_VOCABULARY
from tests.unit.inference.case import END, LIMIT, build, make_engine, make_prompts

NAME = "tiny"
WAIT = 120.0  # seconds; the machine may have much to do


def open_model(root: Path, cache_bytes: int = 8 << 20) -> FusedLanguageModel:
    """What `open_checkpoint` gives, of specialists with a gate that prefers."""
    prompts = make_prompts(root)
    return FusedLanguageModel(
        name="run/joint/step_000001",
        specialists=tuple(SPECIALISTS),
        engine=make_engine(build(root), cache_bytes),
        prompts=prompts,
        tokenizer=prompts.tokenizer,
        end_id=END,
        shared_vocabulary=SHARED_VOCABULARY,
        limit=LIMIT,
        config=_no_config(),
    )


def _no_config() -> RunConfig:
    """Serving does not read it."""
    return None  # type: ignore[return-value]


class RunningServer:
    """A server and what tests ask of it."""

    def __init__(self, serving: Serving, url: str) -> None:
        self.serving = serving
        self.url = url
        self.http = httpx.Client(base_url=url, timeout=WAIT, trust_env=False)

    def post(self, path: str, **body: Any) -> httpx.Response:
        return self.http.post(path, json=body)

    def complete(self, **body: Any) -> dict[str, Any]:
        """The answer to a completion, which must succeed."""
        response = self.post("/v1/completions", **body)
        assert response.status_code == 200, response.text
        return response.json()

    def chat(self, text: str, **body: Any) -> dict[str, Any]:
        """The answer to a chat of one message, which must succeed."""
        response = self.post("/v1/chat/completions", messages=[{"role": "user", "content": text}], **body)
        assert response.status_code == 200, response.text
        return response.json()

    def metric(self, name: str) -> float:
        """A metric without labels."""
        lines = self.http.get("/metrics").text.splitlines()
        (value,) = [line.split()[-1] for line in lines if line.startswith(f"{name} ")]
        return float(value)

    def wait_until_free(self) -> None:
        """Ends when no sequence is left and every position is given back; fails if that takes too long."""
        done = threading.Event()
        for _ in range(int(WAIT / 0.05)):
            if not self.metric("megafuser_kv_positions_used") and not self.metric("megafuser_waiting_requests"):
                break
            done.wait(0.05)
        engine = self.serving.service.engine
        assert self.metric("megafuser_kv_positions_used") == 0
        assert self.metric("megafuser_running_requests") == 0
        assert engine.taken == 0 and engine.scheduler.is_idle


@contextmanager
def running_server(model: FusedLanguageModel, **settings: Any) -> Iterator[RunningServer]:
    """Runs a server in a thread; ends it at the end, which must succeed."""
    own = Settings(**{"port": 0, "model_name": NAME, "grace_seconds": WAIT} | settings)
    serving = Serving(model, own, listen(own))
    ready, codes = threading.Event(), []
    thread = threading.Thread(target=lambda: codes.append(asyncio.run(serving.run(lambda _: ready.set()))))
    thread.start()
    try:
        assert ready.wait(WAIT)
        server = RunningServer(serving, serving.url)
        yield server
        server.http.close()
    finally:
        serving.stop()
        thread.join(WAIT)
        if thread.is_alive():  # requests that a failed test has left
            serving.stop()
            thread.join(WAIT)
    assert codes == [0]
