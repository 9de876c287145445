"""The ids of a sample, against what the tokenizers give when asked directly, and what is refused."""

import types

import numpy as np
import pytest
from tokenizers import processors

from megafuser.config.data import LengthConfig
from megafuser.config.specialists import TemplateConfig
from megafuser.data import tokenization
from megafuser.data.sources.samples import Sample
from megafuser.data.tokenization import Encoder, EncoderSpec, load_tokenizers
from megafuser.errors import UserError
from tests import small_domain
from tests.small_domain import tokenize_domain
from tests.tiny_models import SHARED_VOCABULARY, make_tokenizer

BOS, EOS = 1, 2
NAMES = ("ultralm", "codellama", "alpaca")


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tokenizers")
    extras = {"text": 0, "code": 16, "math": 1}
    for name, extra in extras.items():
        make_tokenizer(directory / name, extra)
    return load_tokenizers({name: directory / name for name in extras})


def single(instruction, response, system=None, identity="0"):
    return Sample(((instruction, response),), system, identity)


def tokenize(samples, tokenizers, templates=NAMES, **settings):
    rows = tuple(map(len, tokenizers))
    settings = {"end_id": EOS, "shared_vocabulary": SHARED_VOCABULARY, "limit": 10_000, "rows": rows} | settings
    return tokenize_domain("text", samples, EncoderSpec(templates=tuple(templates), **settings), tokenizers)


def sample_ids(domain):
    return [domain.sample_id(sample) for sample in range(len(domain))]


def plain_ids(tokenizer, text):
    """Ids by the Rust tokenizer itself, without special tokens."""
    return tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids


def check_views(domain, sample, expected):
    """Compares each specialist's view with `expected`: lists of (prompt ids, response ids with the end id)."""
    targets = [i for _, response in expected[0] for i in response]
    assert domain.targets(sample).tolist() == targets
    assert domain.response_lengths[sample] == len(targets)
    for specialist, turns in enumerate(expected):
        ids, positions = domain.view(sample, specialist)
        assert ids.dtype == positions.dtype == np.int32
        whole, predicting = [], []
        for prompt, response in turns:
            whole += prompt
            for token in response:
                predicting.append(len(whole) - 1)
                whole.append(token)
        assert ids.tolist() == whole
        assert positions.tolist() == predicting
        assert domain.lengths[sample, specialist] == len(whole)


def test_single_turns_have_each_specialists_prompt_and_one_response(tokenizers):
    own = list(tokenizers.values())
    samples = [single("What is the sum?", " It is seven.", None, "a"), single("add", "def add(a):\n", None, "b")]
    domain = tokenize(samples, own)
    assert len(domain) == 2 and sample_ids(domain) == ["a", "b"] and domain.refused == {} and domain.name == "text"
    for index, (instruction, response) in enumerate(sample.turns[0] for sample in samples):
        end = [*plain_ids(own[0], response), EOS]
        prompts = [
            f"User: {instruction}\nAssistant:",
            f"[INST] {instruction} [/INST]",
            "Below is an instruction that describes a task. Write a response that appropriately completes the request."
            f"\n\n### Instruction:\n{instruction}\n\n### Response:",
        ]
        check_views(domain, index, [[([BOS, *plain_ids(own[0], prompt)], end)] for prompt in prompts])


def test_a_prompt_has_the_ids_that_the_tokenizer_gives_by_default(tokenizers):
    own = tokenizers["code"]
    domain = tokenize([single("print", "i")], [own], ["codellama"])
    ids, _ = domain.view(0, 0)
    assert ids.tolist() == [*own("[INST] print [/INST]")["input_ids"], *own("i")["input_ids"][1:], EOS]


