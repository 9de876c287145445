"""Built-in prompt templates: how a specialist wants an instruction to be put. A new one is a class here.

Sources of the forms: paper, Templates (ultralm, codellama, alpaca); Llama 2's `<<SYS>>` system form for codellama;
OpenAI's ChatML. No prompt ends in a space, since the response is tokenized by itself: SentencePiece's tokenizers (Llama
2, for which ultralm and codellama were made) put a blank before it, as in `Assistant: Hello`. Byte-level BPE (Llama 3,
Qwen) puts none: there these two give `Assistant:Hello` and `[/INST]Hello`.

A user's own templates, and those of tokenizers, are applied in `data.templates`.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

ALPACA_PREAMBLE = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request."
)


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
            megafuser.data.templates.TemplateRefusal: the template cannot put this chat.
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


BUILT_IN: dict[str, type[Template]] = {
    "ultralm": UltraLM,
    "codellama": CodeLlama,
    "alpaca": Alpaca,
    "chatml": ChatML,
    "plain": Plain,
}
"""By the name that a configuration gives."""
