"""What tokens are drawn from, against the processors that transformers' `generate` makes of the same settings."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from megafuser.inference import sampling
from megafuser.inference.sampling import SamplingParameters, choose

VOCABULARY = 60


@pytest.fixture(scope="module")
def theirs() -> LlamaForCausalLM:
    """A model for its `generate` only."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=8,
            intermediate_size=8,
            num_hidden_layers=1,
            num_attention_heads=1,
            eos_token_id=None,
        )
    )


def distribution(monkeypatch: pytest.MonkeyPatch, *arguments) -> torch.Tensor:
    """The probabilities that `choose` draws from."""
    drawn_from = []

    def multinomial(probabilities: torch.Tensor, count: int, generator: torch.Generator) -> torch.Tensor:
        drawn_from.append(probabilities)
        return probabilities.argmax()[None]

    with monkeypatch.context() as patch:
        patch.setattr(sampling.torch, "multinomial", multinomial)
        choose(*arguments)
    (found,) = drawn_from
    return found


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    spread=st.sampled_from([0.1, 1.0, 5.0]),
    temperature=st.floats(0.05, 5.0),
    top_k=st.integers(0, VOCABULARY + 5),
    top_p=st.floats(0.01, 1.0),
    penalty=st.floats(0.5, 2.0),
    prompt=st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=8),
    response=st.lists(st.integers(0, VOCABULARY - 1), max_size=8),
)
def test_a_draw_is_from_what_transformers_draws_from(
    theirs, seed, spread, temperature, top_k, top_p, penalty, prompt, response
):
    logits = torch.randn(VOCABULARY, generator=torch.Generator().manual_seed(seed)) * spread
    config = GenerationConfig(
        do_sample=True, temperature=temperature, top_k=top_k, top_p=top_p, repetition_penalty=penalty
    )
    processors = theirs._get_logits_processor(config, input_ids_seq_length=len(prompt) + len(response))
    expected = processors(torch.tensor([[*prompt, *response]]), logits[None].clone())[0].softmax(dim=-1)
    parameters = SamplingParameters(
        temperature=temperature, top_k=top_k, top_p=top_p, repetition_penalty=penalty, seed=seed
    )
    before = logits.clone()
    with pytest.MonkeyPatch.context() as monkeypatch:
        found = distribution(monkeypatch, logits, parameters, prompt, response, len(response))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    assert torch.equal(logits, before)  # logprobs and the next request's draw are of the same tensor


@pytest.mark.parametrize("penalty", [0.7, 1.3])
def test_greedy_with_a_penalty_is_transformers(theirs, penalty):
    prompt, response = [1, 2, 2, 3], []
    theirs.lm_head.weight.data = torch.randn(VOCABULARY, 8, generator=torch.Generator().manual_seed(1))
    output = theirs.generate(
        torch.tensor([prompt]), do_sample=False, repetition_penalty=penalty, max_new_tokens=10, pad_token_id=0
    )
    with torch.no_grad():
        while len(response) < 10:
            logits = theirs(torch.tensor([[*prompt, *response]])).logits[0, -1]
            parameters = SamplingParameters(repetition_penalty=penalty)
            response.append(choose(logits, parameters, prompt, response, len(response)))
    assert output[0, len(prompt) :].tolist() == response
