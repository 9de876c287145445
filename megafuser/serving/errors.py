"""Errors as OpenAI's API tells them: an object with a message, a type, the parameter and a code.

What is refused is decided elsewhere, by `serving.guard` and `serving.body_parsing` for instance.
"""

from collections.abc import Mapping

from starlette.responses import JSONResponse

from megafuser.serving.response_schema import ErrorAnswer, ErrorDetail

_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "unavailable_error",
    504: "timeout_error",
}
CLIENT_GONE = 499  # nginx's: nobody is there to read the answer


class ApiError(Exception):
    """A request that is not answered.

    Attributes:
        status: of HTTP.
        message: says what is wrong and what to do.
        param: the parameter's name.
        code: a word for programs.
        headers: of the response.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """See the class."""
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code
        self.headers = dict(headers or {})

    def body(self) -> ErrorAnswer:
        """What the client reads."""
        kind = _TYPES.get(self.status, "invalid_request_error")
        return ErrorAnswer(error=ErrorDetail(message=self.message, type=kind, param=self.param, code=self.code))

    def response(self) -> JSONResponse:
        """The whole answer."""
        return JSONResponse(self.body().sent(), self.status, headers=self.headers)


def invalid(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    """A request that says something impossible."""
    return ApiError(400, message, param=param, code=code)


def failed(status: int = 500) -> ApiError:
    """What is told to everybody after a mistake in the engine."""
    return ApiError(status, "the engine has failed; see the server's log", code="engine_failed")


def stopping() -> ApiError:
    """What is told to everybody while the server goes down."""
    return ApiError(
        503, "the server is shutting down; try another one", code="shutting_down", headers={"Retry-After": "5"}
    )
