"""`/v1/completions`: the same ids to all specialists, every position scored where `echo` and `logprobs` ask for it.

Prompts through templates are `serving.chat`.
"""

import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from megafuser.inference.prompts import Ids
from megafuser.inference.request import Request
from megafuser.inference.step_messages import Prediction
from megafuser.serving.body_parsing import parse_body
from megafuser.serving.choice_parts import finish_of, gate_of
from megafuser.serving.engine_loop import Event
from megafuser.serving.errors import invalid
from megafuser.serving.request_schema import CompletionBody
from megafuser.serving.response_schema import Completion, CompletionChoice, CompletionChunk, CompletionLogprobs
from megafuser.serving.service import Service, Work
from megafuser.serving.stream import EventStream
from megafuser.serving.text_offsets import TextOffsets

_DEFAULT_MAX_TOKENS = 16  # OpenAI's


class Completions:
    """Answers one request.

    Completions come in pieces, the whole one being one piece: a prompt where `echo` is on, then tokens.
    """

    def __init__(self, service: Service, body: CompletionBody, texts: Sequence[str | None]) -> None:
        """Prepares.

        Args:
            service: the server's.
            body: what is asked for.
            texts: of the prompts; None where ids were given.
        """
        self._service = service
        self._body = body
        self._texts = [text for text in texts for _ in range(body.n or 1)]
        self._offsets = [TextOffsets(service.tokens) for _ in self._texts]

    def choice(self, index: int, request: Request, first: int, last: int, event: Event) -> CompletionChoice:
        """A piece of a choice: the tokens from `first` to `last`, their text, and before the first one the prompt."""
        text = event.text
        predictions: list[Prediction | None] = list(request.predictions[first:last])
        ids = request.response[first:last]
        echoed: list[int] = []
        before = ""
        if self._body.echo and first == 0:
            echoed = list(request.call.prompts[0])
            predictions = [None, *request.echoed, *predictions]
            before = self._before(index, request)
            text = before + text
        logprobs = None
        if self._body.logprobs is not None:
            offsets: list[int] = []
            if first == 0:
                offsets = self._prompt_offsets(index, request, len(before))[: len(echoed)]
            offsets += self._offsets[index].of(ids)
            logprobs = self._logprobs(echoed + ids, predictions, offsets)
        # the last piece says why it is the last
        finish = finish_of(request) if event.is_last else None
        choice = CompletionChoice(index=index, text=text, logprobs=logprobs, finish_reason=finish)
        if self._body.gate:
            choice.gate = gate_of(self._service.model.specialists, predictions)
        return choice

    def _before(self, index: int, request: Request) -> str:
        """The text of a prompt, but for a character that its last ids leave unfinished."""
        prompt, shown = request.call.prompts[0], request.text.shown
        own = self._texts[index]
        if own is not None and shown == len(prompt):
            return own
        text: str = self._service.model.tokenizer.decode(
            prompt[:shown], skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return text

    def _prompt_offsets(self, index: int, request: Request, length: int) -> list[int]:
        """The places of a prompt's tokens; those of its response, which are asked for next, follow from them.

        Args:
            index: the choice's number.
            request: the choice's.
            length: of the prompt's text in front of the response's.
        """
        offsets, prompt, shown = self._offsets[index], request.call.prompts[0], request.text.shown
        found = offsets.of(prompt[:shown])
        offsets.go_on_at(length)
        return found + offsets.of(prompt[shown:])

    def _logprobs(
        self, ids: Sequence[int], predictions: Sequence[Prediction | None], offsets: list[int]
    ) -> CompletionLogprobs:
        return CompletionLogprobs(
            tokens=[self._service.tokens.name(token) for token in ids],
            token_logprobs=[None if one is None else one.logprob for one in predictions],
            top_logprobs=[None if one is None else self._top(one) for one in predictions],
            text_offset=offsets,
        )

    def _top(self, one: Prediction) -> dict[str, float]:
        """By name; of two tokens with the same name the more probable one counts."""
        found: dict[str, float] = {}
        for token, logprob in (*one.top, (one.token, one.logprob)):
            found.setdefault(self._service.tokens.name(token), logprob)
        return found

    def chunk(self, work: Work, choices: list[CompletionChoice]) -> CompletionChunk:
        """An event of a stream."""
        return CompletionChunk(
            id=work.id, object="text_completion", created=work.created, model=self._service.name, choices=choices
        )

    def whole(self, work: Work) -> Completion:
        """The answer that is not a stream."""
        choices = [
            self.choice(index, request, 0, len(request.predictions), Event(request.text.text, 0, True))
            for index, request in enumerate(work.requests)
        ]
        return Completion(
            id=work.id, object="text_completion", created=work.created, model=self._service.name, choices=choices,
            usage=work.usage,
        )  # fmt: skip


async def answer_completions(service: Service, http: HttpRequest) -> Response:
    """Answers `POST /v1/completions`.

    Raises:
        ApiError: why it is not answered.
    """
    came = time.monotonic()
    body = parse_body(await http.body(), CompletionBody)
    service.check_model(body.model)
    _check(body)
    given = _prompts(body)
    prompts = await service.encode(lambda: _ids(service, given), len(given) * (body.n or 1))
    texts = [one if isinstance(one, str) else None for one in given]
    most = service.most_tokens(prompts, body.max_tokens, _DEFAULT_MAX_TOKENS, "max_tokens")
    work = service.submit(
        prompts, most, body, kind="cmpl", top=body.logprobs or 0, came=came, raw=True, echo=bool(body.echo)
    )
    answer = Completions(service, body, texts)
    if body.stream:
        wants_usage = bool(body.stream_options and body.stream_options.include_usage)

        def pieces(index: int, first: int, last: int, event: Event) -> list[CompletionChoice]:
            return [answer.choice(index, work.requests[index], first, last, event)]

        stream = EventStream(service, work, http, pieces, answer.chunk, with_usage=wants_usage)
        return stream.response()
    news: AsyncIterator[tuple[int, Event]] = service.news(work, http)
    async for _ in news:
        pass
    return JSONResponse(answer.whole(work).sent())


def _check(body: CompletionBody) -> None:
    if body.best_of is not None and body.best_of != (body.n or 1):
        raise invalid("best_of must equal n: choices are not ranked", "best_of", "unsupported_value")
    if body.max_tokens == 0 and not body.echo:
        raise invalid("max_tokens is 0; that goes with echo only", "max_tokens", "invalid_value")
    if body.stream_options is not None and not body.stream:
        raise invalid("stream_options goes with stream only", "stream_options", "invalid_value")


def _prompts(body: CompletionBody) -> list[str | list[int]]:
    """One prompt or several, as a list."""
    given: Any = body.prompt
    return [given] if isinstance(given, str) or isinstance(given[0], int) else list(given)


def _ids(service: Service, given: Sequence[str | list[int]]) -> list[Ids]:
    """The ids of each prompt."""
    encoder, specialists = service.model.prompts, len(service.model.specialists)
    return [
        encoder.raw(one, specialists) if isinstance(one, str) else encoder.raw_ids(one, specialists) for one in given
    ]