def test_every_turn_of_a_chat_counts_and_bos_comes_once(tokenizers):
    own = list(tokenizers.values())[:2]
    chat = Sample((("One?", "two"), ("Three?", "four five"), ("Six?", "s")), "S", "chat")
    samples = [single("q", "a"), chat, single("r", "b")]
    domain = tokenize(samples, own, ["ultralm", TemplateConfig("<s>[INST] {{ instruction }} [/INST]")])
    expected = []
    for form, system in (("User: {}\nAssistant:", "S\n"), ("[INST] {} [/INST]", "")):
        turns = []
        for index, (instruction, response) in enumerate(chat.turns):
            prompt = plain_ids(own[0], (system if index == 0 else "") + form.format(instruction))
            turns.append(([BOS, *prompt] if index == 0 else prompt, [*plain_ids(own[0], response), EOS]))
        expected.append(turns)
    check_views(domain, 1, expected)
    check_views(
        domain,
        2,
        [
            [([BOS, *plain_ids(own[0], p)], [*plain_ids(own[0], "b"), EOS])]
            for p in ("User: r\nAssistant:", "[INST] r [/INST]")
        ],
    )


@pytest.mark.parametrize("prompt", ["<s>[INST] {{ instruction }} [/INST]", "[INST] {{ instruction }} [/INST]"])
def test_bos_is_not_doubled_where_the_template_writes_it(tokenizers, prompt):
    own = tokenizers["text"]
    ids, _ = tokenize([single("Q", "a")], [own], [TemplateConfig(prompt)]).view(0, 0)
    assert ids.tolist() == [BOS, *plain_ids(own, "[INST] Q [/INST]"), *plain_ids(own, "a"), EOS]


@pytest.mark.parametrize(
    ("form", "front"), [("<s> $A </s>", [BOS]), ("$A </s>", []), ("$A", []), ("<s> <unk> $A </s>", [BOS, 0])]
)
def test_special_tokens_in_front_are_kept_and_those_behind_are_not(tmp_path, form, front):
    own = make_tokenizer(tmp_path)
    own.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=form, special_tokens=[("<s>", BOS), ("</s>", EOS), ("<unk>", 0)]
    )
    assert own("x")["input_ids"] == [*front, *plain_ids(own, "x"), *([EOS] if "</s>" in form else [])]
    domain = tokenize([single("Q", "a")], [own], ["ultralm"])
    check_views(domain, 0, [[([*front, *plain_ids(own, "User: Q\nAssistant:")], [*plain_ids(own, "a"), EOS])]])


def test_hf_chat_has_the_ids_of_the_whole_rendered_chat(tmp_path):
    own = make_tokenizer(tmp_path)
    own.chat_template = (
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
        "{% else %}{{ m.content }}{{ eos_token }}\n{% endif %}{% endfor %}"
    )
    chat = Sample((("One?", "two"), ("Three?", "four")), None, "0")
    ids, positions = tokenize([chat], [own], ["hf"]).view(0, 0)
    messages = [
        {"role": role, "content": text}
        for turn in chat.turns
        for role, text in zip(("user", "assistant"), turn, strict=True)
    ]
    rendered = own.apply_chat_template(messages, tokenize=False).removesuffix("\n")
    assert ids.tolist() == plain_ids(own, rendered)
    assert own.decode(ids[positions + 1]) == "two</s>four</s>"


def test_responses_on_which_tokenizers_differ_or_leave_the_shared_ids_are_refused(tmp_path):
    plain, extra = make_tokenizer(tmp_path / "a"), make_tokenizer(tmp_path / "b")
    extra.add_tokens(["<extra_0>"])
    samples = [
        single("q", "good", None, "kept"),
        single("q", "bad <extra_0>"),
        single("<extra_0>", "a", None, "prompt"),
    ]
    domain = tokenize(samples, [plain, extra], ["plain", "plain"])
    assert sample_ids(domain) == ["kept", "prompt"]
    assert domain.refused == {tokenization.RESPONSE_DIFFERS: 1}
    assert SHARED_VOCABULARY in domain.view(1, 1)[0] and SHARED_VOCABULARY not in domain.view(1, 0)[0]
    domain = tokenize(samples, [extra, extra], ["plain", "plain"])
    assert domain.refused == {tokenization.RESPONSE_UNSHARED: 1}
    domain = tokenize(samples, [extra], ["plain"], rows=(SHARED_VOCABULARY,))
    assert domain.refused == {tokenization.RESPONSE_UNSHARED: 1, tokenization.PROMPT_UNKNOWN: 1}


