"""A mistake in the engine: everybody is told, and the server ends with another code."""

import asyncio
import threading

import httpx

from megafuser.serving.server import Serving, listen
from megafuser.serving.settings import Settings
from tests.unit.serving.case import NAME, WAIT


def test_a_mistake_in_a_step_ends_the_server(model, monkeypatch, caplog):
    settings = Settings(port=0, model_name=NAME)
    serving = Serving(model, settings, listen(settings))
    ready, codes = threading.Event(), []
    thread = threading.Thread(target=lambda: codes.append(asyncio.run(serving.run(lambda _: ready.set()))))
    thread.start()
    assert ready.wait(WAIT)

    def broken(asks):
        raise RuntimeError("a bug")

    monkeypatch.setattr(model.engine, "step", broken)
    answer = httpx.post(f"{serving.url}/v1/completions", json={"prompt": "a"}, timeout=WAIT, trust_env=False)
    assert answer.status_code == 500
    assert answer.json()["error"]["code"] == "engine_failed"
    thread.join(WAIT)
    assert codes == [1]
    assert "a bug" in caplog.text
    for request in serving.service.engine.scheduler.running:  # the model goes on to the next test
        model.engine.extents.give_back(request.start)
