"""Numbers at the end of what a float can be: a draw is made all the same, and the one that the limit says."""

import itertools

import pytest
import torch

from megafuser.inference.sampling import SamplingParameters, choose

LOGITS = torch.tensor([-30.0, 2.0, 0.0, 5.0, 4.9, -1.0])


def draws(count=200, logits=LOGITS, prompt=(1, 3), response=(3, 4), **settings):
    parameters = SamplingParameters(seed=5, **settings)
    return [choose(logits, parameters, prompt, response, drawn) for drawn in range(count)]


@pytest.mark.parametrize("temperature", [5e-324, 1e-300, 1e-40, 1e-9])
def test_a_tiny_temperature_is_greedy(temperature):
    assert set(draws(temperature=temperature)) == {3}
    far = torch.tensor([1e30, 0.0, -1e30, 3e38])
    assert set(draws(logits=far, temperature=temperature)) == {3}


def test_a_huge_temperature_is_uniform():
    found = draws(count=3000, temperature=1e300)
    assert all(found.count(token) == pytest.approx(500, abs=120) for token in range(6))


def test_extreme_penalties_draw_what_their_limits_say():
    # none of the tokens that were seen, 1, 3 and 4, is drawn where each is divided by infinity into a tie with 2
    assert set(draws(repetition_penalty=1e300, temperature=1e-3)) <= {1, 2, 3, 4}
    assert set(draws(repetition_penalty=1e-300, temperature=1e-3)) <= {1, 3, 4}


@pytest.mark.parametrize(
    ("temperature", "penalty", "top_p"),
    list(itertools.product([0.0, 5e-324, 1.0, 1e308], [5e-324, 1.0, 1e308], [5e-324, 1])),
)
def test_every_end_gives_a_token(temperature, penalty, top_p):
    for logits in (LOGITS, torch.zeros(6), torch.full((6,), -1e38), torch.tensor([0.0, -0.0, 1e38, -1e38, 1.0, 2.0])):
        found = draws(4, logits, temperature=temperature, repetition_penalty=penalty, top_p=top_p, presence_penalty=2)
        assert all(0 <= token < 6 for token in found)