def test_samples_longer_than_the_limit_in_any_view_are_dropped(tokenizers):
    own = list(tokenizers.values())
    samples = [single("q", "seven " * n, None, str(n)) for n in range(1, 20)]
    everything = tokenize(samples, own)
    limit = int(everything.lengths.max(axis=1)[9])
    domain = tokenize(samples, own, limit=limit)
    assert sample_ids(domain) == [str(n) for n in range(1, 11)]
    assert domain.refused == {f"longer than {limit} positions": 9}
    np.testing.assert_array_equal(domain.lengths, everything.lengths[:10])


def test_a_response_needs_a_position_that_predicts_it(tmp_path):
    own = make_tokenizer(tmp_path)
    assert len(tokenize([single("", "a")], [own], ["plain"])) == 1
    own.backend_tokenizer.post_processor = processors.TemplateProcessing(single="$A", special_tokens=[])
    domain = tokenize([single("", "a"), single("q", "a")], [own], ["plain"])
    assert len(domain) == 1 and domain.refused == {tokenization.PROMPT_EMPTY: 1}


def test_chunks_do_not_change_what_comes_out(tokenizers, monkeypatch):
    own = list(tokenizers.values())
    samples = [Sample(((f"q{i}", "a " * (i % 3 + 1)),) * (i % 2 + 1), None, str(i)) for i in range(11)]
    whole = tokenize(samples, own)
    monkeypatch.setattr(small_domain, "CHUNK", 3)
    pieces = tokenize(samples, own)
    assert sample_ids(whole) == sample_ids(pieces) == [str(i) for i in range(11)]
    for sample in range(11):
        for specialist in range(3):
            for one, other in zip(whole.view(sample, specialist), pieces.view(sample, specialist), strict=True):
                np.testing.assert_array_equal(one, other)


def test_a_directory_without_a_tokenizer_is_told(tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"specialist code: .*none is not a directory"):
        load_tokenizers({"code": tmp_path / "none"})
    with pytest.raises(UserError, match=r"specialist code: the tokenizer in .* does not load"):
        load_tokenizers({"code": tmp_path})
    foreign = types.SimpleNamespace(added_tokens_decoder=lambda: {})
    with monkeypatch.context() as patch:
        patch.setattr("transformers.AutoTokenizer.from_pretrained", lambda *_, **__: foreign)
        with pytest.raises(UserError, match=r"specialist code: .* loads as SimpleNamespace, which does not tell"):
            load_tokenizers({"code": tmp_path})
    make_tokenizer(tmp_path / "broken")
    (tmp_path / "broken" / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match=r"specialist code: the tokenizer in .* does not load") as caught:
        load_tokenizers({"code": tmp_path / "broken"})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("place", ["instruction", "response", "system"])
def test_a_control_token_that_is_spelled_out_stays_text(tokenizers, place):
    own = list(tokenizers.values())
    texts = {"instruction": "q", "response": "a", "system": "s"} | {place: "what does </s> mean?"}
    written = Sample(((texts["instruction"], texts["response"]),), texts["system"], "0", "file:1")
    encoded = Encoder(EncoderSpec(NAMES, EOS, SHARED_VOCABULARY, 1000, tuple(map(len, own))), own).encode([written])
    assert encoded.spelled_out == {"file:1"} and encoded.refused == []
    for specialist, tokenizer in enumerate(own):
        ids = encoded.prompts[specialist][0][0] + encoded.responses[0][0]
        assert [token for token in ids if token in tokenizer.all_special_ids] == [BOS, EOS]
        assert "what does </s> mean?" in tokenizer.decode(ids)


