"""From a checked body to running requests, and to the news that come back of them.

The two forms of answers are `serving.chat` and `serving.completions`; the steps are `serving.engine_loop`.
"""

import asyncio
import contextlib
import secrets
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

from starlette.requests import Request as HttpRequest

from megafuser.errors import UserError
from megafuser.inference.cache import longest
from megafuser.inference.open_model import FusedLanguageModel
from megafuser.inference.prompts import ContextLengthError, Ids
from megafuser.inference.request import Call, Request
from megafuser.serving.engine_loop import EngineLoop, Event, News, Ticket
from megafuser.serving.errors import CLIENT_GONE, ApiError, invalid
from megafuser.serving.metrics import Metrics
from megafuser.serving.request_schema import SamplingBody
from megafuser.serving.response_schema import Usage
from megafuser.serving.settings import Settings
from megafuser.serving.token_bytes import TokenBytes

T = TypeVar("T")


@dataclass(frozen=True)
class Work:
    """The sequences of one HTTP request.

    Attributes:
        id: of the response.
        created: seconds since 1970.
        tickets: a choice each, in order of their indices.
        news: of them all.
        prompt_tokens: of all prompts, each counted once.
        came: when the request did, in seconds of `time.monotonic`.
    """

    id: str
    created: int
    tickets: list[Ticket]
    news: News
    prompt_tokens: int
    came: float

    @property
    def requests(self) -> list[Request]:
        """What runs."""
        return [ticket.request for ticket in self.tickets]

    @property
    def usage(self) -> Usage:
        """Numbers of tokens so far."""
        made = sum(len(request.response) for request in self.requests)
        return Usage(prompt_tokens=self.prompt_tokens, completion_tokens=made, total_tokens=self.prompt_tokens + made)


