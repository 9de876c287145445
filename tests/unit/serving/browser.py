"""Headless Chromium, driven by its DevTools protocol."""

import base64
import itertools
import json
import re
import shutil
import subprocess
import tempfile
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
WAIT = 120.0


class Browser:
    """One page."""

    def __init__(self, socket: Any) -> None:
        self._socket = socket
        self._numbers = itertools.count(1)
        self.messages: list[dict[str, Any]] = []  # events

    async def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        number = next(self._numbers)
        await self._socket.send_json({"id": number, "method": method, "params": parameters})
        while True:
            message = json.loads((await self._socket.receive(timeout=WAIT)).data)
            if message.get("id") == number:
                assert "error" not in message, message
                return message["result"]
            self.messages.append(message)

    async def open(self, url: str) -> None:
        """Ends when the page is loaded."""
        await self.call("Page.enable")
        await self.call("Page.navigate", url=url)
        while not any(message["method"] == "Page.loadEventFired" for message in self.messages):
            self.messages.append(json.loads((await self._socket.receive(timeout=WAIT)).data))

    async def run(self, script: str) -> Any:
        """The value of an expression; promises are awaited."""
        found = await self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    async def wait_for(self, condition: str) -> None:
        """Ends when an expression is true; fails if that takes too long."""
        script = f"""new Promise((done, fail) => {{
            const until = Date.now() + {int(WAIT * 1000)};
            const look = () => {{
                if ({condition}) done(true);
                else if (Date.now() > until) fail(new Error("it did not come to that"));
                else setTimeout(look, 50);
            }};
            look();
        }})"""
        await self.run(script)

    async def picture(self, file: Path) -> None:
        found = await self.call("Page.captureScreenshot", format="png")
        file.write_bytes(base64.b64decode(found["data"]))


@contextmanager
def chromium() -> Iterator[str]:
    """Starts a browser with an empty page; gives the address of the page's socket."""
    assert CHROMIUM is not None
    with tempfile.TemporaryDirectory() as profile:
        command = [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        command += ["--remote-debugging-port=0", f"--user-data-dir={profile}", "--window-size=900,900", "data:,"]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        assert process.stderr is not None
        try:
            port = next(found[1] for line in process.stderr if (found := re.search(r"ws://127\.0\.0\.1:(\d+)/", line)))
            rest = threading.Thread(target=process.stderr.read)  # a full pipe would stop the browser
            rest.start()
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list", timeout=WAIT) as answer:
                pages = [page for page in json.load(answer) if page["type"] == "page"]
            yield pages[0]["webSocketDebuggerUrl"]
        finally:
            process.kill()
            process.wait()
