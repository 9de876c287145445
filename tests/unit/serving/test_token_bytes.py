"""The bytes of tokens, put together, are the text's, for both kinds of tokenizers."""

import pytest

from megafuser.serving.token_bytes import TokenBytes

TEXTS = ("The quick brown fox", "Größe 漢字 🦊\n\tdef f(x):", "  two  blanks ", "naïve ½ \u00a0 \x7f")


@pytest.mark.parametrize("name", ["tiny", "byte-level", "sentencepiece"])
@pytest.mark.parametrize("text", TEXTS)
def test_bytes_make_the_text(tokenizers, name, text):
    tokenizer = tokenizers[name]
    found = TokenBytes(tokenizer)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    whole = b"".join(found.of(token) for token in ids)
    blank = b" " if name == "sentencepiece" else b""  # which it puts in front
    assert whole == blank + text.encode()
    for token in ids:
        own = found.of(token)
        assert found.name(token) == (own.decode() if _is_text(own) else "bytes:" + "".join(f"\\x{b:02x}" for b in own))


def _is_text(own: bytes) -> bool:
    try:
        own.decode()
    except UnicodeDecodeError:
        return False
    return True


def test_every_token_has_bytes_and_special_ones_their_names(tokenizers):
    for name, specials in (
        ("tiny", ("<s>", "<extra_1>")),
        ("byte-level", ("<|im_end|>",)),
        ("sentencepiece", ("<s>",)),
    ):
        tokenizer = tokenizers[name]
        found = TokenBytes(tokenizer)
        for token in range(len(tokenizer)):
            assert found.of(token) or tokenizer.convert_ids_to_tokens(token) == ""
        for special in specials:
            assert found.name(tokenizer.convert_tokens_to_ids(special)) == special
    single = TokenBytes(tokenizers["sentencepiece"])
    assert single.name(tokenizers["sentencepiece"].convert_tokens_to_ids("<0xE6>")) == "bytes:\\xe6"
