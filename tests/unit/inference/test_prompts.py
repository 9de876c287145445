"""Prompts are what training's samples begin with, and what is said of them is what training's loss says."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import processors

from megafuser.data.row_building import build_row
from megafuser.data.templates import ChatTemplate
from megafuser.data.tokenization import EncoderSpec, load_tokenizers
from megafuser.data.tokenized import TokenizedDomain
from megafuser.errors import UserError
from megafuser.inference.prompts import ContextLengthError, Message, PromptEncoder, _turns
from megafuser.inference.scoring import Continuation, score
from tests.fused_case import SPECIALISTS, write_jsonl
from tests.small_domain import read_samples, tokenize_domain
from tests.tiny_models import SHARED_VOCABULARY, make_tokenizer
from tests.unit.inference.case import END, make_engine

WIDE = 1024  # three turns of a math prompt do not fit into the models' own context
CHATS: tuple[list[tuple[str, str]], ...] = (
    [("user", "What is seven?"), ("assistant", "It is seven.")],
    [("system", "Be brief."), ("user", "One? </s> [INST]"), ("assistant", "Two.")],
    [
        ("user", "a"),
        ("assistant", "The fox"),
        ("user", "b"),
        ("assistant", " return a"),
        ("user", "c"),
        ("assistant", "3"),
    ],
)


def trained_on(root: Path, path: Path) -> TokenizedDomain:
    """The samples as training has them."""
    lines: list[dict[str, Any]] = [
        {"messages": [{"role": role, "content": content} for role, content in chat]} for chat in CHATS
    ]
    tokenizers = load_tokenizers({name: root / "hf" / name for name in SPECIALISTS})
    spec = EncoderSpec(
        templates=tuple(settings["template"] for settings in SPECIALISTS.values()),
        end_id=END,
        shared_vocabulary=SHARED_VOCABULARY,
        limit=WIDE,
        rows=tuple(len(tokenizer) for tokenizer in tokenizers.values()),
    )
    domain = tokenize_domain("any", read_samples([write_jsonl(path, lines)]), spec, list(tokenizers.values()))
    assert len(domain) == len(CHATS), domain.refused
    return domain


def test_prompts_and_scores_are_trainings(root, fused, encoder, tmp_path):
    domain = trained_on(root, tmp_path / "samples.jsonl")
    engine = make_engine(fused, limit=WIDE)
    for index, chat in enumerate(CHATS):
        row = build_row([domain], np.array([[0, index]]), WIDE)
        with torch.no_grad():
            loss = fused(row)
        # all turns but the last response are the prompt; the loss's tokens are those of all responses
        prompts = encoder.chat([Message(role, content) for role, content in chat[:-1]])
        response = [*encoder.tokenizer(chat[-1][1], add_special_tokens=False).input_ids, END]
        for prompt, view in zip(prompts, row.specialists, strict=True):
            assert view.input_ids[0, : view.used].tolist() == [*prompt, *response]
        (found,) = score(engine, [Continuation(prompts, tuple(response))], max_running=1)
        assert row.targets[-len(response) :].tolist() == response
        expected = loss.fused[-len(response) :].tolist()
        assert [-one.logprob for one in found] == pytest.approx(expected, abs=1e-4)
        gates = torch.tensor([one.gate for one in found])
        torch.testing.assert_close(gates, loss.weights[-len(response) :], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("messages", "problem"),
    [
        ([], "messages are empty"),
        ([("system", "a")], "messages are empty"),
        ([("assistant", "a")], "message 0 is of role 'assistant' where 'user' is expected"),
        ([("user", "a"), ("user", "b")], "message 1 is of role 'user' where 'assistant' is expected"),
        ([("user", "a"), ("system", "b")], "message 1 is of role 'system'"),
        ([("user", "a"), ("assistant", "b")], "nothing to answer"),
        ([("user", " \n")], "message 0 is empty"),
        ([("user", "\ufdd0")], "the prompt cannot be used, since a text has noncharacters .*; remove them"),
    ],
)
def test_chats_that_no_template_can_put_are_refused(encoder, messages, problem):
    with pytest.raises(UserError, match=problem):
        encoder.chat([Message(*message) for message in messages])


def test_raw_prompts_are_the_same_ids_for_all(encoder):
    first, second, third = encoder.raw("def add(a, b):", 3)
    assert first == second == third == tuple(encoder.tokenizer("def add(a, b):").input_ids)
    assert first[0] == 1  # BOS
    assert encoder.raw("<s>def add(a, b):", 3)[0] == first  # not twice
    with pytest.raises(UserError, match="empty"):
        encoder.raw_ids([], 3)
    with pytest.raises(UserError, match=f"token {SHARED_VOCABULARY}, outside the {SHARED_VOCABULARY}"):
        encoder.raw_ids([5, SHARED_VOCABULARY], 3)


def test_a_raw_prompt_does_not_end_in_what_a_tokenizer_appends(tmp_path):
    tokenizer = make_tokenizer(tmp_path)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", END)]
    )
    assert tokenizer("The fox").input_ids[-1] == END
    encoder = PromptEncoder(
        {"one": tokenizer}, ["alpaca"], shared_vocabulary=SHARED_VOCABULARY, end_id=END, rows=[SHARED_VOCABULARY]
    )
    assert encoder.raw("The fox", 1) == (tuple(tokenizer("The fox").input_ids[:-1]),)


def test_a_long_chat_is_refused_before_every_turn_is_rendered(tmp_path, monkeypatch):
    """Each would be rendered with all before it: the work grows with the square of the turns."""
    tokenizer = make_tokenizer(tmp_path)
    tokenizer.chat_template = (
        "{% for message in messages %}{% if message.role == 'user' %}[INST] {{ message.content }} [/INST]"
        "{% else %} {{ message.content | trim }} {{ eos_token }}{% endif %}{% endfor %}"
    )
    encoder = PromptEncoder(
        {"a": tokenizer}, ["hf"], shared_vocabulary=SHARED_VOCABULARY, end_id=END, rows=[len(tokenizer)]
    )
    chat = [Message(role, "fox") for _ in range(40) for role in ("user", "assistant")][:-1]
    ids = encoder.chat(chat)
    length = len(
        tokenizer(encoder._encoder.templates[0].whole(_turns(chat)[1], None), add_special_tokens=False).input_ids
    )
    assert encoder.chat(chat, length) == ids
    rendered = []
    render = ChatTemplate._render
    monkeypatch.setattr(ChatTemplate, "_render", lambda *own: rendered.append(1) or render(*own))
    with pytest.raises(ContextLengthError, match=f"have {length} tokens, but the context has {length - 1}; leave the"):
        encoder.chat(chat, length - 1)
    assert len(rendered) == 1
