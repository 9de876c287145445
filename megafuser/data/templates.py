"""Prompt templates: how each specialist wants an instruction to be put.

Sources of the built-in forms: paper, Templates (ultralm, codellama, alpaca); Llama 2's `<<SYS>>` system form for
codellama; OpenAI's ChatML. No prompt ends in a space: the response is tokenized by itself and brings its own.
"""

import difflib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jinja2
import jinja2.meta
import jinja2.sandbox

from megafuser.config.schema import TemplateConfig
from megafuser.errors import UserError

ALPACA_PREAMBLE = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request."
)


class TemplateRefusal(Exception):
    """A chat that a template cannot put; the sample is refused and counted under this reason."""


class Template(ABC):
    """One specialist's way to put an instruction.

    Attributes:
        repeats_bos: whether a BOS that the template writes before a later turn stays there. Our own forms and Jinja
            prompts know nothing of earlier turns, so theirs goes; a tokenizer's own chat template knows what it does.
    """

    repeats_bos = False

    @abstractmethod
    def turn(self, instruction: str, system: str | None, first: bool) -> str:
        """The prompt of one user turn; the system prompt comes with the first turn only."""

    def prompts(self, turns: Sequence[tuple[str, str]], system: str | None, end_text: str) -> list[str]:
        """The prompts of a chat, one per (instruction, response).

        Between two of them stand the response and the end id, which the tokenization writes.

        Args:
            turns: (instruction, response) pairs.
            system: system prompt, if any.
            end_text: text of the end id, for templates that write it themselves after a response.

        Raises:
            TemplateRefusal: the template cannot put this chat.
        """
        return [
            self.turn(instruction, system if index == 0 else None, index == 0)
            for index, (instruction, _) in enumerate(turns)
        ]


@dataclass(frozen=True)
class UltraLM(Template):
    """UltraLM: `User: …` and `Assistant:` on lines of their own."""

    def turn(self, instruction: str, system: str | None, first: bool) -> str:
        """See `Template.turn`."""
        preface = f"{system}\n" if system else ""
        return f"{preface}User: {instruction}\nAssistant:"


@dataclass(frozen=True)
class CodeLlama(Template):
    """CodeLlama-instruct, the form of Llama 2; its BOS comes from the tokenizer."""

    def turn(self, instruction: str, system: str | None, first: bool) -> str:
        """See `Template.turn`."""
        preface = f"<<SYS>>\n{system}\n<</SYS>>\n\n" if system else ""
        return f"[INST] {preface}{instruction} [/INST]"


@dataclass(frozen=True)
class Alpaca(Template):
    """WizardMath's form; a system prompt takes the place of Alpaca's preamble."""

    def turn(self, instruction: str, system: str | None, first: bool) -> str:
        """See `Template.turn`."""
        return f"{system or ALPACA_PREAMBLE}\n\n### Instruction:\n{instruction}\n\n### Response:"


@dataclass(frozen=True)
class ChatML(Template):
    """ChatML; a later turn begins with the line break that follows the end of the response before it."""

    def turn(self, instruction: str, system: str | None, first: bool) -> str:
        """See `Template.turn`."""
        preface = f"<|im_start|>system\n{system}<|im_end|>\n" if system else ""
        start = "" if first else "\n"
        return f"{start}{preface}<|im_start|>user\n{instruction}<|im_end|>\n<|im_start|>assistant\n"


@dataclass(frozen=True)
class Plain(Template):
    """The instruction alone, without a system prompt."""

    def turn(self, instruction: str, system: str | None, first: bool) -> str:
        """See `Template.turn`."""
        return instruction


