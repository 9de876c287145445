"""Offsets point at the token's own characters in the text that the tokenizer decodes."""

import pytest

from megafuser.inference.text import TextStream
from megafuser.serving.text_offsets import TextOffsets
from megafuser.serving.token_bytes import TokenBytes

TEXTS = ("The quick brown fox", "Größe 漢字 🦊\n\tdef f(x):", "  two  blanks ", "naïve ½ \u00a0 \x7f")


@pytest.mark.parametrize("name", ["tiny", "byte-level", "sentencepiece"])
@pytest.mark.parametrize("text", TEXTS)
def test_offsets_are_those_of_the_decoded_text(tokenizers, name, text):
    tokenizer = tokenizers[name]
    ids = tokenizer(text)["input_ids"]
    offsets = TextOffsets(TokenBytes(tokenizer))
    found = offsets.of(ids[:3]) + offsets.of(ids[3:])
    # a decoder that is given one token after the other knows so many characters before each
    stream, expected = TextStream(tokenizer), []
    for token in ids:
        expected.append(len(stream.text))
        stream.add(token)
    stream.finish()
    assert stream.text == text
    assert found == expected


@pytest.mark.parametrize("name", ["tiny", "byte-level", "sentencepiece"])
@pytest.mark.parametrize("text", TEXTS)
def test_offsets_go_on_behind_a_prompt(tokenizers, name, text):
    tokenizer = tokenizers[name]
    ids = tokenizer(text)["input_ids"]
    whole = TextOffsets(TokenBytes(tokenizer)).of(ids)
    for count in range(len(ids)):
        shown = TextStream(tokenizer, prompt=ids[:count]).shown  # a character that is not finished is the response's
        offsets = TextOffsets(TokenBytes(tokenizer))
        assert offsets.of(ids[:shown]) == whole[:shown]
        offsets.go_on_at(100 + len(tokenizer.decode(ids[:shown], skip_special_tokens=True)))
        assert offsets.of(ids[shown:]) == [100 + offset for offset in whole[shown:]]
