"""The bytes and the name of each token, which `logprobs` lists: a token may be a part of a character.

Text that is whole enough to be shown is `inference.text`.
"""

import json
import re
from typing import Any

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def _byte_level_alphabet() -> dict[str, int]:
    """GPT-2's letters for the 256 bytes: printable ones stand for themselves, the others for letters from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + index): byte for index, byte in enumerate(others)}


def _blanks(text: str) -> int:
    return len(text) - len(text.lstrip(" "))


class TokenBytes:
    """Looks tokens up in a tokenizer: byte-level BPE, or SentencePiece with bytes for what it does not know."""

    def __init__(self, tokenizer: Any) -> None:
        """Finds out which kind it is.

        Args:
            tokenizer: the first specialist's.
        """
        self._tokenizer = tokenizer
        backend = getattr(tokenizer, "backend_tokenizer", None)
        decoder = json.loads(backend.to_str()).get("decoder") if backend is not None else None
        self._alphabet = _byte_level_alphabet() if "ByteLevel" in json.dumps(decoder) else None
        self._special = set(tokenizer.all_special_tokens) | {
            str(token) for token in tokenizer.get_added_vocab() if self._alphabet is not None
        }
        self._special_ids = set(tokenizer.all_special_ids)
        self._known: dict[int, bytes] = {}

    def of(self, token: int) -> bytes:
        """What a token stands for in a text; of a special one, its name."""
        if token not in self._known:
            self._known[token] = self._find(token)
        return self._known[token]

    def name(self, token: int) -> str:
        """Its text; where that is not whole characters, `bytes:` and the bytes, as OpenAI's completions name them.

        Different tokens may still have the same name, such as a special token and the text that looks like it.
        """
        own = self.of(token)
        try:
            return own.decode("utf-8")
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in own)

    def is_text(self, token: int) -> bool:
        """Whether it is none of the special tokens."""
        return token not in self._special_ids

    def in_text(self, token: int, is_first: bool) -> bytes:
        """What of a token is in the text: nothing of a special one, as decoding leaves it out.

        Args:
            token: its id.
            is_first: whether it begins what is decoded; SentencePiece's decoders take a blank from its front then.
        """
        if not self.is_text(token):
            return b""
        own = self.of(token)
        if is_first and own.startswith(b" "):
            decoded = self._tokenizer.decode([token], clean_up_tokenization_spaces=False)
            return own if _blanks(decoded) == _blanks(own.decode("utf-8", errors="replace")) else own[1:]
        return own

    def _find(self, token: int) -> bytes:
        piece = str(self._tokenizer.convert_ids_to_tokens(token))
        if piece in self._special:
            return piece.encode("utf-8")
        if self._alphabet is not None:
            return b"".join(
                bytes([self._alphabet[letter]]) if letter in self._alphabet else letter.encode("utf-8")
                for letter in piece
            )
        byte = _BYTE.fullmatch(piece)
        return bytes([int(byte[1], 16)]) if byte else piece.replace("▁", " ").encode("utf-8")
