"""The words of a text, as n-grams are made of them."""

import re
import unicodedata

# Apostrophes within words and separators within numbers are no ends of words: don't is dont, 3,000 is 3000.
_WITHIN = re.compile(r"['’](?<=[^\W\d_].)(?=[^\W\d_])|[.,](?<=\d.)(?=\d)", re.DOTALL)
_WORD = re.compile(r"[^\W_]+")
# Of ASCII, which most texts are: letters and digits stay, everything else stands between words.
_BETWEEN = bytes(code if chr(code).isalnum() and code < 128 else 0x20 for code in range(256))


def words(text: str) -> list[str]:
    """Lower-case words of letters and digits, after Unicode's NFKC; everything else only stands between them.

    Changed case, punctuation and white space change nothing, nor does code that is laid out anew. Source of the idea:
    GPT-3 paper (Brown et al. 2020), appendix C, where a word is lower case, without punctuation, between white space;
    there `f(a,b)` is one word and `f(a, b)` two, here both are three.
    """
    if text.isascii():
        # What the general way gives, in a quarter of its time.
        return _WITHIN.sub("", text).lower().encode("ascii").translate(_BETWEEN).decode("ascii").split()
    normalized = unicodedata.normalize("NFKC", text).lower()
    return _WORD.findall(_WITHIN.sub("", normalized))
