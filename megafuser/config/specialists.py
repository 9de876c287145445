"""The section `specialists`: names, checkpoints, templates.

What the checkpoints are is found by `checkpoint.specialist_sources`; each one's template is made in `data.templates`.
"""

from dataclasses import dataclass

from megafuser.config.builtin_templates import BUILT_IN
from megafuser.config.values import InvalidValue, Strict, nearest, not_empty, safe_name

# `hf` is the tokenizer's own chat template.
BUILT_IN_TEMPLATES = (*BUILT_IN, "hf")


@dataclass(frozen=True)
class TemplateConfig(Strict):
    """A prompt template of the user's own.

    Attributes:
        prompt: Jinja text over `instruction` and `system`.
    """

    prompt: str

    def __post_init__(self) -> None:
        """Refuses an empty prompt."""
        not_empty("prompt", self.prompt)


def template_problem(name: str) -> str | None:
    """Why no specialist can have a template of this name; None for a built-in one's."""
    if name in BUILT_IN_TEMPLATES:
        return None
    hint, known = nearest(name, BUILT_IN_TEMPLATES, otherwise="choose another"), ", ".join(BUILT_IN_TEMPLATES)
    problem = f"no template {name!r}; {hint}; built in are {known}; or give a mapping with `prompt`"
    return problem


@dataclass(frozen=True)
class SpecialistConfig(Strict):
    """One finished model.

    Attributes:
        name: its name in metrics, reports and files.
        checkpoint: directory of its converted checkpoint.
        template: a built-in template's name, or a template.
    """

    name: str
    checkpoint: str
    template: str | TemplateConfig

    def __post_init__(self) -> None:
        """Refuses unsafe names and unknown templates."""
        safe_name("name", self.name)
        not_empty("checkpoint", self.checkpoint)
        if isinstance(self.template, str) and (problem := template_problem(self.template)):
            raise InvalidValue("template", problem)
