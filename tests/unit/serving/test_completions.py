"""A completion's text goes on with its prompt's: together they are what the tokenizer decodes them to together."""

from types import SimpleNamespace
from typing import Any, cast

import pytest

from megafuser.inference.request import Call, Request
from megafuser.inference.step_messages import Prediction
from megafuser.serving.completions import Completions
from megafuser.serving.engine_loop import Event
from megafuser.serving.request_schema import CompletionBody
from megafuser.serving.service import Service
from megafuser.serving.token_bytes import TokenBytes

END = 2


def prediction(token: int) -> Prediction:
    return Prediction(token=token, logprob=-1.0, is_greedy=True, gate=(1.0,), top=())


def complete(tokenizer, prompt: str | list[int], response: list[int], **settings: Any) -> list[dict[str, Any]]:
    """What a stream has of a response that the engine is said to have given, a piece for each token with a text."""
    body = CompletionBody(prompt=prompt, **settings)
    model = SimpleNamespace(tokenizer=tokenizer, specialists=("one",))
    service = cast(Service, SimpleNamespace(tokens=TokenBytes(tokenizer), model=model))
    ids = tokenizer(prompt)["input_ids"] if isinstance(prompt, str) else prompt
    events: list[Event] = []
    request = Request(
        Call((tuple(ids),), len(response), echo=bool(body.echo), continues=True),
        tokenizer=tokenizer,
        end_id=END,
        on_token=lambda own, text: events.append(Event(text, len(own.predictions), own.finish is not None)),
    )
    request.start = 0
    answer = Completions(service, body, [prompt if isinstance(prompt, str) else None])
    pieces, sent = [], 0
    for token in response:
        ask = request.ask(len(ids))
        request.take(ask, [prediction(target) for target in (*ask.targets, token)])
        if events[-1].text or events[-1].is_last:
            pieces.append(answer.choice(0, request, sent, events[-1].tokens, events[-1]).sent())
            sent = events[-1].tokens
    return pieces


def text_of(pieces: list[dict[str, Any]]) -> str:
    return "".join(piece["text"] for piece in pieces)


@pytest.mark.parametrize("name", ["tiny", "byte-level", "sentencepiece"])
@pytest.mark.parametrize("echo", [False, True])
def test_the_text_goes_on_with_the_prompt_s(tokenizers, name, echo):
    tokenizer = tokenizers[name]
    prompt = "The capital is"
    ids = tokenizer(prompt + " Paris, Größe 漢字")["input_ids"]
    given = tokenizer(prompt)["input_ids"]
    assert ids[: len(given)] == given
    pieces = complete(tokenizer, prompt, ids[len(given) :], echo=echo, logprobs=0)
    before = prompt if echo else ""
    assert text_of(pieces) == before + " Paris, Größe 漢字"
    tokens = [token for piece in pieces for token in piece["logprobs"]["tokens"]]
    offsets = [offset for piece in pieces for offset in piece["logprobs"]["text_offset"]]
    assert len(tokens) == len(offsets) == len(ids) - len(given) * (not echo)
    for token, offset in zip(tokens[-len(ids) + len(given) :], offsets[-len(ids) + len(given) :], strict=True):
        assert token.startswith("bytes:") or text_of(pieces)[offset:].startswith(token)
    assert offsets[-len(ids) + len(given)] == len(before)


@pytest.mark.parametrize("name", ["tiny", "byte-level", "sentencepiece"])
def test_a_prompt_of_ids_may_end_within_a_character(tokenizers, name):
    tokenizer = tokenizers[name]
    ids = tokenizer("is 🦊.")["input_ids"]
    for count in range(1, len(ids)):
        pieces = complete(tokenizer, ids[:count], ids[count:], echo=True, logprobs=0)
        assert text_of(pieces) == tokenizer.decode(ids, skip_special_tokens=True) == "is 🦊."
        alone = complete(tokenizer, ids[:count], ids[count:], logprobs=0)
        assert "is 🦊.".endswith(text_of(alone))
        whole = [offset for piece in pieces for offset in piece["logprobs"]["text_offset"]]
        own = [offset for piece in alone for offset in piece["logprobs"]["text_offset"]]
        assert [offset - whole[count] for offset in whole[count:]] == [offset - own[0] for offset in own]
        assert own[0] == 0
