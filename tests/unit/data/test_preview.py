"""Samples as a person reads them: marks around what is trained on, control tokens told from text."""

import shutil
from pathlib import Path

import mistral_common
import numpy as np
import pytest
from transformers import AutoTokenizer

from megafuser.data.preview import PLAIN, TERMINAL, control_ids, runs, show, visible
from megafuser.data.sources.samples import Sample
from megafuser.data.tokenization import EncoderSpec
from tests.small_domain import tokenize_domain
from tests.tiny_models import make_tokenizer

CHAT = Sample((("what is\n2 + 2?", "It is 4."), ("and 3?", "  Seven <s \x1b[31m")), "Be brief.", "chat-1")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return make_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def pieces(tmp_path_factory):
    """The real 32,000 pieces of mistral-common, whose tokenizer drops and puts back leading blanks."""
    directory = tmp_path_factory.mktemp("pieces")
    shutil.copyfile(Path(mistral_common.__file__).parent / "data" / "tokenizer.model.v1", directory / "tokenizer.model")
    (directory / "config.json").write_text('{"model_type": "llama"}')
    return AutoTokenizer.from_pretrained(directory)


def domain_of(samples, tokenizer, *templates):
    spec = EncoderSpec(templates, tokenizer.eos_token_id, len(tokenizer), 512, (len(tokenizer),) * len(templates))
    return tokenize_domain("text", samples, spec, [tokenizer] * len(templates))


def shown(domain, tokenizer, names, **options):
    return list(show(domain, 0, [tokenizer] * len(names), names, **options))


def test_every_view_is_shown_with_its_trained_turns_marked(tokenizer):
    sample = Sample((("what is\n2 + 2?", "It is 4."), ("and 3?", "Seven.")), "Be brief.", "chat-1")
    domain = domain_of([sample], tokenizer, "ultralm", "codellama")
    count = len(tokenizer("It is 4.Seven.", add_special_tokens=False).input_ids) + 2
    assert shown(domain, tokenizer, ["text", "code"]) == [
        f"── text: chat-1: {count} trained tokens",
        f"text, {domain.lengths[0, 0]} tokens:",
        "⟨<s>⟩Be brief.",
        "User: what is",
        "2 + 2?",
        "Assistant:⟦It is 4.⟨</s>⟩⟧User: and 3?",
        "Assistant:⟦Seven.⟨</s>⟩⟧",
        "",
        f"code, {domain.lengths[0, 1]} tokens:",
        *_codellama(domain, tokenizer),
        "",
    ]


def _codellama(domain, tokenizer):
    """What the tokenizer itself says of the view, with marks put around the two responses."""
    text = tokenizer.decode(domain.view(0, 1)[0].tolist(), clean_up_tokenization_spaces=False)
    for response in ("It is 4.", "Seven."):
        assert text.count(response + "</s>") == 1
        text = text.replace(response + "</s>", f"⟦{response}⟨</s>⟩⟧")
    return text.replace("<s>", "⟨<s>⟩").split("\n")


@pytest.mark.parametrize("which", ["tokenizer", "pieces"])
def test_runs_hold_every_token_once_and_join_to_the_whole_text(which, request):
    tokenizer = request.getfixturevalue(which)
    domain = domain_of([CHAT], tokenizer, "ultralm")
    ids, positions = domain.view(0, 0)
    trained = np.zeros(len(ids), dtype=bool)
    trained[positions + 1] = True
    found = runs(tokenizer, ids.tolist(), trained)
    assert [token for run in found for token in run.ids] == ids.tolist()
    assert "".join(run.text for run in found) == tokenizer.decode(ids.tolist(), clean_up_tokenization_spaces=False)
    assert [token for run in found if run.trained for token in run.ids] == domain.targets(0).tolist()
    assert all(len(run.ids) == 1 and run.ids[0] in control_ids(tokenizer) for run in found if run.control)
    assert [run.ids for run in found if run.control and run.trained] == [[tokenizer.eos_token_id]] * 2


def test_a_control_token_written_out_as_text_has_no_marks(tokenizer):
    """Here as pieces of text, whatever the data's tokenization makes of it."""
    end = [tokenizer.eos_token_id]
    spelt = [token for part in ("</", "s>") for token in tokenizer(part, add_special_tokens=False).input_ids]
    found = runs(tokenizer, spelt + end, np.array([False] * len(spelt) + [True]))
    assert [(run.text, run.control) for run in found] == [("</s>", False), ("</s>", True)]


def test_data_cannot_steer_a_terminal(tokenizer):
    assert visible("a\x1b[31m\x07\x7f\x9b\n\tä") == "a␛[31m␇␡\\x9b\n\tä"
    domain = domain_of([Sample((("q", "a\x1b[2Jb"),), None, "x")], tokenizer, "plain")
    plain = "\n".join(shown(domain, tokenizer, ["text"]))
    assert "\x1b" not in plain and "␛[2J" in plain


def test_marks_of_a_terminal_are_closed_again(tokenizer):
    domain = domain_of([Sample((("q", "a"),), None, "x")], tokenizer, "plain")
    text = "\n".join(shown(domain, tokenizer, ["text"], style=TERMINAL))
    assert "\x1b[32;4ma\x1b[7m</s>\x1b[27m\x1b[0m" in text and text.count("\x1b[7m") == text.count("\x1b[27m") == 2
    assert "⟦" not in text
    assert TERMINAL.legend.startswith("\x1b[32;4mtrained\x1b[0m:") and PLAIN.legend.startswith("⟦trained⟧:")


def test_ids_are_listed_with_the_tokenizers_own_names(tokenizer):
    domain = domain_of([Sample((("is it", "The sum"),), None, "x")], tokenizer, "plain")
    lines = shown(domain, tokenizer, ["text"], ids=True)[2:]
    listed = [token for line in lines for token in line.strip(" ⟦⟧⟨⟩").split(" ") if token]
    ids = domain.view(0, 0)[0].tolist()
    expected = [f"{token}:{tokenizer.convert_ids_to_tokens(token)}" for token in ids]
    assert listed == expected
    assert [line for line in lines if "⟦" in line][-1] == "  ⟦⟨2:</s>⟩⟧"
