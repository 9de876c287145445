"""The words of a text, as n-grams are made of them.

Near duplicates go by words between white space: `data.near_duplicates`.
"""

import re
import unicodedata
from collections.abc import Sequence

import numpy as np

# Apostrophes within words and commas before thousands are not ends of words: don't is dont, 3,000 is 3000.
_WITHIN = re.compile(r"['’](?<=[^\W\d_].)(?=[^\W\d_])|,(?<=\d,)(?=\d{3}(?!\d))", re.DOTALL)
_WORD = re.compile(r"[^\W_]+")
# Between two texts of `ascii_words`; a control character, which is never a word.
BOUNDARY = "\x01"
# Of ASCII's bytes: letters become lower case, digits stay, everything else stands between words.
_WORDS = bytes(
    ord(chr(code).lower()) if code < 128 and chr(code).isalnum() else code if chr(code) == BOUNDARY else 0x20
    for code in range(256)
)
_LETTER, _DIGIT, _APOSTROPHE, _COMMA = 1, 2, 3, 4
_KINDS = np.zeros(256, dtype=np.uint8)
_KINDS[[code for code in range(128) if chr(code).isalpha()]] = _LETTER
_KINDS[[code for code in range(128) if chr(code).isdigit()]] = _DIGIT
_KINDS[ord("'")] = _APOSTROPHE
_KINDS[ord(",")] = _COMMA


def words(text: str) -> list[str]:
    """Words of letters and digits, after Unicode's NFKC; everything else only stands between them.

    Changed case, punctuation and white space change nothing, nor does code that is laid out anew (but for lists of
    numbers of three digits: `[100,200]` may be one number). Case is folded, so that ß is ss. Source of the idea:
    GPT-3 paper (Brown et al. 2020), appendix C, where a word is lower case, without punctuation, between white space;
    there `f(a,b)` is one word and `f(a, b)` two, here both are three.
    """
    normalized = unicodedata.normalize("NFKC", text).casefold()
    return _WORD.findall(_WITHIN.sub("", normalized))


def is_plain(text: str) -> bool:
    """Whether `ascii_words` takes a text."""
    return text.isascii() and BOUNDARY not in text


def ascii_words(texts: Sequence[str]) -> list[str]:
    """The words of plain texts, as `words` makes them, one text after the other; `BOUNDARY` follows each.

    In a fifth of the time: the texts' bytes are looked at all at once.
    """
    joined = "".join(f"{text} {BOUNDARY} " for text in texts).encode("ascii")
    codes = np.frombuffer(joined, dtype=np.uint8)
    # one before, and four behind: a boundary and three more zeros
    kinds = np.zeros(len(codes) + 5, dtype=np.uint8)
    kinds[1:-4] = _KINDS[codes]
    before, own, behind = kinds[:-5], kinds[1:-4], kinds[2:-3]
    thousands = (behind == _DIGIT) & (kinds[3:-2] == _DIGIT) & (kinds[4:-1] == _DIGIT) & (kinds[5:] != _DIGIT)
    within = ((own == _APOSTROPHE) & (before == _LETTER) & (behind == _LETTER)) | (
        (own == _COMMA) & (before == _DIGIT) & thousands
    )
    words: list[str] = codes[~within].tobytes().translate(_WORDS).decode("ascii").split()
    return words
