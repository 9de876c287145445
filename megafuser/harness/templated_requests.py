"""The harness's requests through the specialists' templates: a context is the user's message, the rest its response.

Ids are as in training. A response is tokenized by itself, so the blank that the harness puts in front of it, to join
it to the context, is taken away. Where a context is too long, the message loses its beginning; templates stay whole.
Raw requests are made in `harness.language_model`.
"""

from collections.abc import Callable

from megafuser.errors import UserError
from megafuser.inference.cache import longest
from megafuser.inference.open_model import FusedLanguageModel
from megafuser.inference.prompts import Ids, Message
from megafuser.inference.scoring import Continuation


class Templated:
    """Makes ids of requests.

    Attributes:
        cut: how many messages were too long.
    """

    def __init__(self, model: FusedLanguageModel) -> None:
        """Uses the model's own templates."""
        self.cut = 0
        self._model = model

    def pair(self, context: str, continuation: str) -> Continuation:
        """What is scored: the continuation behind the context.

        Raises:
            UserError: one of them cannot be fused over, or the continuation has no room, or no tokens.
        """
        # its only blank may be all that it has
        response = continuation.removeprefix(" ") or continuation

        def encode(message: str) -> tuple[Ids, tuple[int, ...]]:
            return self._model.prompts.answered(message, response)

        prompts, ids = self._fitting(context, encode, self._model.limit + 1)
        return Continuation(prompts, ids)

    def prompt(self, context: str, max_tokens: int) -> Ids:
        """What is answered, with room for so many tokens.

        Raises:
            UserError: it cannot be fused over, or there is no room.
        """

        def encode(message: str) -> tuple[Ids, tuple[int, ...]]:
            return self._model.prompts.chat([Message("user", message)]), ()

        return self._fitting(context, encode, self._model.limit - max_tokens)[0]

    def _fitting(
        self, message: str, encode: Callable[[str], tuple[Ids, tuple[int, ...]]], room: int
    ) -> tuple[Ids, tuple[int, ...]]:
        """The ids of as much of the message's end as there is room for."""
        prompts, ids = encode(message)
        excess = longest(prompts) + len(ids) - room
        if excess <= 0:
            return prompts, ids
        tokenizer = self._model.tokenizer
        tokens = tokenizer(message, add_special_tokens=False)["input_ids"]
        dropped = excess
        while dropped < len(tokens):
            end = tokenizer.decode(tokens[dropped:], clean_up_tokenization_spaces=False)
            if not end.strip():
                break
            prompts, ids = encode(end)
            excess = longest(prompts) + len(ids) - room
            if excess <= 0:
                self.cut += 1
                return prompts, ids
            dropped += excess
        raise UserError(
            f"a request has no room for its context: the context window has {self._model.limit} tokens, which the "
            "templates and the response fill; give the task a smaller max_gen_toks, or use --raw"
        )
