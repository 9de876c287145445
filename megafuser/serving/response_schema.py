"""The bodies of responses, from which all answers are built; the server's OpenAPI document shows all but the chunks.

The order of the fields is that of the keys. A field without a default is in every answer, null where it is None; who
builds an answer without it fails. A field with a default is in an answer only where its builder sets it. The bodies of
requests are `serving.request_schema`.
"""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

FinishReason = Literal["stop", "length"]


class ResponseBody(BaseModel):
    """What all bodies, and all parts of them, are."""

    model_config = ConfigDict(extra="forbid")

    def sent(self) -> dict[str, Any]:
        """As it goes to the client, without the fields that were not set."""
        # not to JSON: pydantic would make null of an infinity, which must not pass for an answer
        return self.model_dump(exclude_unset=True)


class ErrorDetail(ResponseBody):
    """What went wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorAnswer(ResponseBody):
    """Every answer that is not a success."""

    error: ErrorDetail


class ModelCard(ResponseBody):
    """The model."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str


class ModelList(ResponseBody):
    """The models, which is one."""

    object: Literal["list"]
    data: list[ModelCard]


class Health(ResponseBody):
    """Whether the server takes requests."""

    status: Literal["ok"]


class Usage(ResponseBody):
    """Numbers of tokens."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class Gate(ResponseBody):
    """The gate's weights of each token, a row a token; null where a token was not predicted."""

    specialists: list[str]
    weights: list[list[float] | None]


class CompletionLogprobs(ResponseBody):
    """A list entry for each token."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CompletionChoice(ResponseBody):
    """One completion."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: FinishReason | None
    gate: Gate | None = None


class Completion(ResponseBody):
    """The answer to `/v1/completions`."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage


class CompletionChunk(ResponseBody):
    """An event of a stream of completions: what is new of one, or at the end the numbers of tokens and no choice."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage | None = None


class TopLogprob(ResponseBody):
    """A token and the natural logarithm of its probability."""

    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(TopLogprob):
    """The token that was chosen, and the most probable ones."""

    top_logprobs: list[TopLogprob]


class ChatLogprobs(ResponseBody):
    """Of every token of the message."""

    content: list[TokenLogprob]
    refusal: None


class Answer(ResponseBody):
    """The message."""

    role: Literal["assistant"]
    content: str
    refusal: None


class ChatChoice(ResponseBody):
    """One message."""

    index: int
    message: Answer
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason | None
    gate: Gate | None = None


class ChatCompletion(ResponseBody):
    """The answer to `/v1/chat/completions`."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage


class Delta(ResponseBody):
    """What is new of a message: at first who speaks, then text, at last nothing."""

    role: Literal["assistant"] | None = None
    content: str | None = None


class ChatPiece(ResponseBody):
    """A part of one message."""

    index: int
    delta: Delta
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason | None
    gate: Gate | None = None


class ChatChunk(ResponseBody):
    """An event of a stream of messages: parts of them, or at the end the numbers of tokens and no part."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    choices: list[ChatPiece]
    usage: Usage | None = None
