"""A mistake in the engine: everybody is told, and the server ends with another code."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from megafuser.errors import UserError
from megafuser.serving.engine_loop import EngineLoop
from megafuser.serving.errors import ApiError
from megafuser.serving.metrics import Metrics
from megafuser.serving.server import Serving, listen
from megafuser.serving.settings import Settings
from tests.unit.serving.case import NAME, WAIT


def test_a_mistake_in_a_step_ends_the_server(model, monkeypatch, caplog):
    settings = Settings(port=0, model_name=NAME)
    serving = Serving(model, settings, listen(settings))
    engine = serving.service.engine
    ready, reached, goes_on, codes = threading.Event(), threading.Event(), threading.Event(), []
    thread = threading.Thread(target=lambda: codes.append(asyncio.run(serving.run(lambda _: ready.set()))))
    thread.start()
    assert ready.wait(WAIT)

    def broken(asks):
        reached.set()
        assert goes_on.wait(WAIT)
        raise RuntimeError("a bug")

    monkeypatch.setattr(model.engine, "step", broken)

    def ask():
        return httpx.post(f"{serving.url}/v1/completions", json={"prompt": "a"}, timeout=WAIT, trust_env=False)

    with ThreadPoolExecutor(2) as pool:
        answers = [pool.submit(ask)]
        assert reached.wait(WAIT)
        answers.append(pool.submit(ask))  # it comes while the step runs that fails
        pause = threading.Event()
        while engine.taken < 2:
            pause.wait(0.02)
        goes_on.set()
        for answer in answers:
            assert answer.result(WAIT).status_code == 500
            assert answer.result(WAIT).json()["error"]["code"] == "engine_failed"
    thread.join(WAIT)
    assert codes == [1]
    assert "a bug" in caplog.text
    for request in engine.scheduler.running:  # the model goes on to the next test
        model.engine.extents.give_back(request.start)


def test_what_comes_after_the_end_is_no_failure(model):
    engine = EngineLoop(model.engine, max_running=1, max_queue=1, metrics=Metrics(model.specialists))
    engine.start(lambda: None)
    engine.stop()
    with pytest.raises(ApiError) as caught:
        engine.submit([])
    assert caught.value.status == 503 and caught.value.code == "shutting_down"


def test_an_address_that_another_server_took_meanwhile_is_one_line(model):
    first = listen(Settings(port=0))
    settings = Settings(port=first.getsockname()[1])
    second = listen(settings)  # both are bound; who listens first has it
    first.listen()
    serving = Serving(model, settings, second)
    try:
        with pytest.raises(UserError, match=rf"127\.0\.0\.1:{settings.port} cannot be listened at"):
            asyncio.run(serving.run())
    finally:
        first.close()
        second.close()
