"""Continuous batching: requests join and leave between steps, as Orca (Yu et al., OSDI 2022) does it.

A request is admitted when the caches have a place for the longest response that it may give, so that none is ever
thrown out again. In a step every admitted request that has read its prompt gets its next token, and what is left of the
step's positions goes to prompts, first come, first served. Running a step is `inference.engine`; given texts are scored
without it, by `inference.scoring`.
"""

import collections
from collections.abc import Callable

from megafuser.errors import UserError
from megafuser.inference.engine import Engine
from megafuser.inference.request import Request

STEP_POSITIONS = 512


class Scheduler:
    """Which requests are in a step; it runs on the rank that leads.

    Attributes:
        waiting: not admitted yet, in order.
        running: admitted, in order.
    """

    def __init__(self, engine: Engine, *, max_running: int, step_positions: int = STEP_POSITIONS) -> None:
        """Begins without requests.

        Args:
            engine: runs the steps.
            max_running: most requests in a step.
            step_positions: most positions in a step, but for one that each running request has anyway.
        """
        self.waiting: collections.deque[Request] = collections.deque()
        self.running: list[Request] = []
        self._engine = engine
        self._max_running = max_running
        self._step_positions = step_positions

    def check(self, request: Request) -> None:
        """Refuses what can never be admitted.

        Raises:
            UserError: it is longer than the context or than the caches.
        """
        call = request.call
        if call.length > self._engine.limit:
            raise UserError(
                f"the prompt has {call.length - call.max_tokens} tokens, and up to {call.max_tokens} more are asked "
                f"for, but the context has {self._engine.limit}; shorten it, or ask for fewer"
            )
        positions = call.positions
        if positions > self._engine.extents.capacity:
            raise UserError(
                f"{positions} positions are asked for, and the caches have {self._engine.extents.capacity}; give them "
                "more memory with --cache-gib, or ask for fewer tokens"
            )

    def add(self, request: Request) -> None:
        """Queues a request; see `check`."""
        self.check(request)
        self.waiting.append(request)

    @property
    def is_idle(self) -> bool:
        """Whether there is nothing to do."""
        return not self.waiting and not self.running

    def step(self) -> list[Request]:
        """Runs one step; returns the requests that have ended by it, those that were cancelled included."""
        ended = self._leave()
        ended += self._drop_cancelled()
        self._admit()
        chosen = self._choose()
        if chosen:
            asks = [request.ask(most) for request, most in chosen]
            for (request, _), ask, found in zip(chosen, asks, self._engine.step(asks), strict=True):
                if request.finish is None:
                    request.take(ask, found)
        return ended + self._leave()

    def run(self, on_end: Callable[[Request], None] | None = None) -> None:
        """Steps until nothing is left."""
        while not self.is_idle:
            for request in self.step():
                if on_end is not None:
                    on_end(request)

    def _choose(self) -> list[tuple[Request, int]]:
        """The step's requests, each with the most positions that it may have."""
        chosen = [(request, 1) for request in self.running if not request.is_reading]
        room = max(self._step_positions - len(chosen), 1)
        for request in self.running:
            if request.is_reading and room > 0:
                most = min(room, request.unread)
                chosen.append((request, most))
                room -= most
        return chosen

    def _admit(self) -> None:
        while self.waiting and len(self.running) < self._max_running:
            start = self._engine.extents.take(self.waiting[0].call.positions)
            if start is None:
                return
            request = self.waiting.popleft()
            request.start = start
            self.running.append(request)

    def _leave(self) -> list[Request]:
        """Gives the places of ended requests back."""
        ended = [request for request in self.running if request.finish is not None]
        self.running = [request for request in self.running if request.finish is None]
        for request in ended:
            assert request.start is not None
            self._engine.extents.give_back(request.start)
        return ended

    def _drop_cancelled(self) -> list[Request]:
        dropped = [request for request in self.waiting if request.finish is not None]
        if dropped:
            self.waiting = collections.deque(request for request in self.waiting if request.finish is None)
        return dropped
