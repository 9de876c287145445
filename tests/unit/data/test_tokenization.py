"""The ids of a sample, against what the tokenizers give when asked directly, and what is refused."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from tokenizers import processors

from megafuser.config.data import DomainConfig
from megafuser.config.schema import TemplateConfig
from megafuser.data import tokenization
from megafuser.data.sources.samples import Sample
from megafuser.data.templates import get_template
from megafuser.data.tokenization import load_data, load_tokenizers, tokenize_domain
from megafuser.errors import UserError
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
    settings = {"end_id": EOS, "shared_vocabulary": SHARED_VOCABULARY, "limit": 10_000} | settings
    built = [get_template(spec, own) for spec, own in zip(templates, tokenizers, strict=True)]
    return tokenize_domain("text", samples, tokenizers=tokenizers, templates=built, **settings)


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
    assert len(domain) == 2 and domain.sample_ids == ["a", "b"] and domain.refused == {} and domain.name == "text"
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
    plain, extra = make_tokenizer(tmp_path / "a", 0), make_tokenizer(tmp_path / "b", 2)
    samples = [
        single("q", "good", None, "kept"),
        single("q", "bad <extra_0>"),
        single("<extra_0>", "a", None, "prompt"),
    ]
    domain = tokenize(samples, [plain, extra], ["plain", "plain"])
    assert domain.sample_ids == ["kept", "prompt"]
    assert domain.refused == {tokenization.RESPONSE_DIFFERS: 1}
    assert SHARED_VOCABULARY in domain.view(1, 1)[0] and SHARED_VOCABULARY not in domain.view(1, 0)[0]
    domain = tokenize(samples, [extra, extra], ["plain", "plain"])
    assert domain.refused == {tokenization.RESPONSE_UNSHARED: 1}
    domain = tokenize(samples, [extra], ["plain"], rows=[SHARED_VOCABULARY])
    assert domain.refused == {tokenization.RESPONSE_UNSHARED: 1, tokenization.PROMPT_UNKNOWN: 1}


def test_samples_longer_than_the_limit_in_any_view_are_dropped(tokenizers):
    own = list(tokenizers.values())
    samples = [single("q", "seven " * n, None, str(n)) for n in range(1, 20)]
    everything = tokenize(samples, own)
    limit = int(everything.lengths.max(axis=1)[9])
    domain = tokenize(samples, own, limit=limit)
    assert domain.sample_ids == [str(n) for n in range(1, 11)]
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
    monkeypatch.setattr(tokenization, "CHUNK", 3)
    pieces = tokenize(samples, own)
    assert whole.sample_ids == pieces.sample_ids == [str(i) for i in range(11)]
    for sample in range(11):
        for specialist in range(3):
            for one, other in zip(whole.view(sample, specialist), pieces.view(sample, specialist), strict=True):
                np.testing.assert_array_equal(one, other)


def configuration(tmp_path, samples, **data):
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps({"instruction": q, "response": a}) + "\n" for q, a in samples))
    domain = DomainConfig((str(path),), (str(path), str(path)))
    domains = {"math": domain, "text": domain}
    settings = {"sequence_length": 512, "end_token": None, "valid_fraction": 0.01, "domains": domains} | data
    specialists = [SimpleNamespace(name=name, template=own) for name, own in zip(("text", "code"), NAMES, strict=False)]
    return SimpleNamespace(specialists=specialists, data=SimpleNamespace(**settings))


def test_load_data_reads_domains_in_their_order_with_the_smallest_limit(tmp_path, tokenizers):
    rows = {name: len(tokenizer) for name, tokenizer in tokenizers.items()}
    config = configuration(tmp_path, [("q", "a"), ("q", "seven " * 40)])
    positions = {"text": 512, "code": 512, "math": 8}
    train = load_data(config, tokenizers, rows, positions, "train")
    valid = load_data(config, tokenizers, rows, positions, "valid")
    assert [(domain.name, len(domain)) for domain in train] == [("math", 2), ("text", 2)]
    assert [len(domain) for domain in valid] == [4, 4]
    assert train[0].lengths.shape == (2, 2), "specialists that the run does not name have no view"
    short = load_data(config, tokenizers, rows, {"text": 512, "code": 40}, "train")
    assert short[0].refused == {"longer than 40 positions": 1}
    with pytest.raises(ValueError, match="split must be"):
        load_data(config, tokenizers, rows, positions, "test")


def test_load_data_tells_what_is_wrong(tmp_path, tokenizers):
    rows = {name: len(tokenizer) for name, tokenizer in tokenizers.items()}
    positions = {name: 512 for name in tokenizers}
    config = configuration(tmp_path, [("q", "seven " * 40)] * 3, sequence_length=20)
    with pytest.raises(UserError, match=r"no train sample of domain math is left: 3 \(longer than 20 positions\)"):
        load_data(config, tokenizers, rows, positions, "train")
    with pytest.raises(UserError, match=r"outside the 320 shared ids|differ"):
        load_data(configuration(tmp_path, [("q", "a")], end_token="<extra_0>"), tokenizers, rows, positions, "train")


def test_load_data_names_the_specialist_whose_template_fails(tmp_path, tokenizers):
    config = configuration(tmp_path, [("q", "a")])
    config.specialists[1].template = "hf"
    rows = {name: len(tokenizer) for name, tokenizer in tokenizers.items()}
    with pytest.raises(UserError, match="specialist code: template 'hf': the tokenizer has no chat template"):
        load_data(config, tokenizers, rows, {name: 512 for name in tokenizers}, "train")


def test_a_directory_without_a_tokenizer_is_told(tmp_path):
    with pytest.raises(UserError, match=r"specialist code: .*none is not a directory"):
        load_tokenizers({"code": tmp_path / "none"})
    with pytest.raises(UserError, match=r"specialist code: the tokenizer in .* does not load"):
        load_tokenizers({"code": tmp_path})
    make_tokenizer(tmp_path / "broken")
    (tmp_path / "broken" / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match=r"specialist code: the tokenizer in .* does not load") as caught:
        load_tokenizers({"code": tmp_path / "broken"})
    assert "\n" not in str(caught.value)
