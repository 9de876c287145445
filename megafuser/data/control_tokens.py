"""Tokenizing in which control tokens are what templates write, and never what a text spells out.

A tokenizer makes the control id of `</s>` wherever it stands, in a user's text as well. So each specialist's tokenizer
is copied, and in the copy every control token has a private name of characters that Unicode never assigns. Where a
template writes a control token, its private name is put before encoding; the same letters in a user's text are left,
and become the ids of letters. Without control tokens in the texts, the ids are the tokenizer's own.

The templates are `data.templates`; the ids of a whole sample are made in `data.tokenization`.
"""

import json
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

from tokenizers import Tokenizer

# Unicode's noncharacters, which texts may not interchange. Source: Unicode Standard, section 23.7.
_OPEN, _CLOSE, _MARK = "\ufdd0", "\ufdd1", "\ufdd2"
_RESERVED = re.compile("[\ufdd0-\ufdef]")

Substitute = Callable[[str], str]


class TextTokenizer:
    """One specialist's tokenizer; only what a template writes can become a control token.

    Attributes:
        control: the control tokens' texts.
        exact: whether control tokens that a text spells out stay text. Not where a tokenizer has no Rust backend, or
            one that cannot be copied so; such texts must not be given to it.
        key: equal for tokenizers that give every text the same ids.
    """

    def __init__(self, tokenizer: Any, written: Sequence[str] = ()) -> None:
        """Copies a Hugging Face tokenizer.

        Args:
            tokenizer: of a specialist.
            written: texts that its template, or the end of a response, writes; the added tokens in them are control
                tokens, too, whether the tokenizer calls them special or not (ChatML's often are not).
        """
        self._tokenizer = tokenizer
        added = {token.content for token in tokenizer.added_tokens_decoder.values() if token.content.strip()}
        self._find = _finder(added)
        self.control = control_texts(tokenizer) | {token for text in written for token in self._find(text)}
        parts = _renamed(tokenizer, self.control)
        self._backend = None if parts is None else _backend(parts)
        self.exact = self._backend is not None
        self.key = f"unknown {id(tokenizer)}" if parts is None else _text_key(parts)
        # What stands for each added token in a template's text: a control token's private name, any other's own, which
        # may be a longer token that begins alike.
        self._name_tokens = _substitution(
            {
                token.content: _private(number) if token.content in self.control else token.content
                for number, token in tokenizer.added_tokens_decoder.items()
            }
        )

    def control_in(self, rendered: str) -> list[str]:
        """The control tokens in a template's text, in order."""
        return [token for token in self._find(rendered) if token in self.control]

    def encode_texts(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of texts by themselves, without the special tokens that the tokenizer adds."""
        if not texts:
            return []
        if self._backend is not None:
            # What transformers does with it, without the objects that it makes of each text.
            return [encoding.ids for encoding in self._backend.encode_batch_fast(list(texts), add_special_tokens=False)]
        encoded = self._tokenizer(
            list(texts),
            add_special_tokens=False,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )
        ids: list[list[int]] = encoded["input_ids"]
        return ids

    def encode_prompts(self, rendered: Sequence[str]) -> list[list[int]]:
        """Ids of what a template made of protected texts, without the special tokens that the tokenizer adds."""
        named = rendered if self._backend is None else map(self._name_tokens, rendered)
        return self.encode_texts([text.replace(_MARK, "") if _MARK in text else text for text in named])


class Protection:
    """Marks the control tokens that texts spell out, so that none passes for one that a template writes."""

    def __init__(self, tokenizers: Iterable[TextTokenizer]) -> None:
        """Collects the control tokens of all tokenizers; a text is marked for all of them at once."""
        self._control = {token for tokenizer in tokenizers for token in tokenizer.control}
        # one after every character: another token that overlaps with a found one must not be left
        self._mark = _substitution({token: "".join(one + _MARK for one in token) for token in self._control})
        # what could become a control token beside a template's text
        self._beginnings = {token[:end] for token in self._control for end in range(1, len(token))}
        self._endings = {token[start:] for token in self._control for start in range(1, len(token))}
        self._longest = max(map(len, self._control), default=0)
        self._last_of_beginning = {part[-1] for part in self._beginnings}
        self._first_of_ending = {part[0] for part in self._endings}

    def spelled_out(self, text: str) -> bool:
        """Whether a control token is spelled out in a text."""
        return self._mark(text) != text

    def protect(self, text: str) -> str:
        """The text with marks inside the control tokens in it, and at an end where a part of one stands.

        A template may put its own text beside it, with or without the white space that is there: the halves of a
        control token must not become a whole one.
        """
        text = self._mark(text)
        core = text.strip()
        if not core:
            return text
        inside = len(core) < self._longest and any(core in token for token in self._control)
        if inside or (core[-1] in self._last_of_beginning and self._ends_in_part(core)):
            end = len(text.rstrip())
            text = text[:end] + _MARK + text[end:]
        if inside or (core[0] in self._first_of_ending and self._begins_with_part(core)):
            begin = len(text) - len(text.lstrip())
            text = text[:begin] + _MARK + text[begin:]
        return text

    def _ends_in_part(self, core: str) -> bool:
        return any(core[-size:] in self._beginnings for size in range(1, self._longest))

    def _begins_with_part(self, core: str) -> bool:
        return any(core[:size] in self._endings for size in range(1, self._longest))


def shows_marks(rendered: str) -> bool:
    """Whether a template has written a mark out, as Jinja's `tojson` does, so that it could not be taken away."""
    return "\\ufdd" in rendered


def has_reserved(text: str) -> bool:
    """Whether a text has characters that stand for control tokens here, and that no text may have."""
    return not text.isascii() and _RESERVED.search(text) is not None


def _backend(parts: Mapping[str, Any]) -> Tokenizer:
    """A tokenizer of its JSON.

    The library remembers the ids of the last ten thousand pieces that a text is split into, which are words as a rule.
    Where a text is one piece, as with most that come from SentencePiece, that would be whole texts, a hundred
    megabytes of them, none of which comes again.
    """
    backend = Tokenizer.from_str(json.dumps(parts))
    splitter = parts["pre_tokenizer"]
    steps = [] if splitter is None else splitter.get("pretokenizers", [splitter])
    if all(step["type"] == "Metaspace" and not step.get("split", True) for step in steps):
        model = backend.model
        if hasattr(model, "_resize_cache"):
            model._resize_cache(0)
    return backend


def control_texts(tokenizer: Any) -> frozenset[str]:
    """The texts of a tokenizer's control tokens: those it calls special, but for white space."""
    added = tokenizer.added_tokens_decoder.values()
    return frozenset(token.content for token in added if token.special and token.content.strip())


def _private(number: int) -> str:
    """The name of a control token in the copy, by its id."""
    return f"{_OPEN}{number}{_CLOSE}"


def _substitution(names: Mapping[str, str]) -> Substitute:
    """Replaces texts by others: the leftmost first, and of those that begin there the longest, as tokenizers do."""
    beginnings = {text[0] for text in names if text}
    if not beginnings:
        return lambda text: text
    pattern = _pattern(names)

    def substitute(text: str) -> str:
        # Most texts have not even the first character of one.
        if not any(beginning in text for beginning in beginnings):
            return text
        return pattern.sub(lambda found: names[found[0]], text)

    return substitute


def _pattern(texts: Iterable[str]) -> re.Pattern[str]:
    return re.compile("|".join(map(re.escape, sorted(filter(None, texts), key=len, reverse=True))))


def _finder(texts: Collection[str]) -> Callable[[str], list[str]]:
    """Finds texts in others, the leftmost first and of those the longest."""
    return _pattern(texts).findall if texts else lambda text: []


def _renamed(tokenizer: Any, control: Collection[str]) -> dict[str, Any] | None:
    """The parts of a tokenizer's copy, as tokenizer.json has them; None where there can be no exact one.

    Source of the format: the serialization of the `tokenizers` library.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return None
    parts: dict[str, Any] = json.loads(backend.to_str())
    names = {token["content"]: _private(token["id"]) for token in parts["added_tokens"] if token["content"] in control}
    own = [token for token in parts["added_tokens"] if token["content"] in names]
    if names.keys() != set(control) or any(token["single_word"] or len(token["content"]) == 1 for token in own):
        # A single character cannot be marked inside; that a token is not a whole word, only the tokenizer knows.
        return None
    normalizer = backend.normalizer
    private = _private(0)
    sought_normalized = normalizer is not None and any(token["normalized"] for token in own)
    if sought_normalized and normalizer.normalize_str(private) != private:
        # Such tokens are sought in the normalized text, where what is put in front of a text belongs to them.
        return None
    for token in parts["added_tokens"]:
        # Special or not, no letters make it.
        token["content"] = names.get(token["content"], token["content"])
    model = parts["model"]
    if isinstance(model["vocab"], dict):
        model["vocab"] = {names.get(piece, piece): number for piece, number in model["vocab"].items()}
    else:
        model["vocab"] = [[names.get(piece, piece), *more] for piece, *more in model["vocab"]]
    if "merges" in model:
        # No merge may make a control token of letters, or go on from one.
        model["merges"] = [merge for merge in model["merges"] if not names.keys() & _merged(merge)]
    if model.get("unk_token") is not None:
        model["unk_token"] = names.get(model["unk_token"], model["unk_token"])
    # The first three only matter for special tokens that a tokenizer adds by itself, and for ids that become text.
    parts.update(post_processor=None, decoder=None, truncation=None, padding=None)
    return parts


def _merged(merge: Any) -> set[str]:
    left, right = merge.split(" ") if isinstance(merge, str) else merge
    return {left, right, left + right}


def _text_key(parts: Mapping[str, Any]) -> str:
    added = [token for token in parts["added_tokens"] if not token["content"].startswith(_OPEN)]
    return json.dumps([parts["normalizer"], parts["pre_tokenizer"], parts["model"], added], sort_keys=True)
