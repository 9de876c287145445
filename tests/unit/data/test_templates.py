"""Prompts of the built-in templates, of Jinja prompts and of tokenizers' own chat templates."""

import re
from itertools import pairwise

import pytest

from megafuser.config.builtin_templates import BUILT_IN
from megafuser.config.specialists import TemplateConfig
from megafuser.data.templates import TemplateRefusal, asks_for_the_date, get_template
from megafuser.errors import UserError
from tests.parallel.launch import ROOT
from tests.tiny_models import make_tokenizer

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA2 = (
    "{% for m in messages %}{% if m.role == 'user' %}{{ bos_token }}[INST] {{ m.content }} [/INST]"
    "{% elif m.role == 'system' %}{{ raise_exception('no system role') }}"
    "{% else %} {{ m.content | trim }} {{ eos_token }}{% endif %}{% endfor %}"
)
FORGETFUL = "{{ messages[-1].content }}|"


# a template's name, a prompt, and one behind the system prompt "S"
FORMS = [
    ("ultralm", "User: Q?\nAssistant:", "S\nUser: Q?\nAssistant:"),
    ("codellama", "[INST] Q? [/INST]", "[INST] <<SYS>>\nS\n<</SYS>>\n\nQ? [/INST]"),
    (
        "alpaca",
        "Below is an instruction that describes a task. Write a response that appropriately completes the request."
        "\n\n### Instruction:\nQ?\n\n### Response:",
        "S\n\n### Instruction:\nQ?\n\n### Response:",
    ),
    (
        "chatml",
        "<|im_start|>user\nQ?<|im_end|>\n<|im_start|>assistant\n",
        "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nQ?<|im_end|>\n<|im_start|>assistant\n",
    ),
    ("plain", "Q?", "Q?"),
]


@pytest.fixture
def tokenizer(tmp_path):
    return make_tokenizer(tmp_path)


@pytest.mark.parametrize(("name", "plain", "with_system"), FORMS)
def test_built_in_forms(name, plain, with_system):
    template = get_template(name, None)
    assert template.turn("Q?", None, True) == plain
    assert template.turn("Q?", "S", True) == with_system


def test_every_built_in_form_is_tried_and_described():
    names = [name for name, _, _ in FORMS]
    described = re.findall(r"^\| `(\w+)` \|", (ROOT / "docs" / "data.md").read_text(), re.MULTILINE)
    assert set(names) == set(BUILT_IN) and {*names, "hf"} <= set(described)


def test_later_turns_have_no_system_prompt():
    turns = (("one", "a"), ("two", "b"))
    assert get_template("codellama", None).prompts(turns, "S", "</s>") == [
        "[INST] <<SYS>>\nS\n<</SYS>>\n\none [/INST]",
        "[INST] two [/INST]",
    ]


def test_instructions_are_text_and_no_template():
    assert get_template("ultralm", None).turn("{{ 1 + 1 }} {x}", None, True) == "User: {{ 1 + 1 }} {x}\nAssistant:"


def test_jinja_prompt():
    template = get_template(TemplateConfig("{% if system %}{{ system }}: {% endif %}{{ instruction }}\n"), None)
    assert template.turn("Q {{ x }} <b>", "S", True) == "S: Q {{ x }} <b>\n"
    assert template.turn("Q", None, True) == "Q\n"


@pytest.mark.parametrize(
    ("prompt", "told"),
    [
        ("{{ instruction", "is no Jinja"),
        ("{% if %}{{ instruction }}", "is no Jinja"),
        ("{{ instruction }} {{ input }}", "uses 'input'"),
        ("Answer:", "leaves the instruction out"),
        ("{{ instruction.missing }}", "fails"),
        ("{{ instruction + 1 }}", "fails"),
        ("{{ instruction.__class__.__mro__ }}", "fails"),
        ("{{ instruction }}{% include 'file' %}", "fails"),
        ("{{ instruction }}{% if not system %}{{ 1 // 0 }}{% endif %}", "fails"),
    ],
)
def test_a_broken_jinja_prompt_is_told_at_once(prompt, told):
    with pytest.raises(UserError) as caught:
        get_template(TemplateConfig(prompt), None)
    assert told in str(caught.value) and "\n" not in str(caught.value)


