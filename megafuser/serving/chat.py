"""`/v1/chat/completions`: each specialist reads the messages through its own template.

The templates are put around them by `inference.prompts`; prompts without one are `serving.completions`.
"""

import time
from collections.abc import Sequence

from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from megafuser.inference.prompts import Message
from megafuser.inference.step_messages import Prediction
from megafuser.serving.body_parsing import parse_body
from megafuser.serving.choice_parts import finish_of, gate_of
from megafuser.serving.engine_loop import Event
from megafuser.serving.errors import invalid
from megafuser.serving.request_schema import ChatBody
from megafuser.serving.response_schema import (
    Answer,
    ChatChoice,
    ChatChunk,
    ChatCompletion,
    ChatLogprobs,
    ChatPiece,
    Delta,
    TokenLogprob,
    TopLogprob,
)
from megafuser.serving.service import Service, Work
from megafuser.serving.stream import EventStream


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

    def choice(self, index: int) -> ChatChoice:
        """A whole choice."""
        request = self._work.requests[index]
        choice = ChatChoice(
            index=index,
            message=Answer(role="assistant", content=request.text.text, refusal=None),
            logprobs=self._logprobs(request.predictions),
            finish_reason=finish_of(request),
        )
        self._add_gate(choice, request.predictions)
        return choice

    def opening(self) -> list[ChatPiece]:
        """The first event's choices, which say who speaks."""
        delta = Delta(role="assistant", content="")
        return [
            ChatPiece(index=index, delta=delta, logprobs=None, finish_reason=None)
            for index in range(len(self._work.tickets))
        ]

    def pieces(self, index: int, first: int, last: int, event: Event) -> list[ChatPiece]:
        """New tokens, and behind the last ones a piece that says why they are the last."""
        request = self._work.requests[index]
        predictions = request.predictions[first:last]
        found = []
        if predictions:
            piece = ChatPiece(
                index=index, delta=Delta(content=event.text), logprobs=self._logprobs(predictions), finish_reason=None
            )
            self._add_gate(piece, predictions)
            found.append(piece)
        if event.is_last:
            found.append(ChatPiece(index=index, delta=Delta(), logprobs=None, finish_reason=finish_of(request)))
        return found

    def chunk(self, work: Work, choices: list[ChatPiece]) -> ChatChunk:
        """An event of a stream."""
        return ChatChunk(
            id=work.id, object="chat.completion.chunk", created=work.created, model=self._service.name, choices=choices
        )

    def whole(self) -> ChatCompletion:
        """The answer that is not a stream."""
        work = self._work
        choices = [self.choice(index) for index in range(len(work.tickets))]
        return ChatCompletion(
            id=work.id, object="chat.completion", created=work.created, model=self._service.name, choices=choices,
            usage=work.usage,
        )  # fmt: skip

    def _add_gate(self, choice: ChatChoice | ChatPiece, predictions: Sequence[Prediction]) -> None:
        if self._body.gate:
            choice.gate = gate_of(self._service.model.specialists, predictions)

    def _logprobs(self, predictions: Sequence[Prediction]) -> ChatLogprobs | None:
        if not self._body.logprobs:
            return None
        return ChatLogprobs(content=[self._chosen(one) for one in predictions], refusal=None)

    def _chosen(self, one: Prediction) -> TokenLogprob:
        text, own = self._shown(one.token)
        top = [self._probable(token, logprob) for token, logprob in one.top]
        return TokenLogprob(token=text, logprob=one.logprob, bytes=own, top_logprobs=top)

    def _probable(self, token: int, logprob: float) -> TopLogprob:
        text, own = self._shown(token)
        return TopLogprob(token=text, logprob=logprob, bytes=own)

    def _shown(self, token: int) -> tuple[str, list[int]]:
        own = self._service.tokens.of(token)
        return own.decode("utf-8", errors="replace"), list(own)


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
    prompt = await service.encode(lambda: service.model.prompts.chat(messages, service.model.limit), body.n or 1)
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
    return JSONResponse(answer.whole().sent())


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