def test_where_it_could_not_stay_text_the_sample_is_refused(tokenizers, monkeypatch):
    """As with a tokenizer that has no Rust backend."""
    monkeypatch.setattr("megafuser.data.control_tokens._renamed", lambda tokenizer, control: None)
    samples = [single("q < 3", "a", None, "kept"), single("</s>", "a", None, "0"), single("s>", "</ s>", None, "too")]
    domain = tokenize(samples, list(tokenizers.values()))
    assert sample_ids(domain) == ["kept", "too"] and domain.refused == {tokenization.CONTROL_TOKEN: 1}


def test_noncharacters_are_refused(tokenizers):
    samples = [single("\ufdd0", "a"), single("q", "\ufdef"), single("\ufdcf", "\ufffd", None, "kept")]
    domain = tokenize(samples, list(tokenizers.values()))
    assert sample_ids(domain) == ["kept"] and domain.refused == {tokenization.RESERVED: 2}


def test_a_template_that_fails_on_a_sample_is_told_with_its_place(tokenizers):
    template = TemplateConfig("{% if instruction == 'bad' %}{{ 1 // 0 }}{% endif %}{{ instruction }}")
    spec = EncoderSpec((template,), EOS, SHARED_VOCABULARY, 100, (len(tokenizers["text"]),))
    samples = [
        Sample(((instruction, "a"),), None, "0", f"file:{line}") for line, instruction in enumerate(("q", "bad"))
    ]
    encoded = Encoder(spec, [tokenizers["text"]]).encode(samples)
    (bad,) = encoded.failed
    assert len(encoded.samples) == 1 and bad.where == "file:1" and "division" in bad.problem


TURNS = (("one two", "three four five"), ("six", "seven eight"))


@pytest.mark.parametrize("limit", range(1, 40))
def test_a_sample_that_is_too_long_is_cut_where_all_views_end(tokenizers, limit):
    own = list(tokenizers.values())
    chat = Sample(TURNS, None, "0")
    whole = tokenize([chat], own)
    domain = tokenize([chat], own, limit=limit, too_long="truncate")
    firsts = [whole.turns(0, specialist)[0][0] for specialist in range(3)]
    if limit <= max(map(len, firsts)):
        assert len(domain) == 0 and domain.refused == {f"longer than {limit} positions": 1}
        return
    assert domain.lengths.max() == min(limit, whole.lengths.max()) or domain.targets(0)[-1] == EOS
    for specialist in range(3):
        ids, positions = domain.view(0, specialist)
        longer_ids, longer_positions = whole.view(0, specialist)
        assert len(ids) <= limit
        np.testing.assert_array_equal(ids, longer_ids[: len(ids)])
        np.testing.assert_array_equal(positions, longer_positions[: len(positions)])
        assert positions[-1] == len(ids) - 2, "the last token kept is one that is trained on"


@pytest.mark.parametrize(
    ("bounds", "reason"),
    [
        ({"min_tokens": 12}, "fewer than 12 tokens"),
        ({"max_tokens": 6}, "more than 6 tokens"),
        ({"min_response_tokens": 5}, "fewer than 5 response tokens"),
        ({"max_response_tokens": 2}, "more than 2 response tokens"),
    ],
)
def test_lengths_outside_of_what_is_kept_are_told_apart(tokenizers, bounds, reason):
    """One prompt token (and BOS); two responses of 2 and 6 tokens with the end id."""
    own = [tokenizers["text"]]
    short, long = single("seven", "a", None, "short"), single("seven", "seven seven seven", None, "long")
    domain = tokenize([short, long], own, ["plain"])
    assert len(domain) == 2
    edges = {
        "min_tokens": int(domain.lengths[0, 0]) + 1,
        "max_tokens": int(domain.lengths[1, 0]) - 1,
        "min_response_tokens": int(domain.response_lengths[0]) + 1,
        "max_response_tokens": int(domain.response_lengths[1]) - 1,
    }
    (name,) = bounds
    kept = tokenize([short, long], own, ["plain"], lengths=LengthConfig(**{name: edges[name]}))
    assert sample_ids(kept) == (["long"] if name.startswith("min") else ["short"])
    assert list(kept.refused) == [reason.replace(str(bounds[name]), str(edges[name]))]
