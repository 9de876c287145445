"""Server-sent events: pieces of choices as their tokens come.

What a piece holds is `serving.chat` and `serving.completions`.
"""

import json
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, Generic, TypeVar

from starlette.requests import Request as HttpRequest
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from megafuser.serving.engine_loop import Event
from megafuser.serving.errors import CLIENT_GONE, ApiError
from megafuser.serving.response_schema import ChatChunk, CompletionChunk, Usage
from megafuser.serving.service import Service, Work

Piece = TypeVar("Piece")

# no proxy is to collect events
_HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}


class EventStream(Generic[Piece]):
    """The response to a request with `stream`."""

    def __init__(
        self,
        service: Service,
        work: Work,
        http: HttpRequest,
        pieces: Callable[[int, int, int, Event], list[Piece]],
        chunk: Callable[[Work, list[Piece]], CompletionChunk | ChatChunk],
        *,
        with_usage: bool,
        opening: Sequence[Piece] = (),
    ) -> None:
        """Prepares.

        Args:
            service: the server's.
            work: what runs.
            http: the request.
            pieces: a choice's parts: of its number, its first and last new token and the event.
            chunk: puts parts into an event.
            with_usage: whether a last event has the numbers of tokens.
            opening: choices of a first event.
        """
        self._service = service
        self._work = work
        self._http = http
        self._pieces = pieces
        self._chunk = chunk
        self._with_usage = with_usage
        self._opening = list(opening)

    def response(self) -> StreamingResponse:
        """What the handler returns."""
        return _CancellingResponse(self._events(), self._service, self._work)

    async def _events(self) -> AsyncIterator[str]:
        sent = [0] * len(self._work.tickets)
        try:
            if self._opening:
                yield self._event_of(self._opening)
            async for index, event in self._service.news(self._work, self._http):
                # a token whose text is not sure yet comes with the one that makes it so
                if event.text or event.is_last:
                    for piece in self._pieces(index, sent[index], event.tokens, event):
                        yield self._event_of([piece])
                    sent[index] = event.tokens
            if self._with_usage:
                yield self._event_of([], self._work.usage)
            yield "data: [DONE]\n\n"
        except ApiError as error:
            if error.status != CLIENT_GONE:
                yield _event(error.body().sent())

    def _event_of(self, pieces: list[Piece], usage: Usage | None = None) -> str:
        chunk = self._chunk(self._work, pieces)
        if self._with_usage:  # then every event has it, null in all but the last
            chunk.usage = usage
        return _event(chunk.sent())


class _CancellingResponse(StreamingResponse):
    """Cancels its work however it ends; a client may even go before the first event is made."""

    def __init__(self, events: AsyncIterator[str], service: Service, work: Work) -> None:
        super().__init__(events, media_type="text/event-stream", headers=_HEADERS)
        self._service = service
        self._work = work

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._service.cancel(self._work)


def _event(value: dict[str, Any]) -> str:
    """Of ASCII only: many clients split lines at U+2028 and the like, which JSON would leave as they are."""
    return f"data: {json.dumps(value, allow_nan=False)}\n\n"
