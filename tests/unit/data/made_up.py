"""Tokenized domains of random ids, for tests that need no tokenizer."""

import numpy as np

from megafuser.data.tokenized import TokenizedDomain, make_batch


def make_domain(name: str, samples: int, seed: int, specialists: int = 3, batch: int = 7) -> TokenizedDomain:
    """A domain of samples with one to three turns; all ids are above 0, so that pads can be told from them.

    Its batches hold `batch` samples.
    """
    generator = np.random.default_rng(seed)

    def ids(low: int, high: int) -> list[int]:
        return generator.integers(1, 1000, generator.integers(low, high)).tolist()

    turns = generator.integers(1, 4, samples)
    responses = [[ids(1, 9) for _ in range(count)] for count in turns]
    prompts = [[[ids(1 + k, 6 + 2 * k) for _ in range(count)] for count in turns] for k in range(specialists)]
    batches = [
        make_batch(
            [f"{name}:{index}" for index in range(start, min(start + batch, samples))],
            [column[start : start + batch] for column in prompts],
            responses[start : start + batch],
        )
        for start in range(0, samples, batch)
    ]
    return TokenizedDomain.in_memory(name, batches)
