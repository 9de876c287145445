"""Text as it comes: together it is the tokenizer's own decoding, and nothing that was shown is taken back."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megafuser.inference.text import TextStream
from tests.tiny_models import make_tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return make_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@settings(max_examples=200, deadline=None)
@given(text=st.text(max_size=40))
def test_the_pieces_are_the_whole(tokenizer, text):
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    stream = TextStream(tokenizer)
    pieces = [stream.add(token) for token in ids]
    pieces.append(stream.finish())
    assert "".join(pieces) == stream.text == tokenizer.decode(ids, clean_up_tokenization_spaces=False)


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


def test_bytes_that_are_no_character_do_not_wait_for_ever(tokenizer):
    byte = tokenizer.convert_tokens_to_ids("ÿ")  # the byte-level alphabet's sign for 0xFF
    stream = TextStream(tokenizer)
    shown = "".join(stream.add(byte) for _ in range(40))
    assert shown
    assert shown + stream.finish() == tokenizer.decode([byte] * 40)
