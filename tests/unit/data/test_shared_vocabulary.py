"""The shared vocabulary and the end id, on real tokenizers and on made-up ones of real size."""

import time

import pytest

from megafuser.data.shared_vocabulary import end_id, shared_vocabulary
from megafuser.errors import UserError
from tests.tiny_models import SHARED_VOCABULARY, make_tokenizer


class Tokens:
    """A tokenizer reduced to its table: a token per id, None where an id has none."""

    def __init__(self, tokens, eos=None):
        self.vocabulary = {token: i for i, token in enumerate(tokens) if token is not None}
        self.eos_token_id = eos

    def get_vocab(self):
        return self.vocabulary


def shared(*tables, rows=None):
    tokenizers = {name: Tokens(table) for name, table in zip("abcd", tables, strict=False)}
    return shared_vocabulary(tokenizers, rows or {name: 1000 for name in tokenizers})


def test_extra_tokens_lie_outside_as_in_the_paper(tmp_path):
    tokenizers = {name: make_tokenizer(tmp_path / name, n) for name, n in (("text", 0), ("code", 16), ("math", 1))}
    rows = {name: len(tokenizer) for name, tokenizer in tokenizers.items()}
    assert shared_vocabulary(tokenizers, rows) == SHARED_VOCABULARY
    assert end_id(tokenizers, None, SHARED_VOCABULARY) == 2
    assert end_id(tokenizers, "<unk>", SHARED_VOCABULARY) == 0


def test_the_longest_common_prefix():
    assert shared("xyz", "xyz") == 3
    assert shared("xyz", "xyzw", "xyzv") == 3
    assert shared("xyzuv", "xyzwt") == 3
    assert shared(["x", "y", None, "z"], ["x", "y", "w"]) == 2


def test_not_larger_than_any_embedding():
    assert shared("xyz", "xyz", rows={"a": 5, "b": 2}) == 2
    assert shared("xyz", "xyz", rows={"a": 3, "b": 3}) == 3


@pytest.mark.parametrize(
    ("tables", "told"),
    [
        (("xyzw", "xqzw"), "id 1 is 'y' to a but 'q' to b, while 2 later ids agree again"),
        (("xyzw", "xyzw", "xyvw"), "id 2 is 'z' to a but 'v' to c, while 1 later ids"),
        ((["x", None, "z"], ["x", "y", "z"]), "id 1 is no token to a but 'y' to b"),
        ((["x", None, "z"], ["x", None, "z"]), "id 1 has no token in any tokenizer"),
        (("xyz", "abc"), "id 0 is 'x' to a but 'a' to b; fuse"),
    ],
)
def test_shared_ids_that_are_no_prefix_are_refused(tables, told):
    with pytest.raises(UserError) as caught:
        shared(*tables)
    assert told in str(caught.value)


def test_agreement_of_only_some_specialists_beyond_the_prefix_is_none():
    assert shared("xyzuv", "xyzuw", "xyabc") == 2


def test_large_vocabularies_are_quick():
    table = [f"token{i}" for i in range(150_000)]
    tokenizers = {name: Tokens([*table, f"own {name}"]) for name in "abc"}
    start = time.process_time()
    assert shared_vocabulary(tokenizers, {name: 200_000 for name in "abc"}) == 150_000
    assert time.process_time() - start < 2.0


def test_end_ids_that_differ_are_refused_unless_a_token_is_named():
    differing = {"a": Tokens("xyz", eos=1), "b": Tokens("xyz", eos=2)}
    with pytest.raises(UserError, match=r"EOS differ \(a: 1, b: 2\); set data.end_token"):
        end_id(differing, None, 3)
    with pytest.raises(UserError, match=r"a: 1, b: none"):
        end_id({"a": Tokens("xyz", eos=1), "b": Tokens("xyz")}, None, 3)
    assert end_id(differing, "z", 3) == 2


def test_an_end_token_must_be_one_shared_token():
    tokenizers = {"a": Tokens("xyzq"), "b": Tokens("xyzw")}
    with pytest.raises(UserError, match=r"data.end_token 'q' differ \(a: 3, b: none\)"):
        end_id(tokenizers, "q", 3)
    with pytest.raises(UserError, match=r"data.end_token 'xy' differ"):
        end_id(tokenizers, "xy", 3)
    with pytest.raises(UserError, match="'z' has id 2, outside the 2 shared ids"):
        end_id(tokenizers, "z", 2)
    with pytest.raises(UserError, match="EOS has id 7, outside"):
        end_id({"a": Tokens("xyz", eos=7), "b": Tokens("xyz", eos=7)}, None, 3)
