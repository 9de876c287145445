"""Tokenized domains of random ids, for tests that need no tokenizer."""

import numpy as np

from megafuser.data.tokenized import Ragged, TokenizedDomain


def make_domain(name: str, samples: int, seed: int, specialists: int = 3) -> TokenizedDomain:
    """A domain of samples with one to three turns; all ids are above 0, so that pads can be told from them."""
    generator = np.random.default_rng(seed)
    turn_offsets = np.concatenate([[0], np.cumsum(generator.integers(1, 4, samples))])
    turns = int(turn_offsets[-1])

    def ragged(low: int, high: int) -> Ragged:
        offsets = np.concatenate([[0], np.cumsum(generator.integers(low, high, turns))])
        return Ragged(generator.integers(1, 1000, offsets[-1]).astype(np.int32), offsets)

    responses = ragged(1, 9)
    prompts = tuple(ragged(1 + specialist, 6 + 2 * specialist) for specialist in range(specialists))
    response_lengths = np.add.reduceat(responses.lengths(), turn_offsets[:-1])
    lengths = [np.add.reduceat(column.lengths(), turn_offsets[:-1]) + response_lengths for column in prompts]
    return TokenizedDomain(
        name=name,
        sample_ids=[f"{name}:{index}" for index in range(samples)],
        lengths=np.stack(lengths, axis=1).astype(np.int32),
        response_lengths=response_lengths.astype(np.int32),
        refused={},
        turn_offsets=turn_offsets,
        prompts=prompts,
        responses=responses,
    )
