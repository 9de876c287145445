"""One request on its way: which ids come next, and what has come back.

What it shares a step with is decided by `inference.scheduler`.
"""

import enum
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from megafuser.inference.cache import longest
from megafuser.inference.prompts import Ids
from megafuser.inference.sampling import SamplingParameters
from megafuser.inference.step_messages import Ask, Prediction
from megafuser.inference.text import TextStream


class Finish(enum.Enum):
    """Why a response ended."""

    STOP = "stop"
    LENGTH = "length"
    CANCELLED = "cancelled"


@dataclass(frozen=True)
class Call:
    """What is wanted.

    Attributes:
        prompts: K lists of ids.
        max_tokens: most tokens of the response, the end id included; 0 only reads the prompt.
        sampling: how tokens are chosen.
        stop: strings that end the response.
        top: how many of the most probable tokens are wanted at each position.
        echo: also score the prompt; all K must be the same then.
        ignores_end: goes on behind the end id.
        continues: whether the response's text goes on with the prompt's, as behind a raw prompt; behind a template it
            is a text by itself, as in training.
    """

    prompts: Ids
    max_tokens: int
    sampling: SamplingParameters = field(default_factory=SamplingParameters)
    stop: tuple[str, ...] = ()
    top: int = 0
    echo: bool = False
    ignores_end: bool = False
    continues: bool = False

    def __post_init__(self) -> None:
        """Refuses calls that make no sense; users' mistakes have been told by then."""
        if not all(self.prompts):
            raise ValueError("every specialist needs a prompt of at least one token")
        if self.max_tokens < 0 or (self.max_tokens == 0 and not self.echo):
            raise ValueError("a call asks for tokens, or for the prompt's scores")
        if self.echo and len(set(self.prompts)) > 1:
            raise ValueError("what is scored must be the same for all specialists")

    @property
    def length(self) -> int:
        """Tokens of its longest view when it is done, as the context counts them: prompt and response."""
        return longest(self.prompts) + self.max_tokens

    @property
    def positions(self) -> int:
        """Positions of its longest view when it is done; the last token is not read."""
        return longest(self.prompts) + max(self.max_tokens - 1, 0)


class Request:
    """A call that is being answered.

    Attributes:
        call: what is wanted.
        response: ids so far; the end id, where it came, is the last.
        predictions: of these ids.
        echoed: with `echo`, of the prompt's ids from the second on.
        finish: why it ended; None while it goes on.
        text: the response as text.
    """

    def __init__(
        self, call: Call, *, tokenizer: Any, end_id: int, on_token: "Callable[[Request, str], None] | None" = None
    ) -> None:
        """Begins one.

        Args:
            call: what is wanted.
            tokenizer: the first specialist's.
            end_id: the id that ends a response.
            on_token: is given every token's text as it becomes sure, and at the end what was held back.
        """
        self.call = call
        self.response: list[int] = []
        self.predictions: list[Prediction] = []
        self.echoed: list[Prediction] = []
        self.finish: Finish | None = None
        self.text = TextStream(tokenizer, call.stop, prompt=call.prompts[0] if call.continues else ())
        self.start: int | None = None
        self._end_id = end_id
        self._on_token = on_token
        self._read = 0  # of the prompt, positions of the longest view; aligned on the right

    @property
    def is_reading(self) -> bool:
        """Whether a part of the prompt is still to be read."""
        return self._read < longest(self.call.prompts)

    @property
    def unread(self) -> int:
        """Positions of the prompt that are still to be read."""
        return longest(self.call.prompts) - self._read

    def ask(self, most: int) -> Ask:
        """Its part in the next step, of at most so many new positions."""
        assert self.start is not None, "it has no place in the cache yet"
        if not self.is_reading:
            past = tuple(len(prompt) + len(self.response) - 1 for prompt in self.call.prompts)
            return self._ask(past, (self.response[-1:],) * len(past), (), samples=True)
        whole = longest(self.call.prompts)
        end = min(self._read + most, whole)
        ids: list[Sequence[int]] = []
        begins: list[int] = []
        for prompt in self.call.prompts:
            missing = whole - len(prompt)
            first, last = max(self._read - missing, 0), max(end - missing, 0)
            ids.append(prompt[first:last])
            begins.append(first)
        targets: Sequence[int] = ()
        if self.call.echo:
            targets = self.call.prompts[0][self._read + 1 : end + 1]
        return self._ask(tuple(begins), tuple(ids), targets, samples=end == whole)

    def _ask(self, past: tuple[int, ...], ids: tuple[Sequence[int], ...], targets: Sequence[int], samples: bool) -> Ask:
        assert self.start is not None
        has_context = samples and self.call.sampling.needs_context
        return Ask(
            start=self.start,
            past=past,
            ids=ids,
            targets=targets,
            sampling=self.call.sampling if samples else None,
            prompt=self.call.prompts[0] if has_context else (),
            response=tuple(self.response) if has_context else (),
            drawn=len(self.response),
            top=self.call.top,
        )

    def take(self, ask: Ask, found: Sequence[Prediction]) -> None:
        """Takes what a step answered."""
        if self.is_reading:
            self._read += max(map(len, ask.ids))
        self.echoed += found[: len(ask.targets)]
        if ask.sampling is None:
            return
        if self.call.max_tokens:
            self._add(found[-1])
        else:  # what the last position predicts is not wanted
            self._end(Finish.LENGTH)

    def _add(self, prediction: Prediction) -> None:
        self.response.append(prediction.token)
        self.predictions.append(prediction)
        if prediction.token == self._end_id and not self.call.ignores_end:
            self._end(Finish.STOP)
            return
        text = self.text.add(prediction.token)
        if self.text.stopped:
            self._end(Finish.STOP, text)
        elif len(self.response) >= self.call.max_tokens:
            self._end(Finish.LENGTH, text)
        elif self._on_token is not None:
            self._on_token(self, text)

    def _end(self, finish: Finish, text: str = "") -> None:
        text += self.text.finish()
        self.finish = Finish.STOP if self.text.stopped else finish
        if self._on_token is not None:
            self._on_token(self, text)

    def cancel(self) -> None:
        """Ends it at the next step."""
        if self.finish is None:
            self.finish = Finish.CANCELLED
