"""The choice of a token against formulas: frequencies of draws, what the cuts leave, penalties, and the seed."""

from typing import Any

import pytest
import torch

from megafuser.errors import UserError
from megafuser.inference.sampling import SamplingParameters, choose

LOGITS = torch.log(torch.tensor([0.4, 0.3, 0.2, 0.05, 0.05]))
DRAWS = 3000


def draws(count: int = DRAWS, **settings: Any) -> list[int]:
    """The tokens of a response whose logits are always the same."""
    parameters = SamplingParameters(**{"temperature": 1.0} | settings)
    return [choose(LOGITS, parameters, (), (), drawn) for drawn in range(count)]


def frequencies(tokens: list[int]) -> torch.Tensor:
    return torch.bincount(torch.tensor(tokens), minlength=len(LOGITS)) / len(tokens)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_draws_have_the_distributions_frequencies(temperature):
    expected = torch.softmax(LOGITS / temperature, dim=-1)
    found = frequencies(draws(temperature=temperature, seed=11))
    spread = (expected * (1 - expected) / DRAWS).sqrt()
    assert ((found - expected).abs() < 5 * spread).all()


def test_a_draw_is_its_number_and_its_seed():
    assert draws(50, seed=3) == draws(50, seed=3)
    assert draws(50, seed=3) != draws(50, seed=4)
    assert draws(50, seed=3)[1:] != draws(49, seed=3)
    # neither neighbouring seeds nor neighbouring tokens are the same draws shifted
    assert draws(50, seed=3)[1:] != draws(49, seed=4)


@pytest.mark.parametrize(
    ("settings", "kept"),
    [
        ({"top_k": 1}, {0}),
        ({"top_k": 3}, {0, 1, 2}),
        ({"top_p": 0.39}, {0}),
        ({"top_p": 0.75}, {0, 1, 2}),
        ({"top_k": 2, "top_p": 0.99}, {0, 1}),
        ({"top_k": 99}, {0, 1, 2, 3, 4}),
    ],
)
def test_cuts_leave_the_most_probable(settings, kept):
    tokens = draws(400, seed=5, **settings)
    assert set(tokens) == kept
    left = torch.softmax(LOGITS, dim=-1)[: len(kept)]
    assert ((frequencies(tokens)[: len(kept)] - left / left.sum()).abs() < 0.12).all()


def test_greedy_takes_the_first_of_equals_and_penalties_move_it():
    def greedy(prompt: tuple[int, ...], response: tuple[int, ...], **settings: Any) -> int:
        return choose(LOGITS, SamplingParameters(**settings), prompt, response, len(response))

    assert greedy((), ()) == 0
    # log 0.4 · 1.5 < log 0.3, and tokens of the prompt count for it
    assert greedy((0,), (), repetition_penalty=1.5) == 1
    assert greedy((), (0, 1), repetition_penalty=3.0) == 2
    assert greedy((999,), (), repetition_penalty=3.0) == 0  # no token of the shared vocabulary
    # log 0.4 − log 0.3 = 0.288: presence counts once, frequency each time, neither for the prompt
    assert greedy((0, 0), (), presence_penalty=0.5, frequency_penalty=0.5) == 0
    assert greedy((), (0, 0), presence_penalty=0.25) == 0
    assert greedy((), (0, 0), frequency_penalty=0.25) == 1
    assert greedy((), (0,), frequency_penalty=0.25) == 0


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"temperature": float("nan")}, "temperature must be at least 0"),
        ({"temperature": float("inf")}, "temperature"),
        ({"top_p": 1.1}, "top_p must be above 0 and at most 1, not 1.1"),
        ({"frequency_penalty": -3.0}, "frequency_penalty must be at least -2 and at most 2"),
        ({"seed": 2**63}, "seed must be"),
    ],
)
def test_parameters_without_meaning_are_refused(settings, problem):
    with pytest.raises(UserError, match=problem):
        SamplingParameters(**settings)