def test_an_unknown_name_is_told_with_the_nearest():
    with pytest.raises(UserError, match=r"^no template 'chat-ml'; the nearest valid one is 'chatml'; built in are "):
        get_template("chat-ml", None)


def test_hf_is_the_tokenizers_own(tokenizer):
    tokenizer.chat_template = CHATML
    template = get_template("hf", tokenizer)
    assert template.turn("Q?", "S", True) == get_template("chatml", None).turn("Q?", "S", True)


def test_hf_chat_puts_together_what_the_tokenizer_renders(tokenizer):
    turns = (("one", " a \n"), ("two", "b"), ("three", "c"))
    messages = [{"role": "user", "content": "one"}]
    for (_, response), (instruction, _) in pairwise(turns):
        messages += [{"role": "assistant", "content": response}, {"role": "user", "content": instruction}]
    tokenizer.chat_template = CHATML
    prompts = get_template("hf", tokenizer).prompts(turns, None, "<|im_end|>")
    whole = prompts[0] + turns[0][1] + "<|im_end|>" + prompts[1] + turns[1][1] + "<|im_end|>" + prompts[2]
    assert whole == tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)


def test_hf_blanks_around_a_response_are_the_templates_affair(tokenizer):
    tokenizer.chat_template = LLAMA2
    template = get_template("hf", tokenizer)
    assert template.prompts((("one", "a"), ("two", "b")), None, "</s>") == [
        "<s>[INST] one [/INST]",
        "<s>[INST] two [/INST]",
    ]


def test_hf_refuses_samples_that_its_template_cannot_put(tokenizer):
    tokenizer.chat_template = LLAMA2
    with pytest.raises(TemplateRefusal, match="no system role"):
        get_template("hf", tokenizer).prompts((("one", "a"),), "S", "</s>")
    tokenizer.chat_template = FORGETFUL
    with pytest.raises(TemplateRefusal, match="rewrites earlier turns"):
        get_template("hf", tokenizer).prompts((("one", "a"), ("two", "b")), None, "</s>")


def test_hf_without_a_working_chat_template_is_told(tokenizer):
    with pytest.raises(UserError, match="has no chat template"):
        get_template("hf", tokenizer)
    tokenizer.chat_template = "{{ messages[3].content }}"
    with pytest.raises(UserError, match="chat template fails"):
        get_template("hf", tokenizer)


@pytest.mark.parametrize(
    "form", ["{text}", "\n{text}", "  {text}", "{{%- macro m() %}}{text}{{% endmacro %}}{{{{ m() }}}}"]
)
def test_hf_that_asks_for_the_date_gets_the_same_one_every_day(tokenizer, form):
    """As Llama 3.2's does; the rest of the text stays as transformers renders it."""
    clock = '{% set date = strftime_now("%d %b %Y, %-d %B %A %H:%M 100%%") %}'
    rest = "\n {{ date }}\n{% if true %}\n  {{ messages[-1].content }}{% endif %}\n"
    tokenizer.chat_template = form.format(text="{% if strftime_now is defined %}" + clock + "{% endif %}" + rest)
    assert asks_for_the_date("hf", tokenizer) and not asks_for_the_date("plain", tokenizer)
    rendered = get_template("hf", tokenizer).turn("Q?", None, True)
    date = "26 Jul 2024, 26 July Friday 00:00 100%"
    assert date in rendered and rendered.endswith("  Q?")
    tokenizer.chat_template = form.format(text=f'{{% set date = "{date}" %}}{rest}')
    assert not asks_for_the_date("hf", tokenizer)
    assert get_template("hf", tokenizer).turn("Q?", None, True) == rendered


def test_of_several_chat_templates_the_default_one_counts(tokenizer):
    tokenizer.chat_template = {"default": '{{ strftime_now("%Y") }} {{ messages[-1].content }}', "tool_use": "x"}
    assert asks_for_the_date("hf", tokenizer)
    assert get_template("hf", tokenizer).turn("Q?", None, True) == "2024 Q?"
    tokenizer.chat_template = {"default": "{{ messages[-1].content }}", "tool_use": '{{ strftime_now("%Y") }}'}
    assert not asks_for_the_date("hf", tokenizer)
