"""The prompt template of a specialist: a built-in one (`megafuser.config.builtin_templates`), a Jinja prompt of the
user's own, or the tokenizer's chat template.

Nothing is tokenized here: `data.tokenization` does that.
"""

import datetime
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
import jinja2.meta
import jinja2.sandbox

from megafuser.config.builtin_templates import BUILT_IN, Template
from megafuser.config.specialists import TemplateConfig, template_problem
from megafuser.errors import UserError, in_one_line

# What a chat template that asks for the date gets, so that a prompt's ids do not depend on the day; the date that those
# of Llama 3.1 to 3.3 have where there is no clock.
CHAT_DATE = datetime.datetime(2024, 7, 26, tzinfo=datetime.UTC)
_CLOCK = "strftime_now"
_DIRECTIVES = ("%-d", "%-m", "%-H", "%-I", "%-j", *(f"%{letter}" for letter in "aAbBcdDeFGHIjmMpRSTuUVwWxXyYzZ"), "%%")


class TemplateRefusal(Exception):
    """A chat that a template cannot put; the sample is refused and counted under this reason."""


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
            raise UserError(f"template prompt {prompt!r} is no Jinja: {in_one_line(error)}; correct it") from None
        unknown = sorted(names - {"instruction", "system"} - set(environment.globals))
        if unknown:
            raise UserError(f"template prompt {prompt!r} uses {unknown[0]!r}; use `instruction` and `system`")
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
            raise TemplateRefusal(f"template prompt {self._prompt!r} fails: {in_one_line(error)}") from error


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
        self._dated = _with_fixed_date(tokenizer.chat_template)
        try:
            self.turn("instruction", None, True)
        except TemplateRefusal as error:
            raise UserError(f"template 'hf': {error}; choose another template") from error

    def turn(self, instruction: str, system: str | None, first: bool) -> str:
        """See `Template.turn`."""
        return self._render(_messages([], system, instruction))

    def whole(self, turns: Sequence[tuple[str, str]], system: str | None) -> str:
        """The last turn's rendering, in which all before it are; see `Template.prompts`."""
        return self._render(_messages(turns[:-1], system, turns[-1][0]))

    def prompts(self, turns: Sequence[tuple[str, str]], system: str | None, end_text: str) -> list[str]:
        """See `Template.prompts`: a later turn is what its rendering adds to the one before, less the response."""
        found: list[str] = []
        before = ""
        for index, (instruction, _) in enumerate(turns):
            after = self._render(_messages(turns[:index], system, instruction))
            found.append(_after_response(before, after, turns[index - 1][1], end_text) if index else after)
            before = after  # only the last is kept: each has all turns before it
        return found

    def _render(self, messages: list[dict[str, str]]) -> str:
        try:
            text: str = self._tokenizer.apply_chat_template(
                messages, chat_template=self._dated, tokenize=False, add_generation_prompt=True
            )
            return text
        except Exception as error:
            # Chat templates refuse what they do not know, a system prompt say, by raising from within.
            raise TemplateRefusal(f"the chat template fails ({in_one_line(error)})") from error


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
    if problem := template_problem(spec):
        raise UserError(problem)
    return BUILT_IN[spec]()


def asks_for_the_date(spec: str | TemplateConfig, tokenizer: Any) -> bool:
    """Whether a specialist's prompts may have `CHAT_DATE` in them: its tokenizer's chat template asks for the date."""
    return spec == "hf" and _with_fixed_date(getattr(tokenizer, "chat_template", None)) is not None


def _with_fixed_date(chat_template: Any) -> str | None:
    """A chat template whose clock stands still; None where it has none, so that it is used as it is."""
    # of several, the one that transformers takes for chats without tools
    text = chat_template.get("default") if isinstance(chat_template, Mapping) else chat_template
    if not isinstance(text, str) or _CLOCK not in text:
        return None
    filters = "".join(f" | replace({one!r}, {CHAT_DATE.strftime(one)!r})" for one in _DIRECTIVES)
    # A macro, since transformers gives templates no functions of ours; its environment drops the line break behind it.
    return f"{{%- macro {_CLOCK}(format) -%}}{{{{ format{filters} }}}}{{%- endmacro %}}\n{text}"


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
