"""The thread that owns the engine: it steps while there is work and sleeps while there is none.

Handlers of HTTP requests run in asyncio's thread. What they want goes through an inbox that is emptied between steps,
so that the scheduler and its requests are touched by one thread only; tokens come back by a call into asyncio's loop.
Which requests share a step is decided by `inference.scheduler`.
"""

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from megafuser.inference.engine import Engine
from megafuser.inference.request import Request
from megafuser.inference.scheduler import Scheduler
from megafuser.serving.errors import ApiError, failed, stopping
from megafuser.serving.metrics import Metrics

logger = logging.getLogger(__name__)

_MOST_SECONDS_TO_WAIT = 60


@dataclass(frozen=True)
class Event:
    """News of a response.

    Attributes:
        text: what has become sure.
        tokens: how many tokens there are by now.
        is_last: whether it has ended.
    """

    text: str
    tokens: int
    is_last: bool


News = asyncio.Queue[tuple[int, Event | ApiError]]


class Ticket:
    """A request, as its handler holds it: made in asyncio's thread, which reads the news."""

    def __init__(self, index: int, news: News) -> None:
        """Begins without a request, which needs the ticket for its callback.

        Args:
            index: the choice's number.
            news: of all choices of an HTTP request.
        """
        self.request: Request
        self.submitted = time.monotonic()
        self._index = index
        self._news = news
        self._loop = asyncio.get_running_loop()
        self._last_token: float | None = None

    def put(self, event: Event | ApiError) -> None:
        """Hands news to the handler, from any thread."""
        self._loop.call_soon_threadsafe(self._news.put_nowait, (self._index, event))

    def since_last_token(self) -> tuple[float, bool]:
        """Seconds since the token before, or since the request came; and whether this is the first token."""
        now, before = time.monotonic(), self._last_token
        self._last_token = now
        return now - (self.submitted if before is None else before), before is None


class EngineLoop:
    """Runs requests; see the module.

    Attributes:
        scheduler: of the requests that the thread has taken.
        failure: what ended the thread, if it was a mistake.
    """

    def __init__(self, engine: Engine, *, max_running: int, max_queue: int, metrics: Metrics) -> None:
        """Begins without requests; `start` starts the thread.

        Args:
            engine: this process leads.
            max_running: most requests in a step.
            max_queue: most requests that wait.
            metrics: is told of every token.
        """
        self.scheduler = Scheduler(engine, max_running=max_running)
        self.failure: BaseException | None = None
        self._most = max_running + max_queue
        self._max_running = max_running
        self._metrics = metrics
        self._inbox: list[Callable[[], None]] = []
        self._wake = threading.Condition()
        self._stops = False
        self._open: dict[Request, Ticket] = {}  # of the thread
        self._taken = 0  # requests that are not done, guarded by the condition
        self._mean_seconds = 1.0
        self._on_failure: Callable[[], None] = lambda: None
        self._thread = threading.Thread(target=self._main, name="engine", daemon=True)

    def start(self, on_failure: Callable[[], None]) -> None:
        """Starts the thread.

        Args:
            on_failure: is called, in the thread, when a mistake has ended it.
        """
        self._on_failure = on_failure
        self._thread.start()

    def submit(self, tickets: Sequence[Ticket]) -> None:
        """Queues requests, all or none.

        Raises:
            ApiError: the queue is full (429), there are more than it can ever hold (400), the server goes down (503),
                or the engine has failed (500).
            UserError: one is longer than the context or the caches.
        """
        for ticket in tickets:
            self.scheduler.check(ticket.request)
        with self._wake:
            if self.failure is not None:
                raise failed()
            if self._stops:
                raise stopping()
            self.check_room(len(tickets))
            self._taken += len(tickets)
            self._inbox += [lambda ticket=ticket: self._add(ticket) for ticket in tickets]  # type: ignore[misc]
            self._wake.notify()

    def check_room(self, sequences: int, before: int = 0) -> None:
        """Refuses what the queue cannot hold.

        Args:
            sequences: of a request.
            before: sequences that are on their way to the queue.

        Raises:
            ApiError: there are more than it can ever hold (400), or it is full (429).
        """
        if sequences > self._most:
            raise ApiError(
                400, f"{sequences} responses are asked for, and at most {self._most} are made at once; ask for fewer"
            )
        taken = self._taken + before
        if taken + sequences > self._most:
            wait = self._mean_seconds * max(taken - self._max_running, 1) / self._max_running
            seconds = min(max(round(wait), 1), _MOST_SECONDS_TO_WAIT)
            raise ApiError(
                429,
                f"the queue is full; try again in {seconds} s",
                code="queue_full",
                headers={"Retry-After": str(seconds)},
            )

    def cancel(self, tickets: Sequence[Ticket]) -> None:
        """Ends requests that nobody waits for any more; those that have ended already are left alone."""
        with self._wake:
            self._inbox += [ticket.request.cancel for ticket in tickets]
            self._wake.notify()

    def stop(self) -> None:
        """Cancels what is left, and ends the thread after its present step; waits for that."""
        with self._wake:
            self._stops = True
            self._wake.notify()
        if self._thread.is_alive():
            self._thread.join()

    def deliver(self, ticket: Ticket, request: Request, text: str) -> None:
        """The requests' `on_token`."""
        seconds, is_first = ticket.since_last_token()
        self._metrics.token(seconds, is_first, request.predictions[-1].gate if request.predictions else None)
        ticket.put(Event(text, len(request.predictions), request.finish is not None))

    @property
    def taken(self) -> int:
        """Requests that are waiting or running."""
        return self._taken

    def _add(self, ticket: Ticket) -> None:
        self._open[ticket.request] = ticket
        self.scheduler.add(ticket.request)

    def _main(self) -> None:
        try:
            while self._turn():
                pass
        except BaseException as failure:
            logger.exception("the engine has failed")
            with self._wake:
                self.failure = failure
                self._stops = True
                inbox, self._inbox = self._inbox, []
            for action in inbox:  # what has come since the step began is to be told as well
                action()
            for ticket in self._open.values():
                ticket.put(failed())
            self._on_failure()

    def _turn(self) -> bool:
        """One step, after all that is in the inbox; False where the thread is to end."""
        with self._wake:
            self._wake.wait_for(lambda: self._inbox or self._stops or not self.scheduler.is_idle)
            inbox, self._inbox = self._inbox, []
            stops = self._stops
        for action in inbox:
            action()
        if stops:
            for request, ticket in self._open.items():
                request.cancel()
                ticket.put(stopping())
        ended = self.scheduler.step()
        for request in ended:
            ticket = self._open.pop(request)
            self._mean_seconds += 0.1 * (time.monotonic() - ticket.submitted - self._mean_seconds)
        if ended:
            with self._wake:
                self._taken -= len(ended)
        return not stops
