"""Ids to text as they come: nothing is shown that a later token could still change, and stop strings end it.

The way from text to ids is `inference.prompts`.
"""

from collections.abc import Sequence
from typing import Any

_INCOMPLETE = "�"
# That very character, where a text has it: as tokens of SentencePiece spell it, those of byte-level BPE, and bytes.
_SPELLED_OUT = (_INCOMPLETE, "ï¿½", "<0xEF><0xBF><0xBD>")
_CONTEXT = 8  # tokens of a prompt that are decoded with the first ones of its response
_MOST_PARTS = 3  # tokens that an unfinished character can have: three of its four bytes


class TextStream:
    """The text of one response, token by token.

    A token may be a part of a character's UTF-8 bytes, or take a blank away from the one before it. So what is decoded
    are always the last few tokens together, and an unfinished character waits.

    Attributes:
        text: all that is sure, stop string and what follows it excluded.
        stopped: whether a stop string was found.
        shown: how many ids of `prompt` have their text before this one. The others, at most three, are an unfinished
            character, which comes with the response.
    """

    def __init__(self, tokenizer: Any, stop: Sequence[str] = (), *, prompt: Sequence[int] = ()) -> None:
        """Begins an empty response.

        Args:
            tokenizer: the first specialist's.
            stop: strings that end it; they are not part of it.
            prompt: ids with whose text this one goes on; none where it is a text by itself, whose first token may lose
                the blank that it begins with.
        """
        self.text = ""
        self.stopped = False
        self._tokenizer = tokenizer
        self._stop = [one for one in stop if one]
        self._known = ""
        begin = self._context(prompt)
        self._ids = list(prompt[begin:])
        self._prefix, self._read = 0, self._finished()
        self.shown = begin + self._read

    def add(self, token: int) -> str:
        """Takes a token; returns what has become sure by it, maybe nothing."""
        return self._more([token], is_end=False)

    def finish(self) -> str:
        """Ends the response; returns what was held back."""
        return self._more([], is_end=True)

    def _context(self, prompt: Sequence[int]) -> int:
        """Where the end of a prompt begins that is decoded with its response: with text, and with a whole character."""
        count = _CONTEXT
        while count < len(prompt):
            text = self._decode(prompt[-count:])
            if text and not text.startswith(_INCOMPLETE):
                return len(prompt) - count
            count *= 2
        return 0

    def _finished(self) -> int:
        """How many of the prompt's ids there are before a character that is not finished."""
        whole = len(self._ids)
        for count in range(whole, max(whole - _MOST_PARTS, 0) - 1, -1):
            is_whole = not self._decode(self._ids[:count]).endswith(_INCOMPLETE)
            if is_whole or self._spelling(self._ids[max(count - _MOST_PARTS, 0) : count]).endswith(_SPELLED_OUT):
                return count
        return whole  # these bytes are not a character

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
            # where it may begin: each place costs a comparison, in the thread that computes for all
            place = self._known.find(stop[0], max(0, len(self._known) - len(stop) + 1))
            while 0 <= place < len(self._known) - longest:
                if stop.startswith(self._known[place:]):
                    longest = len(self._known) - place
                place = self._known.find(stop[0], place + 1)
        return longest

    def _spelling(self, ids: Sequence[int]) -> str:
        """The tokens as the vocabulary has them; nothing of ids that it lacks."""
        return "".join(piece or "" for piece in self._tokenizer.convert_ids_to_tokens(list(ids)))

    def _decode(self, ids: Sequence[int]) -> str:
        text: str = self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text
