"""Probabilities of given continuations, as a language model's evaluation asks for them.

Continuations of the same context share its keys and values: it is read once, and each continuation is read behind it,
in the place where the one before it was.
"""

import collections
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from megafuser.errors import UserError
from megafuser.inference.cache import longest
from megafuser.inference.engine import Engine
from megafuser.inference.prompts import Ids
from megafuser.inference.step_messages import Ask, Prediction

_STEP_POSITIONS = 1024


@dataclass(frozen=True)
class Continuation:
    """What is to be scored.

    Attributes:
        context: K lists of ids, each of at least one.
        ids: the continuation's, at least one.
    """

    context: Ids
    ids: tuple[int, ...]

    def __post_init__(self) -> None:
        """Refuses what would never be scored.

        Raises:
            UserError: nothing is to be read, or nothing to be scored.
        """
        if not self.ids or not all(self.context):
            raise UserError("a request has no tokens in front of its continuation, or none in it; correct the task")

    @property
    def positions(self) -> int:
        """Positions that are read; the last token is not."""
        return longest(self.context) + len(self.ids) - 1


class _Group:
    """A context on its way, with its continuations."""

    def __init__(self, context: Ids, members: list[tuple[int, tuple[int, ...]]]) -> None:
        self.context = context
        self.members = collections.deque(members)
        self.positions = longest(context) + max(len(ids) for _, ids in members) - 1
        self.start = -1
        self._read = 0
        # of the context, all but the last token; that one is read again with each continuation
        self._whole = longest(context) - 1
        self._done = 0  # tokens of the first continuation that are scored
        self._found: list[Prediction] = []

    def ask(self, most: int) -> Ask:
        """The next part of the context, or of a continuation, of at most so many positions."""
        if self._read < self._whole:
            end = min(self._read + most, self._whole)
            missing = [self._whole + 1 - len(own) for own in self.context]
            first = [max(self._read - gap, 0) for gap in missing]
            last = [max(end - gap, 0) for gap in missing]
            read = tuple(own[a:b] for own, a, b in zip(self.context, first, last, strict=True))
            return Ask(self.start, tuple(first), read)
        ids = self.members[0][1]
        targets = ids[self._done : self._done + most]
        past = tuple(len(own) - 1 + self._done for own in self.context)
        # the token before each target: of the first one the context's last
        new = tuple((*own[-1:], *ids)[self._done : self._done + len(targets)] for own in self.context)
        return Ask(self.start, past, new, targets)

    def take(self, ask: Ask, found: Sequence[Prediction]) -> tuple[int, list[Prediction]] | None:
        """A continuation's number and predictions, once all are there."""
        if not ask.targets:
            self._read += max(map(len, ask.ids))
            return None
        self._found += found
        self._done += len(ask.targets)
        if self._done < len(self.members[0][1]):
            return None
        whole = self.members.popleft()[0], self._found
        self._found, self._done = [], 0
        return whole


def score(
    engine: Engine,
    continuations: Sequence[Continuation],
    *,
    max_running: int,
    on_scored: Callable[[int, list[Prediction]], None] | None = None,
) -> list[list[Prediction]]:
    """Scores continuations; rank 0 calls it while the others follow.

    Args:
        engine: runs the steps.
        continuations: in any order; those of the same context need not be neighbours.
        max_running: most contexts in a step.
        on_scored: is told of each continuation, by its number, once it is scored.

    Returns:
        For each continuation the predictions of its tokens, in order.

    Raises:
        UserError: one is longer than the context window or than the caches.
    """
    groups: dict[Ids, list[tuple[int, tuple[int, ...]]]] = {}
    for number, one in enumerate(continuations):
        if one.positions > min(engine.limit, engine.extents.capacity):
            raise UserError(
                f"a context and its continuation have {one.positions} tokens, and there is room for "
                f"{min(engine.limit, engine.extents.capacity)}; shorten them"
            )
        groups.setdefault(one.context, []).append((number, one.ids))
    waiting = collections.deque(_Group(context, members) for context, members in groups.items())
    running: list[_Group] = []
    found: list[list[Prediction]] = [[] for _ in continuations]
    while waiting or running:
        while waiting and len(running) < max_running:
            start = engine.extents.take(waiting[0].positions)
            if start is None:
                break
            waiting[0].start = start
            running.append(waiting.popleft())
        room, asks = _STEP_POSITIONS, []
        for group in running:
            if room > 0:
                asks.append(group.ask(room))
                room -= max(map(len, asks[-1].ids))
        for group, ask, answer in zip(running, asks, engine.step(asks), strict=False):
            scored = group.take(ask, answer)
            if scored is not None:
                found[scored[0]] = scored[1]
                if on_scored is not None:
                    on_scored(*scored)
        for group in running:
            if not group.members:
                engine.extents.give_back(group.start)
        # those that had no room go first next time
        running = [group for group in [*running[len(asks) :], *running[: len(asks)]] if group.members]
    return found
