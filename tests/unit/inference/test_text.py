"""Text as it comes: together it is the tokenizer's own decoding, and nothing that was shown is taken back."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers
from transformers import PreTrainedTokenizerFast

from megafuser.inference.text import TextStream
from tests.tiny_models import make_tokenizer


def make_llama_tokenizer(words: int = 0) -> PreTrainedTokenizerFast:
    """As Llama 2's: blanks belong to the words behind them, and what has no token is spelled in bytes, newlines too.

    Args:
        words: how many more tokens there are, each a word with its blank, that no text has.
    """
    vocabulary = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    vocabulary += ["a", "b", "c", "▁", "▁a", "▁b", "ab", "▁ab"]
    vocabulary += [f"▁w{number}" for number in range(words)]
    merges = [("▁", "a"), ("▁", "b"), ("a", "b"), ("▁a", "b")]
    model = models.BPE(
        vocab={token: number for number, token in enumerate(vocabulary)},
        merges=merges,
        unk_token="<unk>",
        byte_fallback=True,
    )
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in vocabulary[:3]])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


@pytest.fixture(scope="module")
def byte_level(tmp_path_factory):
    return make_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module", params=["byte-level", "byte-fallback"])
def tokenizer(request, byte_level):
    return byte_level if request.param == "byte-level" else make_llama_tokenizer()


@settings(max_examples=200, deadline=None)
@given(text=st.text(max_size=40))
def test_the_pieces_are_the_whole(tokenizer, text):
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    stream = TextStream(tokenizer)
    pieces = [stream.add(token) for token in ids]
    pieces.append(stream.finish())
    assert "".join(pieces) == stream.text == tokenizer.decode(ids, clean_up_tokenization_spaces=False)


@settings(max_examples=300, deadline=None)
@given(text=st.text(alphabet="abé€ \n", max_size=40), share=st.floats(0, 1))
def test_a_text_goes_on_with_its_prompt_s(tokenizer, text, share):
    bos = tokenizer.convert_tokens_to_ids("<s>")
    ids = [bos, *tokenizer(text, add_special_tokens=False)["input_ids"]]
    prompt = ids[: 1 + int(share * (len(ids) - 1))]  # which may end within a character
    stream = TextStream(tokenizer, prompt=prompt)
    pieces = [stream.add(token) for token in ids[len(prompt) :]]
    pieces.append(stream.finish())
    before = tokenizer.decode(prompt[: stream.shown], skip_special_tokens=True)
    assert len(prompt) - 3 <= stream.shown <= len(prompt) and "\ufffd" not in before
    assert "".join(pieces) == stream.text
    assert before + stream.text == tokenizer.decode(ids, skip_special_tokens=True)


def test_the_blank_between_prompt_and_response_is_the_response_s():
    tokenizer = make_llama_tokenizer()
    prompt = tokenizer("c ab", add_special_tokens=False)["input_ids"]
    response = tokenizer("ab a", add_special_tokens=False)["input_ids"]
    assert "".join(map(TextStream(tokenizer, prompt=prompt).add, response)) == " ab a"
    assert "".join(map(TextStream(tokenizer).add, response)) == "ab a"
    # special tokens are not text in front of it, however many there are
    specials = [tokenizer.convert_tokens_to_ids("</s>")] * 20
    assert "".join(map(TextStream(tokenizer, prompt=[*prompt, *specials]).add, response)) == " ab a"
    assert "".join(map(TextStream(tokenizer, prompt=specials).add, response)) == "ab a"


@pytest.mark.parametrize("text", ["a\ufffd", "\ufffd", "é\ufffd\ufffd"])
def test_a_replacement_character_that_ends_a_prompt_is_whole(tokenizer, text):
    """It looks like a character that is not finished, and one that is not may follow it."""
    prompt = tokenizer(text, add_special_tokens=False)["input_ids"]
    stream = TextStream(tokenizer, prompt=prompt)
    assert stream.shown == len(prompt)
    assert stream.add(tokenizer.convert_tokens_to_ids("a")) == "a"
    ids = tokenizer(text + "€", add_special_tokens=False)["input_ids"]
    stream = TextStream(tokenizer, prompt=ids[:-1])
    assert stream.shown == len(ids) - 3
    assert stream.add(ids[-1]) == "€"


def test_a_stop_string_may_begin_with_the_blank_between_prompt_and_response():
    tokenizer = make_llama_tokenizer()
    prompt = tokenizer("c ab", add_special_tokens=False)["input_ids"]
    stream = TextStream(tokenizer, [" b"], prompt=prompt)
    assert [stream.add(token) for token in tokenizer("b", add_special_tokens=False)["input_ids"]] == [""]
    assert stream.stopped and stream.text == ""


def test_a_prompt_of_bytes_that_are_no_character_is_not_shown_again(byte_level):
    byte, letter = byte_level.convert_tokens_to_ids("ÿ"), byte_level.convert_tokens_to_ids("a")
    stream = TextStream(byte_level, prompt=[byte] * 40)
    assert stream.shown == 40
    assert stream.add(letter) == "a"


@settings(max_examples=200, deadline=None)
@given(text=st.text(alphabet="abé \n", max_size=30), stop=st.text(alphabet="abé \n", min_size=1, max_size=4))
def test_a_stop_string_ends_it_and_is_never_shown(tokenizer, text, stop):
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    stream, shown = TextStream(tokenizer, [stop, "never"]), ""
    for token in ids:
        shown += stream.add(token)
        assert stop not in shown
    shown += stream.finish()
    assert shown == stream.text == text.split(stop)[0]
    assert stream.stopped == (stop in text)


def test_bytes_that_are_no_character_do_not_wait_for_ever(byte_level):
    tokenizer = byte_level
    byte = tokenizer.convert_tokens_to_ids("ÿ")  # the byte-level alphabet's sign for 0xFF
    stream = TextStream(tokenizer)
    shown = "".join(stream.add(byte) for _ in range(40))
    assert shown
    assert shown + stream.finish() == tokenizer.decode([byte] * 40)


def test_a_character_is_shown_with_the_last_of_its_bytes(tokenizer):
    ids = tokenizer("a €", add_special_tokens=False)["input_ids"]
    stream = TextStream(tokenizer)
    pieces = [stream.add(token) for token in ids]
    assert pieces[-1].endswith("€") and "�" not in "".join(pieces)
    assert [piece for piece in pieces[-3:-1] if piece.strip()] == []


def test_a_stop_string_may_begin_within_a_token_and_end_within_another(tokenizer):
    ids = tokenizer("c ab ab€", add_special_tokens=False)["input_ids"]
    stream = TextStream(tokenizer, ["b a"])
    shown = [stream.add(token) for token in ids]
    assert stream.stopped and "".join(shown) == stream.text == "c a"
    assert stream.add(ids[0]) == stream.finish() == ""
    # what only began is shown as soon as it goes on otherwise, and at the end
    stream = TextStream(tokenizer, ["b a", "ab€€"])
    assert "".join(stream.add(token) for token in tokenizer("c ab", add_special_tokens=False)["input_ids"]) == "c "
    assert stream.finish() == "ab"
    assert not stream.stopped
