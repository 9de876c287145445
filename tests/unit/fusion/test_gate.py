"""The gate against its formula, where it starts, and that every rank starts alike."""

import pytest
import torch

from megafuser.config.gate import GateConfig
from megafuser.fusion.gate import Gate
from megafuser.fusion.gate_shapes import gate_shapes

EQUAL = (8, 8, 8)
UNEQUAL = (8, 12, 6)
CONFIG = GateConfig(16, init="zero")
RANDOM = GateConfig(16, init="random")


def hidden_states(sizes: tuple[int, ...], tokens: int = 5, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(tokens, size, generator=generator).to(dtype) for size in sizes]


def trained(sizes: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Gate:
    """A gate away from its start."""
    gate = Gate(sizes, CONFIG, seed=0, dtype=dtype)
    generator = torch.Generator().manual_seed(2)
    for parameter in gate.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator).to(dtype)
    return gate


@pytest.mark.parametrize("sizes", [EQUAL, UNEQUAL])
def test_it_starts_as_a_uniform_mixture_that_can_learn(sizes: tuple[int, ...]) -> None:
    gate = Gate(sizes, CONFIG, seed=0, dtype=torch.float32)
    weights = gate(hidden_states(sizes))
    torch.testing.assert_close(weights, torch.full((5, 3), 1 / 3))
    weights[:, 0].sum().backward()
    assert gate.fc2.weight.grad is not None and gate.fc2.weight.grad.abs().max() > 0


@pytest.mark.parametrize("sizes", [EQUAL, UNEQUAL])
def test_its_shapes_are_known_without_it(sizes: tuple[int, ...]) -> None:
    gate = Gate(sizes, CONFIG, seed=0, dtype=torch.float32)
    shapes = [(name, tuple(own.shape)) for name, own in gate.named_parameters()]
    assert list(gate_shapes(sizes, CONFIG.hidden_size).items()) == shapes


@pytest.mark.parametrize("sizes", [EQUAL, UNEQUAL])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_equal_the_formula(sizes: tuple[int, ...], dtype: torch.dtype) -> None:
    """w = softmax_k(W2 relu(W1 P_k h_k + b1) + b2), P_k only where hidden sizes differ; in float64, token by token."""
    gate = trained(sizes, dtype)
    hidden = hidden_states(sizes, dtype=dtype)
    values = {name: value.double() for name, value in gate.state_dict().items()}
    expected = []
    for token in range(5):
        scores = []
        for k, h in enumerate(hidden):
            x = h[token].double()
            if sizes == UNEQUAL:
                x = values[f"project.{k}.weight"] @ x
            inner = (values["fc1.weight"] @ x + values["fc1.bias"]).clamp(min=0)
            scores.append(float(values["fc2.weight"][0] @ inner + values["fc2.bias"][0]))
        expected.append(torch.softmax(torch.tensor(scores, dtype=torch.float64), dim=0))
    weights = gate(hidden)
    assert weights.dtype == torch.float32
    torch.testing.assert_close(weights.double(), torch.stack(expected), rtol=1e-5, atol=1e-6)


def test_one_mlp_serves_all_specialists() -> None:
    """Exchanged specialists have exchanged weights."""
    gate = trained(EQUAL)
    hidden = hidden_states(EQUAL)
    torch.testing.assert_close(gate(hidden[::-1]), gate(hidden).flip(dims=[1]))
    assert set(gate.state_dict()) == {"fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias"}


def test_the_shared_width_is_the_largest_of_unequal_sizes() -> None:
    gate = Gate(UNEQUAL, CONFIG, seed=0, dtype=torch.float32)
    assert gate.fc1.weight.shape == (16, 12)
    assert [tuple(projection.weight.shape) for projection in gate.project] == [(12, 8), (12, 12), (12, 6)]


def test_the_seed_alone_decides_the_first_weights() -> None:
    """Ranks build their gates after different draws from the global generator."""
    torch.manual_seed(1)
    first = Gate(UNEQUAL, CONFIG, seed=7, dtype=torch.float32)
    torch.manual_seed(2)
    second = Gate(UNEQUAL, CONFIG, seed=7, dtype=torch.float32)
    other = Gate(UNEQUAL, CONFIG, seed=8, dtype=torch.float32)
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name
    assert not torch.equal(first.fc1.weight, other.fc1.weight)
    assert float(first.fc1.weight.detach().std()) == pytest.approx(12**-0.5, rel=0.2)
    third = Gate(UNEQUAL, CONFIG, seed=7, dtype=torch.bfloat16)
    assert torch.equal(third.fc1.weight, first.fc1.weight.bfloat16())


def test_no_token_is_no_mistake() -> None:
    assert trained(EQUAL)([h[:0] for h in hidden_states(EQUAL)]).shape == (0, 3)


@pytest.mark.parametrize("sizes", [EQUAL, UNEQUAL])
def test_a_zero_last_layer_gives_exactly_equal_weights(sizes: tuple[int, ...]) -> None:
    weights = Gate(sizes, CONFIG, seed=0, dtype=torch.float32)(hidden_states(sizes))
    assert torch.equal(weights, torch.full((5, 3), 1 / 3))


def test_a_random_last_layer_leaves_the_others_as_they_are() -> None:
    zero = Gate(UNEQUAL, CONFIG, seed=3, dtype=torch.float32).state_dict()
    random = Gate(UNEQUAL, RANDOM, seed=3, dtype=torch.float32).state_dict()
    assert [name for name in zero if not torch.equal(zero[name], random[name])] == ["fc2.weight"]
    again = Gate(UNEQUAL, RANDOM, seed=3, dtype=torch.float32).state_dict()
    assert torch.equal(random["fc2.weight"], again["fc2.weight"])


def test_scores_are_divided_by_the_temperature() -> None:
    gate, cold = trained(EQUAL), trained(EQUAL)
    cold.temperature = 0.2
    hidden = hidden_states(EQUAL)
    scores = torch.stack([gate.score(k, h) for k, h in enumerate(hidden)], dim=1).double()
    exponentials = (scores * 5).exp()
    expected = exponentials / exponentials.sum(dim=1, keepdim=True)
    torch.testing.assert_close(cold(hidden).double(), expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(gate(hidden), torch.softmax(scores.float(), dim=1)), "at 1 nothing changes, bit for bit"
