"""Where each token begins in a completion's text, which `logprobs` lists as `text_offset`.

The bytes of a token are `serving.token_bytes`.
"""

from collections.abc import Sequence

from megafuser.serving.token_bytes import TokenBytes


class TextOffsets:
    """Counts the characters of tokens as they come; of bytes that are no UTF-8 it counts those that begin one."""

    def __init__(self, tokens: TokenBytes) -> None:
        """Begins at the text's beginning.

        Args:
            tokens: looks bytes up.
        """
        self._tokens = tokens
        self._end = 0
        self._is_first = True

    def go_on_at(self, place: int) -> None:
        """Goes on at this character; the tokens so far stay in front of the next ones, which keep their blanks."""
        self._end = place

    def of(self, ids: Sequence[int]) -> list[int]:
        """The places of the next tokens; one that begins within a character has this character's."""
        found = []
        for token in ids:
            own = self._tokens.in_text(token, self._is_first)
            self._is_first = self._is_first and not self._tokens.is_text(token)
            found.append(self._end - 1 if own and _goes_on(own[0]) and self._end else self._end)
            self._end += sum(not _goes_on(byte) for byte in own)
        return found


def _goes_on(byte: int) -> bool:
    """Whether a byte of UTF-8 is within a character, not its first."""
    return byte & 0xC0 == 0x80
