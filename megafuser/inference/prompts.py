"""From what a user writes to K lists of ids: through each specialist's template as in training, or raw.

The templates are `data.templates`; the way back to text is `inference.text`.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from megafuser.config.specialists import TemplateConfig
from megafuser.data.sources.samples import Sample
from megafuser.data.templates import ChatTemplate, TemplateRefusal
from megafuser.data.tokenization import (
    CONTROL_TOKEN,
    PROMPT_EMPTY,
    PROMPT_UNKNOWN,
    RESERVED,
    RESPONSE_DIFFERS,
    RESPONSE_UNSHARED,
    Encoder,
    EncoderSpec,
)
from megafuser.errors import UserError

Ids = tuple[tuple[int, ...], ...]
_UNLIMITED = 2**31
# What to do about a text that cannot be fused over; a prompt here is of any length.
_REMEDIES = {
    CONTROL_TOKEN: "write it otherwise",
    PROMPT_EMPTY: "give a longer message",
    PROMPT_UNKNOWN: "write the message otherwise",
    RESERVED: "remove them",
    RESPONSE_DIFFERS: "give another response",
    RESPONSE_UNSHARED: "write the response otherwise",
}


@dataclass(frozen=True)
class Message:
    """One message of a chat.

    Attributes:
        role: `system`, `user` or `assistant`.
        content: what it says.
    """

    role: str
    content: str


class ContextLengthError(UserError):
    """A chat that has no room in the context."""


class PromptEncoder:
    """Makes ids; the same as training would for a sample that begins so."""

    def __init__(
        self,
        tokenizers: Mapping[str, Any],
        templates: Sequence[str | TemplateConfig],
        *,
        shared_vocabulary: int,
        end_id: int,
        rows: Sequence[int],
    ) -> None:
        """Makes the templates.

        Args:
            tokenizers: of the K specialists, in order.
            templates: theirs.
            shared_vocabulary: number of ids that are scored.
            end_id: the id that ends a response.
            rows: embedding rows of the K specialists.

        Raises:
            UserError: a template does not work.
        """
        self.tokenizer = next(iter(tokenizers.values()))
        self.shared_vocabulary = shared_vocabulary
        spec = EncoderSpec(
            templates=tuple(templates),
            end_id=end_id,
            shared_vocabulary=shared_vocabulary,
            limit=_UNLIMITED,
            rows=tuple(rows),
        )
        self._encoder = Encoder(spec, list(tokenizers.values()))

    def chat(self, messages: Sequence[Message], most: int = _UNLIMITED) -> Ids:
        """The K prompts of a chat whose last message is the user's.

        Control tokens that a message spells out stay text, as in training.

        Args:
            messages: the chat.
            most: tokens of the context. Only where a longer chat would be costly it is refused here.

        Raises:
            ContextLengthError: the chat is longer than that.
            UserError: the messages are in no order that a template can put, or cannot be fused over.
        """
        system, turns = _turns(messages)
        refuse_no_text(message.content for message in messages)
        self._refuse_costly(turns, system, most)
        # What is to be generated stands as an empty response; its end id is cut off again.
        encoded = self._encoder.encode([Sample(turns=turns, system=system, id="prompt", where="prompt")])
        if encoded.failed:
            raise UserError(
                f"the messages cannot be put into every template: {encoded.failed[0].problem}; leave the system "
                "message or earlier turns out, or use another template"
            )
        if encoded.refused:
            reason, _ = encoded.refused[0]
            raise UserError(f"the prompt cannot be used, since {reason}; {_REMEDIES[reason]}")
        (responses,) = encoded.responses
        return tuple(
            tuple(
                token
                for turn, (prompt, response) in enumerate(zip(own[0], responses, strict=True))
                for token in (prompt if turn == len(responses) - 1 else [*prompt, *response])
            )
            for own in encoded.prompts
        )

    def _refuse_costly(self, turns: Sequence[tuple[str, str]], system: str | None, most: int) -> None:
        """Looks at a long chat as a whole first: a chat template renders all turns anew for every turn."""
        for template, tokenizer in zip(self._encoder.templates, self._encoder.tokenizers, strict=True):
            if len(turns) == 1 or not isinstance(template, ChatTemplate):
                continue
            try:
                whole = template.whole(turns, system)
            except TemplateRefusal:  # told later, with the template's reason
                continue
            length = len(tokenizer(whole, add_special_tokens=False, verbose=False)["input_ids"])
            if length > most:
                raise ContextLengthError(
                    f"the messages have {length} tokens, but the context has {most}; leave the first of them out"
                )

    def answered(self, message: str, response: str) -> tuple[Ids, tuple[int, ...]]:
        """The K prompts of a user's message, and the ids of a response to it without the end id, as in training.

        Raises:
            UserError: they cannot be fused over.
        """
        refuse_no_text((message, response))
        encoded = self._encoder.encode([Sample(turns=((message, response),), system=None, id="prompt", where="prompt")])
        if encoded.failed:
            raise UserError(
                f"the message cannot be put into every template: {encoded.failed[0].problem}; change it, or use "
                "another template"
            )
        if encoded.refused:
            reason, _ = encoded.refused[0]
            raise UserError(f"the message or its response cannot be used, since {reason}; {_REMEDIES[reason]}")
        return tuple(tuple(own[0][0]) for own in encoded.prompts), tuple(encoded.responses[0][0][:-1])

    def raw(self, text: str, specialists: int) -> Ids:
        """The same ids for all: the first specialist's tokenizer on the text, with the tokens that it puts in front.

        They are not put there twice where the text spells them out; those that a tokenizer appends are left out.

        Raises:
            UserError: the text has no token, or one that not all specialists have.
        """
        refuse_no_text((text,))
        ids, front = self.tokenizer(text, add_special_tokens=False)["input_ids"], self._encoder.fronts[0]
        return self.raw_ids(ids if ids[: len(front)] == front else [*front, *ids], specialists)

    def raw_ids(self, ids: Sequence[int], specialists: int) -> Ids:
        """The same for ids.

        Raises:
            UserError: there are none, or one that not all specialists have.
        """
        if not ids:
            raise UserError("the prompt is empty; give at least one token")
        if max(ids) >= self.shared_vocabulary or min(ids) < 0:
            wrong = next(token for token in ids if not 0 <= token < self.shared_vocabulary)
            raise UserError(
                f"the prompt has the token {wrong}, outside the {self.shared_vocabulary} that all specialists share; "
                "leave it out"
            )
        return (tuple(ids),) * specialists


def refuse_no_text(texts: Iterable[str]) -> None:
    """Refuses what only looks like text: JSON's half of a surrogate pair, or a command line's bytes that are no UTF-8.

    Raises:
        UserError: there is some.
    """
    for text in texts:
        try:
            text.encode()
        except UnicodeEncodeError:
            raise UserError("the prompt is no UTF-8, or has half of a surrogate pair; remove it") from None


def _turns(messages: Sequence[Message]) -> tuple[str | None, tuple[tuple[str, str], ...]]:
    """System prompt and (user, assistant) pairs, the last of which lacks its response."""
    system, rest = None, list(messages)
    if rest and rest[0].role == "system":
        system = rest.pop(0).content or None
    if not rest:
        raise UserError("the messages are empty; the last one must be the user's")
    for index, message in enumerate(rest):
        expected = ("user", "assistant")[index % 2]
        if message.role != expected:
            raise UserError(
                f"message {index + len(messages) - len(rest)} is of role {message.role!r} where {expected!r} is "
                "expected: user and assistant take turns, behind at most one system message"
            )
        if not message.content.strip():
            raise UserError(f"message {index + len(messages) - len(rest)} is empty; write it, or leave it out")
    if len(rest) % 2 == 0:
        raise UserError("the last message must be the user's; there is nothing to answer")
    texts = [message.content for message in rest] + [""]
    return system, tuple(zip(texts[::2], texts[1::2], strict=True))
