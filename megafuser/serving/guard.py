"""What every HTTP request passes first: the log, the key, the size of its body, and whether the server still takes any.

The body is read here, whole and within limits of size and time, so that no handler ever waits for a slow client. The
routes behind it are `serving.app`.
"""

import asyncio
import hmac
import logging
import time
from dataclasses import dataclass

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from megafuser.serving.errors import CLIENT_GONE, ApiError, stopping
from megafuser.serving.metrics import Metrics

logger = logging.getLogger(__name__)

ROUTES = ("/v1/models", "/v1/completions", "/v1/chat/completions", "/health", "/metrics", "/", "/openapi.json")
_DISCARDED = 16  # times the limit: how much of a body that is too large is read before the client is told
_BODY_SECONDS = 60.0


@dataclass
class Tally:
    """What a handler tells the access log; in the scope as `megafuser`.

    Attributes:
        tokens: generated.
    """

    tokens: int = 0


class Guard:
    """The outermost layer of the application.

    Attributes:
        is_stopping: whether new requests are refused.
        present: requests of `/v1` that are being answered, past the key; the end waits for them and for no others.
    """

    def __init__(self, app: ASGIApp, *, metrics: Metrics, api_key: str | None, max_body_bytes: int) -> None:
        """Wraps an application.

        Args:
            app: the application.
            metrics: counts requests.
            api_key: what `/v1` asks for; None: nothing.
            max_body_bytes: of a request.
        """
        self.is_stopping = False
        self.present = 0
        self._app = app
        self._metrics = metrics
        self._key = None if api_key is None else api_key.encode("utf-8")
        self._max_body = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request, or hands it on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, tally, status = time.monotonic(), Tally(), CLIENT_GONE
        scope["megafuser"] = tally

        async def send_and_see(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._answer(scope, receive, send_and_see)
        except ApiError as error:
            await error.response()(scope, receive, send_and_see)
        finally:
            path = scope["path"]
            self._metrics.request(path if path in ROUTES else "other", status)
            milliseconds = round(1000 * (time.monotonic() - started))
            logger.info("%s %s %d %d ms %d tokens", scope["method"], _shown(scope), status, milliseconds, tally.tokens)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"]
        if self.is_stopping and (path.startswith("/v1") or path == "/health"):
            raise stopping()
        if not path.startswith("/v1"):
            await self._read_and_hand_on(scope, receive, send)
            return
        self._check_key(scope)
        self.present += 1
        try:
            await self._read_and_hand_on(scope, receive, send)
        finally:
            self.present -= 1

    async def _read_and_hand_on(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            body = await asyncio.wait_for(self._read(scope, receive), _BODY_SECONDS)
        except TimeoutError:
            raise ApiError(
                408, "the body did not come in time; send it at once", headers={"Connection": "close"}
            ) from None
        if body is None:  # the client has gone
            return
        is_read = False

        async def receive_again() -> Message:
            nonlocal is_read
            if is_read:
                return await receive()
            is_read = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self._app(scope, receive_again, send)

    def _check_key(self, scope: Scope) -> None:
        if self._key is None:
            return
        given = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
        scheme, _, key = given.partition(b" ")
        if scheme.lower() != b"bearer" or not hmac.compare_digest(key.strip(), self._key):
            raise ApiError(
                401,
                "a wrong API key, or none; send it as `Authorization: Bearer KEY`",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )

    async def _read(self, scope: Scope, receive: Receive) -> bytes | None:
        """The body; None where the client has gone.

        What is too large is read on for a while and thrown away: who is still sending does not see the answer.
        """
        body = bytearray()
        size = 0
        declared = next((value for name, value in scope["headers"] if name == b"content-length"), b"0")
        is_large = not declared.isdigit() or int(declared[:20]) > self._max_body
        more = int(declared[:20] or b"0") <= _DISCARDED * self._max_body if declared.isdigit() else False
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            part = message.get("body", b"")
            size += len(part)
            is_large = is_large or size > self._max_body
            if is_large:
                body.clear()
            else:
                body += part
            more = message.get("more_body", False) and size <= _DISCARDED * self._max_body
        if is_large:
            raise ApiError(
                413,
                f"the body is larger than {self._max_body} bytes; send a smaller one",
                code="body_too_large",
                headers={"Connection": "close"},
            )
        return bytes(body)


def _shown(scope: Scope) -> str:
    """The path as it came, percent-encoded and without the query, which is nobody's business."""
    raw: bytes = scope.get("raw_path") or scope["path"].encode("utf-8")
    letters = raw.split(b"?")[0][:200].decode("latin-1")
    return "".join(letter if "!" <= letter <= "~" else "?" for letter in letters)
