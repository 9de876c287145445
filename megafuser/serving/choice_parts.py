"""Parts of choices that completions and chats tell alike.

All else of a choice is in `serving.chat` and `serving.completions`.
"""

from collections.abc import Sequence

from megafuser.inference.request import Finish, Request
from megafuser.inference.step_messages import Prediction
from megafuser.serving.response_schema import FinishReason, Gate

# of a cancelled request nobody reads how it ended
_REASONS: dict[Finish, FinishReason] = {Finish.STOP: "stop", Finish.LENGTH: "length"}


def finish_of(request: Request) -> FinishReason:
    """Why a response has ended."""
    assert request.finish is not None
    return _REASONS[request.finish]


def gate_of(specialists: Sequence[str], predictions: Sequence[Prediction | None]) -> Gate:
    """The gate's weights of each token, as every answer that has them lists them."""
    weights = [None if one is None else [round(weight, 6) for weight in one.gate] for one in predictions]
    return Gate(specialists=list(specialists), weights=weights)