class Service:
    """What all handlers need.

    Attributes:
        model: the open checkpoint.
        settings: the server's.
        name: what the model is called.
        tokens: bytes of tokens.
        metrics: the server's.
        engine: runs requests.
        started: seconds since 1970.
    """

    def __init__(self, model: FusedLanguageModel, settings: Settings, metrics: Metrics, engine: EngineLoop) -> None:
        """Puts the parts together."""
        self.model = model
        self.settings = settings
        self.name = settings.model_name or model.name
        self.tokens = TokenBytes(model.tokenizer)
        self.metrics = metrics
        self.engine = engine
        self.started = int(time.time())
        # one thread: tokenizers and templates are not made for several
        self._encoding = ThreadPoolExecutor(1, thread_name_prefix="encode")
        self._being_encoded = 0  # sequences

    def close(self) -> None:
        """Ends the thread that encodes."""
        self._encoding.shutdown(wait=False, cancel_futures=True)

    def check_model(self, name: str | None) -> None:
        """Refuses another model's name.

        Raises:
            ApiError: 404.
        """
        if name is not None and name != self.name:
            raise ApiError(
                404,
                f"no model {name[:200]!r} here; ask for {self.name!r}",
                param="model",
                code="model_not_found",
            )

    async def encode(self, work: Callable[[], T], sequences: int) -> T:
        """Makes ids in a thread, so that a long text does not hold up what runs.

        Args:
            work: makes them.
            sequences: how many are to be queued afterwards. Those that are being encoded count as queued.

        Raises:
            ApiError: a text that cannot be used, or there is no room in the queue.
        """
        self.engine.check_room(sequences, self._being_encoded)
        self._being_encoded += sequences
        try:
            return await asyncio.get_running_loop().run_in_executor(self._encoding, work)
        except ContextLengthError as error:
            raise invalid(str(error), "messages", "context_length_exceeded") from None
        except UserError as error:
            raise invalid(str(error), code="invalid_prompt") from None
        finally:
            self._being_encoded -= sequences

    def most_tokens(self, prompts: Sequence[Ids], wanted: int | None, default: int | None, param: str) -> list[int]:
        """How many tokens each response may have at most.

        Args:
            prompts: of the request.
            wanted: what the request says.
            default: where it says nothing; None: as many as there is room for.
            param: the parameter's name.

        Raises:
            ApiError: there is no room for so many.
        """
        cap = self.settings.max_tokens
        if wanted is not None and cap is not None and wanted > cap:
            problem = f"{param} is {wanted}, and this server makes at most {cap} tokens; ask for fewer"
            raise invalid(problem, param, "max_tokens_exceeded")
        found = []
        for prompt in prompts:
            length = longest(prompt)
            room = self.model.limit - length
            if (1 if wanted is None else wanted) > room:
                asked = "" if wanted is None else f", and {param} is {wanted}"
                remedy = "shorten it" if room < 1 else f"ask for at most {room}"
                raise invalid(
                    f"the prompt has {length} tokens{asked}, but the context has {self.model.limit}; {remedy}",
                    "prompt" if room < 1 else param,
                    "context_length_exceeded",
                )
            capacity = self.model.engine.extents.capacity - length + 1
            usual = min(room, capacity, *(number for number in (default, cap) if number is not None))
            found.append(max(usual, 1) if wanted is None else wanted)
        return found

    def submit(
        self,
        prompts: Sequence[Ids],
        most: Sequence[int],
        body: SamplingBody,
        *,
        kind: str,
        top: int,
        came: float,
        raw: bool = False,
        echo: bool = False,
    ) -> Work:
        """Queues `n` sequences for each prompt; each draws by itself, those of equal prompts too.

        Args:
            prompts: as ids.
            most: tokens of each prompt's responses.
            body: what the request says of sampling.
            kind: what the response's id begins with.
            top: how many of the most probable tokens are wanted at each position.
            came: when the request did, in seconds of `time.monotonic`; its time runs from then on.
            raw: the responses' texts go on with the prompts'.
            echo: also score the prompts.

        Raises:
            ApiError: the queue is full, or it cannot be done.
        """
        choices = body.n or 1
        seed = secrets.randbits(62) if body.seed is None else body.seed
        tickets: list[Ticket] = []
        news: News = asyncio.Queue()
        for prompt, tokens in zip(prompts, most, strict=True):
            for _ in range(choices):
                call = Call(
                    prompts=prompt,
                    max_tokens=tokens,
                    sampling=body.sampling((seed + len(tickets)) % 2**63),
                    stop=body.stops,
                    top=top,
                    echo=echo,
                    continues=raw,
                )
                ticket = Ticket(len(tickets), news)
                ticket.request = Request(
                    call,
                    tokenizer=self.model.tokenizer,
                    end_id=self.model.end_id,
                    on_token=lambda request, text, ticket=ticket: self.engine.deliver(ticket, request, text),  # type: ignore[misc]
                )
                tickets.append(ticket)
        try:
            self.engine.submit(tickets)
        except UserError as error:
            raise invalid(str(error), code="context_length_exceeded") from None
        total = sum(map(longest, prompts))
        self.metrics.prompt(total)
        return Work(f"{kind}-{secrets.token_hex(12)}", int(time.time()), tickets, news, total, came)

    async def news(self, work: Work, http: HttpRequest) -> AsyncIterator[tuple[int, Event]]:
        """What comes of a request's sequences, with the choice's number, until all have ended.

        Whatever ends the reading, also that the client has gone, cancels what still runs.

        Raises:
            ApiError: the client has gone (499), it took too long (504), the server goes down (503) or has failed.
        """
        running = len(work.tickets)
        gone = asyncio.ensure_future(_gone(http))
        deadline = work.came + self.settings.request_timeout
        coming: asyncio.Task[tuple[int, Event | ApiError]] | None = None
        try:
            while running:
                if work.news.empty():
                    coming = asyncio.ensure_future(work.news.get())
                    left = max(deadline - time.monotonic(), 0.0)
                    done, _ = await asyncio.wait({gone, coming}, timeout=left, return_when=asyncio.FIRST_COMPLETED)
                    if coming not in done:
                        raise self._given_up(is_gone=gone in done)
                    index, event = coming.result()
                else:
                    index, event = work.news.get_nowait()
                if gone.done():
                    raise self._given_up(is_gone=True)
                if isinstance(event, ApiError):
                    raise event
                running -= event.is_last
                yield index, event
        finally:
            self.cancel(work)
            gone.cancel()
            if coming is not None:
                coming.cancel()
            http.scope["megafuser"].tokens = work.usage.completion_tokens

    def cancel(self, work: Work) -> None:
        """Ends what still runs."""
        running = [ticket for ticket in work.tickets if ticket.request.finish is None]
        if running:
            self.engine.cancel(running)

    def _given_up(self, is_gone: bool) -> ApiError:
        if is_gone:
            return ApiError(CLIENT_GONE, "the client has gone")
        return ApiError(
            504,
            f"not done after {self.settings.request_timeout:g} s, given up; ask for fewer tokens",
            code="request_timeout",
        )


async def _gone(http: HttpRequest) -> None:
    """Ends when the client does."""
    with contextlib.suppress(RuntimeError):
        while (await http.receive())["type"] != "http.disconnect":
            pass
