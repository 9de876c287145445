"""The bodies of responses, for the server's OpenAPI document."""

from typing import Literal

from pydantic import BaseModel, ConfigDict

Finish = Literal["stop", "length"]


class _Answer(BaseModel):
    model_config = ConfigDict(extra="forbid")


class ErrorDetail(_Answer):
    """What went wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorAnswer(_Answer):
    """Every answer that is not a success."""

    error: ErrorDetail


class ModelCard(_Answer):
    """The model."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str


class ModelList(_Answer):
    """The models, which is one."""

    object: Literal["list"]
    data: list[ModelCard]


class Health(_Answer):
    """Whether the server takes requests."""

    status: Literal["ok"]


class Usage(_Answer):
    """Numbers of tokens."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class Gate(_Answer):
    """The gate's weights of each token, a row a token; null where a token was not predicted."""

    specialists: list[str]
    weights: list[list[float] | None]


class CompletionLogprobs(_Answer):
    """A list entry for each token."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CompletionChoice(_Answer):
    """One completion."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: Finish | None
    gate: Gate | None = None


class Completion(_Answer):
    """The answer to `/v1/completions`."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage


class TopLogprob(_Answer):
    """A token and the natural logarithm of its probability."""

    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(TopLogprob):
    """The token that was chosen, and the most probable ones."""

    top_logprobs: list[TopLogprob]


class ChatLogprobs(_Answer):
    """Of every token of the message."""

    content: list[TokenLogprob]
    refusal: None = None


class Answer(_Answer):
    """The message."""

    role: Literal["assistant"]
    content: str
    refusal: None = None


class ChatChoice(_Answer):
    """One message."""

    index: int
    message: Answer
    logprobs: ChatLogprobs | None
    finish_reason: Finish | None
    gate: Gate | None = None


class ChatCompletion(_Answer):
    """The answer to `/v1/chat/completions`."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
