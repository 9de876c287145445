"""Which requests the end of the server waits for."""

import asyncio
from typing import Any

import pytest

from megafuser.serving.guard import Guard
from megafuser.serving.metrics import Metrics
from tests.unit.serving.case import WAIT

KEY = [(b"authorization", b"Bearer sesame")]


async def present(path: str, headers: list[tuple[bytes, bytes]]) -> tuple[int, int]:
    """How many count while a client is slow, in sending its body or else in reading its answer; and afterwards."""
    slow = asyncio.Event()

    async def wait(*_: Any) -> Any:
        slow.set()
        await asyncio.Event().wait()

    async def app(*_: Any) -> None:
        raise AssertionError("the body never comes")

    guard = Guard(app, metrics=Metrics(["text"]), api_key="sesame", max_body_bytes=100)
    scope = {"type": "http", "method": "POST", "path": path, "headers": [*headers, (b"content-length", b"9")]}
    request = asyncio.create_task(guard(scope, wait, wait))
    await asyncio.wait_for(slow.wait(), WAIT)
    counted = guard.present
    request.cancel()
    await asyncio.wait([request])
    return counted, guard.present


@pytest.mark.parametrize(
    ("path", "headers", "counted"),
    [
        ("/v1/completions", KEY, 1),
        ("/v1/completions", [], 0),
        ("/v1/completions", [(b"authorization", b"Bearer wrong")], 0),
        ("/health", [], 0),
        ("/", KEY, 0),
    ],
)
def test_a_slow_client_without_the_key_does_not_hold_the_end(path: str, headers: list, counted: int) -> None:
    assert asyncio.run(present(path, headers)) == (counted, 0)
