"""The page at `/`: nothing from elsewhere, and what a browser makes of it."""

import asyncio
import base64
import hashlib
import re
import threading
from pathlib import Path

import aiohttp
import numpy as np
import pytest
from PIL import Image

from megafuser.figures.palette import blend, specialist_colours
from tests.fused_case import SPECIALISTS
from tests.unit.serving.browser import CHROMIUM, WAIT, Browser, chromium
from tests.unit.serving.case import running_server


def test_the_policy_lets_this_page_run_and_nothing_else(server):
    response = server.http.get("/")
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    policy = dict(part.split(" ", 1) for part in response.headers["content-security-policy"].split("; "))
    assert policy["default-src"] == "'none'"
    assert policy["connect-src"] == "'self'"
    for tag in ("script", "style"):
        (content,) = re.findall(rf"<{tag}[^>]*>(.*?)</{tag}>", response.text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert policy[f"{tag}-src"] == f"'sha256-{digest}'"
    assert "unsafe" not in response.headers["content-security-policy"]
    assert not re.search(r"https?://|innerHTML|\bon\w+=|\bstyle=", response.text)
    for name in SPECIALISTS:  # known to who has the key only
        assert name not in re.findall(r"const COLOURS = (.*?);", response.text)[0]


async def drive(socket_url, url, directory, key, step):
    """Asks for an answer, looks at the page in its middle and at its end."""
    async with aiohttp.ClientSession() as session, session.ws_connect(socket_url, max_msg_size=0) as socket:
        page = Browser(socket)
        for domain in ("Runtime", "Log"):
            await page.call(f"{domain}.enable")
        await page.open(url)
        await page.run("document.getElementById('prompt').value = ' '; document.getElementById('send').click()")
        assert await page.run("document.getElementById('status').textContent") == "write a prompt first"
        await page.run(
            "document.getElementById('prompt').value = 'What is <b>the</b> sum?';"
            "document.getElementById('tokens').value = '60';"
            "document.getElementById('temperature').value = '1.25';"
            "document.getElementById('send').click()"
        )
        await page.wait_for("document.getElementById('status').textContent.includes('key')")
        assert await page.run("document.getElementById('status').className") == "error"
        refused = await page.run("document.getElementById('status').textContent")
        await page.run(f"document.getElementById('key').value = '{key}'; document.getElementById('send').click()")
        step.wait_until(25)
        await page.wait_for("document.querySelectorAll('#answer span').length >= 15")
        await page.picture(directory / "middle.png")
        middle = await page.run("document.querySelectorAll('#answer span').length")
        await page.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark"}])
        await page.picture(directory / "dark.png")
        step.go_on()
        await page.wait_for("!document.getElementById('send').disabled")
        await page.picture(directory / "end.png")
        found = await page.run(
            """({
                text: document.getElementById('answer').textContent,
                status: document.getElementById('status').textContent,
                legend: [...document.querySelectorAll('#legend span')].map((part) => part.textContent),
                spans: [...document.querySelectorAll('#answer span')].map((part) => ({
                    colour: part.style.backgroundColor, title: part.title, text: part.textContent,
                    children: part.children.length,
                })),
            })"""
        )
        return refused, middle, found, page.messages


class Steps:
    """Lets the engine make some steps, then holds it until it is told to go on."""

    def __init__(self, monkeypatch, engine):
        self._made = 0
        self._holds_at = 30
        self._changed = threading.Condition()
        step = engine.step

        def counted(asks):
            with self._changed:
                self._made += 1
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._made < self._holds_at, WAIT)
            return step(asks)

        monkeypatch.setattr(engine, "step", counted)

    def wait_until(self, steps):
        with self._changed:
            assert self._changed.wait_for(lambda: self._made >= steps, WAIT)

    def go_on(self):
        with self._changed:
            self._holds_at = 10**9
            self._changed.notify_all()


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium; apt-get install chromium")
def test_a_browser_colours_tokens_as_they_stream(model, monkeypatch, tmp_path: Path) -> None:
    with running_server(model, api_key="sesame") as server:
        step = Steps(monkeypatch, model.engine)
        try:
            with chromium() as socket_url:
                refused, middle, found, messages = asyncio.run(drive(socket_url, server.url, tmp_path, "sesame", step))
        finally:
            step.go_on()
    assert "API key" in refused
    spans = found["spans"]
    assert 15 <= middle < len(spans)
    assert "".join(span["text"] for span in spans) == found["text"]
    assert not any(span["children"] for span in spans)
    assert re.match(r"\d+ tokens, [\d.]+ per second, ended by (length|stop)$", found["status"])
    colours = list(specialist_colours(list(SPECIALISTS)).values())
    for span in spans:
        weights = [float(line.split()[1]) for line in span["title"].splitlines()]
        assert [line.split()[0] for line in span["title"].splitlines()] == list(SPECIALISTS)
        (expected,) = blend(np.array([weights]), colours)
        shown = [int(number) for number in re.findall(r"\d+", span["colour"])]
        assert shown == pytest.approx([int(expected[at : at + 2], 16) for at in (1, 3, 5)], abs=2)
    assert [part.split()[0] for part in found["legend"]] == list(SPECIALISTS)
    assert sum(float(part.split()[1]) for part in found["legend"]) == pytest.approx(1, abs=3e-3)
    complaints = [
        message for message in messages
        if message.get("method") == "Runtime.exceptionThrown"
        or (message.get("method") == "Log.entryAdded" and "401" not in message["params"]["entry"]["text"])
    ]  # fmt: skip
    assert not complaints
    light, dark = (np.asarray(Image.open(tmp_path / f"{name}.png").convert("L")).mean() for name in ("middle", "dark"))
    assert dark < 100 < light
