"""Ids to text as they come: nothing is shown that a later token could still change, and stop strings end it."""

from collections.abc import Sequence
from typing import Any

_INCOMPLETE = "�"


class TextStream:
    """The text of one response, token by token.

    A token may be a part of a character's UTF-8 bytes, or take a blank away from the one before it. So what is decoded
    are always the last few tokens together, and an unfinished character waits.

    Attributes:
        text: all that is sure, stop string and what follows it excluded.
        stopped: whether a stop string was found.
    """

    def __init__(self, tokenizer: Any, stop: Sequence[str] = ()) -> None:
        """Begins an empty response.

        Args:
            tokenizer: the first specialist's.
            stop: strings that end it; they are not part of it.
        """
        self.text = ""
        self.stopped = False
        self._tokenizer = tokenizer
        self._stop = [one for one in stop if one]
        self._ids: list[int] = []
        self._known = ""
        self._prefix, self._read = 0, 0

    def add(self, token: int) -> str:
        """Takes a token; returns what has become sure by it, maybe nothing."""
        return self._more([token], is_end=False)

    def finish(self) -> str:
        """Ends the response; returns what was held back."""
        return self._more([], is_end=True)

    def _more(self, tokens: list[int], is_end: bool) -> str:
        if self.stopped:
            return ""
        self._ids += tokens
        before = self._decode(self._ids[self._prefix : self._read])
        after = self._decode(self._ids[self._prefix :])
        # an unfinished character at the end waits, though not for ever: bytes may be no character at all
        waits = after.endswith(_INCOMPLETE) and not is_end and len(self._ids) - self._read < 8
        if len(after) > len(before) and not waits:
            self._known += after[len(before) :]
            self._prefix, self._read = self._read, len(self._ids)
        return self._release(is_end)

    def _release(self, is_end: bool) -> str:
        """Moves what no stop string can begin in from known to sure."""
        sought = max(0, len(self.text) - max(map(len, self._stop), default=0))
        found = [(self._known.find(stop, sought), stop) for stop in self._stop]
        places = [place for place, _ in found if place >= 0]
        if places:
            self.stopped = True
            sure = self._known[: max(min(places), len(self.text))]
        else:
            sure = self._known if is_end else self._known[: len(self._known) - self._held_back()]
        new, self.text = sure[len(self.text) :], sure
        return new

    def _held_back(self) -> int:
        """Length of the longest end of the text with which a stop string begins."""
        longest = 0
        for stop in self._stop:
            for length in range(min(len(stop) - 1, len(self._known)), longest, -1):
                if self._known.endswith(stop[:length]):
                    longest = length
                    break
        return longest

    def _decode(self, ids: Sequence[int]) -> str:
        text: str = self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text
