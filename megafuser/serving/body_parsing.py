"""From a body's bytes to what it asks for, or to the one line that says why not.

What a body may hold is `serving.request_schema`.
"""

from collections.abc import Sequence
from typing import Any, TypeVar

import pydantic_core
from pydantic import BaseModel, ValidationError

from megafuser.config.error_messages import value_problem
from megafuser.config.values import nearest
from megafuser.serving.errors import ApiError, invalid

T = TypeVar("T", bound=BaseModel)


def parse_body(body: bytes, model: type[T]) -> T:
    """Reads JSON, strictly: no NaN, no infinity, no invalid UTF-8, no endless nesting.

    Raises:
        ApiError: names the first parameter that is wrong.
    """
    if not body.strip():
        raise invalid("the body is empty; send a JSON object")
    try:
        value = pydantic_core.from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise invalid(f"the body is not valid JSON ({error}); send a JSON object", code="invalid_json") from None
    if not isinstance(value, dict):
        raise invalid("the body is not a JSON object; send one", code="invalid_json")
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise _explained(error, model) from None


def _explained(error: ValidationError, model: type[BaseModel]) -> ApiError:
    errors = error.errors(include_url=False)
    problem = _meant(errors)
    first, param = problem[0], _name(errors[0])[:200] or None
    name, place = _name(first), _place(first)
    if first["type"] == "extra_forbidden":
        hint = nearest(str(place[-1]), model.model_fields if len(place) == 1 else (), otherwise="leave it out")
        return invalid(f"unknown parameter {name!r}; {hint}"[:500], param, "unknown_parameter")
    if first["type"] == "missing":
        return invalid(f"{name!r} is missing; give it"[:500], param, "missing_parameter")
    return invalid(f"{name!r} {value_problem(problem)}"[:500], param, "invalid_value")


def _meant(errors: Sequence[Any]) -> list[Any]:
    """What is wrong in the place of the first error: where that is a union, what the member says that goes farthest."""
    start = _place(errors[0])
    within = [error for error in errors if _place(error)[: len(start)] == start]

    def depth(error: Any) -> tuple[int, list[int]]:
        place = _place(error)
        return len(place), [part for part in place if isinstance(part, int)]

    farthest = _place(max(within, key=depth))
    return [error for error in within if _place(error) == farthest]


def _name(error: Any) -> str:
    return ".".join(map(str, _place(error)))


def _place(error: Any) -> list[str | int]:
    """Without the names that pydantic gives the alternatives of a union; an unknown key may look like one of them."""
    *above, last = error["loc"]
    is_key = error["type"] == "extra_forbidden"
    return [part for part in above if _is_name(str(part))] + [last] * (is_key or _is_name(str(last)))


def _is_name(part: str) -> bool:
    """Whether a part of a place is the user's."""
    return not any(letter in part for letter in "[(") and part not in ("str", "int", "list", "constrained-str")
