"""The routes, and the document that describes them.

Chats and completions are answered by `serving.chat` and `serving.completions`; the server is `serving.server`.
"""

from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.exceptions import HTTPException
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from megafuser import __version__
from megafuser.serving.chat import answer_chat
from megafuser.serving.completions import answer_completions
from megafuser.serving.errors import ApiError, failed
from megafuser.serving.guard import Guard
from megafuser.serving.metrics import CONTENT_TYPE
from megafuser.serving.page import Page
from megafuser.serving.request_schema import ChatBody, CompletionBody
from megafuser.serving.response_schema import ChatCompletion, Completion, ErrorAnswer, Health, ModelCard, ModelList
from megafuser.serving.service import Service

_BODIES: tuple[type[BaseModel], ...] = (CompletionBody, ChatBody)
_DESCRIPTION = "A fused model. Every error is an object `error` with `message`, `type`, `param` and `code`."
_PROBLEMS = {
    400: "Something in the request is wrong.",
    401: "A wrong key, or none.",
    408: "The body did not come in time.",
    413: "The body is too large.",
    503: "The server is shutting down.",
}
_WORK_PROBLEMS = {
    404: "Another model's name.",
    429: "The queue is full; `Retry-After` says when to come again.",
    500: "A mistake of the server's.",
    504: "It took too long.",
}
# of a stream: before OpenAPI 3.2 a schema there describes each event
_EVENT = {
    "type": "object",
    "required": ["data"],
    "properties": {"data": {"type": "string", "description": "A piece of the answer, JSON; at the end `[DONE]`."}},
}


def build_app(service: Service) -> Guard:
    """The whole application."""
    app = FastAPI(
        title="megafuser", version=__version__, description=_DESCRIPTION, docs_url=None, redoc_url=None,
        openapi_tags=[], redirect_slashes=False,
    )  # fmt: skip
    app.add_exception_handler(ApiError, _api_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Exception, _mistake)
    _add_models(app, service)
    _add_work(app, "/v1/completions", service, answer_completions, CompletionBody, Completion, "Continue prompts")
    _add_work(app, "/v1/chat/completions", service, answer_chat, ChatBody, ChatCompletion, "Answer a chat")
    _add_plain(app, service)
    document = app.openapi

    def with_bodies() -> dict[str, Any]:
        found = document()
        _, bodies = models_json_schema(
            [(body, "validation") for body in _BODIES], ref_template="#/components/schemas/{model}"
        )
        found["components"]["schemas"] |= bodies["$defs"]
        found["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        return found

    app.openapi = with_bodies  # type: ignore[method-assign]
    max_bytes = int(service.settings.max_body_mib * 2**20)
    return Guard(app, metrics=service.metrics, api_key=service.settings.api_key, max_body_bytes=max_bytes)


def _problems(texts: dict[int, str]) -> dict[int | str, dict[str, Any]]:
    return {status: {"model": ErrorAnswer, "description": text} for status, text in texts.items()}


def _add_models(app: FastAPI, service: Service) -> None:
    def card() -> ModelCard:
        return ModelCard(id=service.name, object="model", created=service.started, owned_by="megafuser")

    secured: dict[str, Any] = {"security": [{"key": []}]}

    @app.get(
        "/v1/models", response_model=ModelList, responses=_problems(_PROBLEMS), summary="List the model",
        openapi_extra=secured,
    )  # fmt: skip
    async def models() -> JSONResponse:
        return JSONResponse(ModelList(object="list", data=[card()]).sent())

    @app.get(
        "/v1/models/{model:path}", response_model=ModelCard,
        responses=_problems(_PROBLEMS | {404: _WORK_PROBLEMS[404]}), summary="The model", openapi_extra=secured,
    )  # fmt: skip
    async def model(model: str) -> JSONResponse:
        service.check_model(model)
        return JSONResponse(card().sent())


def _add_work(
    app: FastAPI,
    path: str,
    service: Service,
    answer: Callable[[Service, HttpRequest], Awaitable[Response]],
    body: type[BaseModel],
    answered: type[BaseModel],
    summary: str,
) -> None:
    schema = {"$ref": f"#/components/schemas/{body.__name__}"}
    extra = {
        "requestBody": {"required": True, "content": {"application/json": {"schema": schema}}},
        "security": [{"key": []}],
    }
    responses = _problems(_PROBLEMS | _WORK_PROBLEMS)
    responses[200] = {
        "description": "The answer; with `stream` its pieces, each with the same `id`.",
        "content": {"text/event-stream": {"schema": _EVENT}},
    }

    @app.post(
        path, response_model=answered, responses=responses, summary=summary, openapi_extra=extra,
        operation_id=body.__name__,
    )  # fmt: skip
    async def work(request: HttpRequest) -> Response:
        return await answer(service, request)


def _add_plain(app: FastAPI, service: Service) -> None:
    page = Page(len(service.model.specialists))
    problems = _problems({status: _PROBLEMS[status] for status in (408, 413)})

    @app.get("/health", response_model=Health, responses=problems | _problems({503: _PROBLEMS[503]}), summary="Health")
    async def health() -> JSONResponse:
        if service.engine.failure is not None:
            raise failed(503)
        return JSONResponse(Health(status="ok").sent())

    @app.get("/metrics", response_class=Response, summary="Prometheus metrics", responses={
        200: {"content": {"text/plain": {"schema": {"type": "string"}}}}, **problems,
    })  # fmt: skip
    async def metrics() -> Response:
        return Response(service.metrics.text(), headers={"Content-Type": CONTENT_TYPE})

    @app.get("/", include_in_schema=False)
    async def root() -> Response:
        return page.response()


async def _api_error(_: HttpRequest, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return error.response()


async def _http_error(request: HttpRequest, error: Exception) -> Response:
    """An unknown path or a wrong method."""
    assert isinstance(error, HTTPException)
    text = {
        404: f"no {request.url.path[:200]!r} here; see /openapi.json",
        405: f"{request.method} is not for {request.url.path[:200]!r}; see /openapi.json",
    }
    message = text.get(error.status_code, str(error.detail))
    return ApiError(error.status_code, message, code="unknown_route", headers=error.headers).response()


async def _mistake(_: HttpRequest, error: Exception) -> Response:
    """A bug; its traceback goes to the log."""
    return ApiError(500, f"a mistake of the server's ({type(error).__name__}); see its log").response()
