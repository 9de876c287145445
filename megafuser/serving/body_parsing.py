"""From a body's bytes to what it asks for, or to the one line that says why not."""

from typing import TypeVar

import pydantic_core
from pydantic import BaseModel, ValidationError

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
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    place = [str(part) for part in first["loc"]]
    param = ".".join(part for part in place if _is_name(part)) or None
    if first["type"] == "extra_forbidden":
        hint = nearest(place[-1], model.model_fields if len(place) == 1 else (), otherwise="leave it out")
        return invalid(f"unknown parameter {param!r}; {hint}"[:500], param and param[:200], "unknown_parameter")
    if first["type"] == "missing":
        return invalid(f"{param!r} is missing; give it", param, "missing_parameter")
    return invalid(f"{param!r}: {first['msg']}"[:500], param and param[:200], "invalid_value")


def _is_name(part: str) -> bool:
    """Whether a part of a place is the user's; pydantic names the alternatives of a union in between."""
    return not any(letter in part for letter in "[(") and part not in ("str", "int", "list", "constrained-str")
