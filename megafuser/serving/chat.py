"""`/v1/chat/completions`: each specialist reads the messages through its own template."""

import time
from collections.abc import Sequence
from typing import Any

from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from megafuser.inference.prompts import Message
from megafuser.inference.step_messages import Prediction
from megafuser.serving.body_parsing import parse_body
from megafuser.serving.engine_loop import Event
from megafuser.serving.errors import invalid
from megafuser.serving.request_schema import ChatBody
from megafuser.serving.service import Service, Work
from megafuser.serving.stream import EventStream, gate_of


class Chat:
    """Answers one request."""

    def __init__(self, service: Service, body: ChatBody, work: Work) -> None:
        """Prepares.

        Args:
            service: the server's.
            body: what is asked for.
            work: what runs.
        """
        self._service = service
        self._body = body
        self._work = work

    def choice(self, index: int) -> dict[str, Any]:
        """A whole choice."""
        request = self._work.requests[index]
        assert request.finish is not None
        return {
            "index": index,
            "message": {"role": "assistant", "content": request.text.text, "refusal": None},
            "logprobs": self._logprobs(request.predictions),
            "finish_reason": request.finish.value,
        } | self._gate(request.predictions)

    def opening(self) -> list[dict[str, Any]]:
        """The first event's choices, which say who speaks."""
        return [
            {"index": index, "delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}
            for index in range(len(self._work.tickets))
        ]

    def pieces(self, index: int, first: int, last: int, event: Event) -> list[dict[str, Any]]:
        """New tokens, and behind the last ones a piece that says why they are the last."""
        request = self._work.requests[index]
        predictions = request.predictions[first:last]
        found = []
        if predictions:
            found.append(
                {
                    "index": index,
                    "delta": {"content": event.text},
                    "logprobs": self._logprobs(predictions),
                    "finish_reason": None,
                }
                | self._gate(predictions)
            )
        if event.is_last:
            assert request.finish is not None
            found.append({"index": index, "delta": {}, "logprobs": None, "finish_reason": request.finish.value})
        return found

    def chunk(self, work: Work, choices: list[dict[str, Any]]) -> dict[str, Any]:
        """An event of a stream."""
        return self._around("chat.completion.chunk", choices)

    def whole(self) -> dict[str, Any]:
        """The answer that is not a stream."""
        choices = [self.choice(index) for index in range(len(self._work.tickets))]
        return self._around("chat.completion", choices) | {"usage": self._work.usage}

    def _around(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self._work.id,
            "object": kind,
            "created": self._work.created,
            "model": self._service.name,
            "choices": choices,
        }

    def _gate(self, predictions: Sequence[Prediction]) -> dict[str, Any]:
        return {"gate": gate_of(self._service.model.specialists, predictions)} if self._body.gate else {}

    def _logprobs(self, predictions: Sequence[Prediction]) -> dict[str, Any] | None:
        if not self._body.logprobs:
            return None
        content = [
            self._token(one.token, one.logprob)
            | {"top_logprobs": [self._token(token, logprob) for token, logprob in one.top]}
            for one in predictions
        ]
        return {"content": content, "refusal": None}

    def _token(self, token: int, logprob: float) -> dict[str, Any]:
        own = self._service.tokens.of(token)
        return {"token": own.decode("utf-8", errors="replace"), "logprob": logprob, "bytes": list(own)}


async def answer_chat(service: Service, http: HttpRequest) -> Response:
    """Answers `POST /v1/chat/completions`.

    Raises:
        ApiError: why it is not answered.
    """
    came = time.monotonic()
    body = parse_body(await http.body(), ChatBody)
    service.check_model(body.model)
    wanted, param = _check(body)
    messages = [
        Message("system" if message.role == "developer" else message.role, message.text) for message in body.messages
    ]
    prompt = await service.encode(lambda: service.model.prompts.chat(messages), body.n or 1)
    most = service.most_tokens([prompt], wanted, None, param)
    work = service.submit([prompt], most, body, kind="chatcmpl", top=body.top_logprobs or 0, came=came)
    answer = Chat(service, body, work)
    if body.stream:
        wants_usage = bool(body.stream_options and body.stream_options.include_usage)
        return EventStream(
            service, work, http, answer.pieces, answer.chunk, with_usage=wants_usage, opening=answer.opening()
        ).response()
    async for _ in service.news(work, http):
        pass
    return JSONResponse(answer.whole())


def _check(body: ChatBody) -> tuple[int | None, str]:
    """What is wanted of tokens, and by which name."""
    if body.top_logprobs and not body.logprobs:
        raise invalid("top_logprobs goes with logprobs only", "top_logprobs", "invalid_value")
    if body.stream_options is not None and not body.stream:
        raise invalid("stream_options goes with stream only", "stream_options", "invalid_value")
    if body.max_completion_tokens is None:
        return body.max_tokens, "max_tokens"
    if body.max_tokens not in (None, body.max_completion_tokens):
        raise invalid("max_tokens and max_completion_tokens differ; give one", "max_tokens", "invalid_value")
    return body.max_completion_tokens, "max_completion_tokens"
