"""The bodies of requests, as OpenAI's API has them; whatever is not here is refused by name.

Reading them from bytes is `serving.body_parsing`; answers are `serving.response_schema`.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat

from megafuser.errors import UserError
from megafuser.inference.sampling import SamplingParameters
from megafuser.serving.errors import invalid

MOST_LOGPROBS = 20
MOST_CHOICES = 128
MOST_STOPS = 32
_LARGEST = 2**63 - 1

TokenId = Annotated[int, Field(ge=0, le=_LARGEST)]
Stop = Annotated[str, Field(min_length=1, max_length=1000)]
Ids = Annotated[list[TokenId], Field(min_length=1, fail_fast=True)]
Nothing = Annotated[dict[str, Any], Field(max_length=0)] | Annotated[list[Any], Field(max_length=0)] | None


class _Strict(BaseModel):
    """Nothing is converted, and nothing that has no meaning here is taken."""

    model_config = ConfigDict(extra="forbid", strict=True)


class StreamOptions(_Strict):
    """How a stream ends."""

    include_usage: bool | None = Field(None, description="A last chunk with `usage` and no choices.")
    include_obfuscation: Literal[False] | None = None


class SamplingBody(_Strict):
    """What both forms of requests share."""

    model: str | None = Field(None, description="The model's name; where it is absent, the one that is served.")
    temperature: FiniteFloat | None = Field(None, ge=0, description="0 is greedy; 1 where absent.")
    top_p: FiniteFloat | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=0, le=_LARGEST, description="0: all.")
    repetition_penalty: FiniteFloat | None = Field(None, gt=0)
    frequency_penalty: FiniteFloat | None = Field(None, ge=-2, le=2)
    presence_penalty: FiniteFloat | None = Field(None, ge=-2, le=2)
    seed: int | None = Field(None, ge=0, le=_LARGEST, description="Where absent, a new one for each request.")
    n: int | None = Field(None, ge=1, le=MOST_CHOICES, description="Choices for each prompt.")
    stop: Stop | Annotated[list[Stop], Field(max_length=MOST_STOPS)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = Field(None, description="Ignored.")
    logit_bias: Nothing = Field(None, description="Must be empty.")
    gate: bool | None = Field(None, description="Of our own: the gate's weights with every token.")

    def sampling(self, seed: int) -> SamplingParameters:
        """The parameters, with OpenAI's defaults.

        Raises:
            ApiError: they cannot be.
        """

        def given(value: float | None, default: float) -> float:
            return default if value is None else value

        try:
            return SamplingParameters(
                temperature=given(self.temperature, 1.0),
                top_p=given(self.top_p, 1.0),
                top_k=self.top_k or 0,
                repetition_penalty=given(self.repetition_penalty, 1.0),
                frequency_penalty=given(self.frequency_penalty, 0.0),
                presence_penalty=given(self.presence_penalty, 0.0),
                seed=seed,
            )
        except UserError as error:
            raise invalid(str(error), code="invalid_value") from None

    @property
    def stops(self) -> tuple[str, ...]:
        """`stop` as a list."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())


# the first mistake is enough: a body may have a hundred thousand
Prompt = (
    Annotated[str, Field(min_length=1)]
    | Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=1, fail_fast=True)]
    | Ids
    | Annotated[list[Ids], Field(min_length=1, fail_fast=True)]
)


class CompletionBody(SamplingBody):
    """`POST /v1/completions`: the same ids to all specialists, without a template."""

    prompt: Prompt = Field(description="A text, ids, or several of either.")
    max_tokens: int | None = Field(None, ge=0, le=_LARGEST, description="16 where absent; 0 only with `echo`.")
    best_of: int | None = Field(None, ge=1, le=MOST_CHOICES, description="Must equal `n`.")
    echo: bool | None = Field(None, description="Also give the prompt, with `logprobs` its tokens' too.")
    logprobs: int | None = Field(None, ge=0, le=MOST_LOGPROBS)
    suffix: Literal[""] | None = None


class TextPart(_Strict):
    """A part of a message."""

    type: Literal["text"]
    text: str


class ChatMessage(_Strict):
    """One message."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[TextPart], Field(fail_fast=True)]
    name: str | None = Field(None, description="Ignored.")
    refusal: None = None

    @property
    def text(self) -> str:
        """The content in one piece."""
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class TextFormat(_Strict):
    """The only form of an answer."""

    type: Literal["text"]


class ChatBody(SamplingBody):
    """`POST /v1/chat/completions`: each specialist reads the messages through its own template."""

    messages: list[ChatMessage] = Field(min_length=1, fail_fast=True)
    max_tokens: int | None = Field(None, ge=1, le=_LARGEST, description="What the context has room for, where absent.")
    max_completion_tokens: int | None = Field(None, ge=1, le=_LARGEST, description="The newer name of `max_tokens`.")
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MOST_LOGPROBS, description="Only with `logprobs`.")
    tools: Nothing = Field(None, description="Must be empty.")
    functions: Nothing = Field(None, description="Must be empty.")
    tool_choice: Literal["none", "auto"] | None = None
    response_format: TextFormat | None = None
    modalities: list[Literal["text"]] | None = None
    metadata: dict[str, str] | None = Field(None, description="Ignored.")
    store: Literal[False] | None = None