class JinjaTemplate(Template):
    """A prompt of the user's: Jinja in a sandbox, with `instruction` and `system` (empty where there is none)."""

    def __init__(self, prompt: str):
        """Compiles the prompt and tries it.

        Raises:
            UserError: it is no Jinja, uses another variable, leaves the instruction out, or fails on the trial.
        """
        environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
            undefined=jinja2.StrictUndefined, keep_trailing_newline=True
        )
        try:
            names = jinja2.meta.find_undeclared_variables(environment.parse(prompt))
            self._template = environment.from_string(prompt)
        except (jinja2.TemplateError, RecursionError) as error:
            raise UserError(f"template prompt {prompt!r} is no Jinja: {_one_line(error)}; correct it") from None
        unknown = sorted(names - {"instruction", "system"} - set(environment.globals))
        if unknown:
            raise UserError(f"template prompt {prompt!r} uses {unknown[0]!r}; it has `instruction` and `system`")
        if "instruction" not in names:
            raise UserError(f"template prompt {prompt!r} leaves the instruction out; write {{{{ instruction }}}} in it")
        self._prompt = prompt
        try:
            self.turn("instruction", "system", True)
            self.turn("instruction", None, False)
        except TemplateRefusal as error:
            raise UserError(f"{error}; correct it") from error

    def turn(self, instruction: str, system: str | None, first: bool) -> str:
        """See `Template.turn`."""
        try:
            return self._template.render(instruction=instruction, system=system or "")
        except Exception as error:
            # A template is the user's program: whatever it raises is the user's to mend.
            raise TemplateRefusal(f"template prompt {self._prompt!r} fails: {_one_line(error)}") from error


class ChatTemplate(Template):
    """The chat template that a tokenizer brings along (`hf`), with its generation prompt."""

    repeats_bos = True

    def __init__(self, tokenizer: Any):
        """Takes the tokenizer's template and tries it.

        Raises:
            UserError: the tokenizer has none, or it does not render one user message.
        """
        if not getattr(tokenizer, "chat_template", None):
            raise UserError("template 'hf': the tokenizer has no chat template; choose another template")
        self._tokenizer = tokenizer
        try:
            self.turn("instruction", None, True)
        except TemplateRefusal as error:
            raise UserError(f"template 'hf': {error}; choose another template") from error

    def turn(self, instruction: str, system: str | None, first: bool) -> str:
        """See `Template.turn`."""
        return self._render(_messages([], system, instruction))

    def prompts(self, turns: Sequence[tuple[str, str]], system: str | None, end_text: str) -> list[str]:
        """See `Template.prompts`: a later turn is what its rendering adds to the one before, less the response."""
        rendered = [
            self._render(_messages(turns[:index], system, instruction)) for index, (instruction, _) in enumerate(turns)
        ]
        later = [
            _after_response(before, after, response, end_text)
            for before, after, (_, response) in zip(rendered, rendered[1:], turns, strict=False)
        ]
        return [rendered[0], *later]

    def _render(self, messages: list[dict[str, str]]) -> str:
        try:
            text: str = self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
            return text
        except Exception as error:
            # Chat templates refuse what they do not know, a system prompt say, by raising from within.
            raise TemplateRefusal(f"the chat template fails ({_one_line(error)})") from error


def get_template(spec: str | TemplateConfig, tokenizer: Any) -> Template:
    """The template of a specialist's configuration.

    Args:
        spec: a built-in name, or a mapping with a Jinja `prompt`.
        tokenizer: the specialist's tokenizer, whose chat template `hf` uses.

    Raises:
        UserError: an unknown name or a template that does not work.
    """
    if not isinstance(spec, str):
        return JinjaTemplate(spec.prompt)
    if spec == "hf":
        return ChatTemplate(tokenizer)
    if spec not in _BUILT_IN:
        known = [*_BUILT_IN, "hf"]
        near = difflib.get_close_matches(spec, known, n=1, cutoff=0.0)[0]
        raise UserError(f"unknown template {spec!r}; did you mean {near!r}? (known: {', '.join(known)})")
    return _BUILT_IN[spec]()


_BUILT_IN: dict[str, type[Template]] = {
    "ultralm": UltraLM,
    "codellama": CodeLlama,
    "alpaca": Alpaca,
    "chatml": ChatML,
    "plain": Plain,
}


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())


def _messages(turns: Sequence[tuple[str, str]], system: str | None, instruction: str) -> list[dict[str, str]]:
    messages = [{"role": "system", "content": system}] if system else []
    for user, assistant in turns:
        messages += [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]
    return [*messages, {"role": "user", "content": instruction}]


def _after_response(before: str, after: str, response: str, end_text: str) -> str:
    """What `after` adds to `before` behind the response and, where the template writes it, the end token."""
    # Chat templates may trim a response or put a space in front of it: compare without the blanks around it.
    added = after.removeprefix(before).lstrip()
    response = response.strip()
    if not after.startswith(before) or not added.startswith(response):
        raise TemplateRefusal("the chat template rewrites earlier turns")
    rest = added[len(response) :]
    ended = rest.lstrip()
    return ended[len(end_text) :] if ended.startswith(end_text) else rest
