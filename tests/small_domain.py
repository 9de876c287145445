"""A few samples read, tokenized and held in memory, without the cache that training goes through."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from megafuser.config.data import SourceConfig
from megafuser.data.sources.reading import read_blocks
from megafuser.data.sources.records import BadRecord
from megafuser.data.sources.samples import Sample, parse_block
from megafuser.data.tokenization import Encoder, EncoderSpec
from megafuser.data.tokenized import TokenizedDomain, make_batch
from megafuser.errors import UserError

CHUNK = 1024


def read_samples(sources: Sequence[str | SourceConfig], fields: Mapping[str, str] | None = None) -> list[Sample]:
    """All samples of a few small sources, in order.

    Args:
        sources: paths, or sources with more about them.
        fields: names of the fields in the sources that do not name them.

    Raises:
        UserError: a source is missing or holds no sample, or one of its lines is not as documented.
    """
    samples: list[Sample] = []
    for listed in sources:
        source = SourceConfig(path=listed) if isinstance(listed, str) else listed
        before = len(samples)
        for block in read_blocks(source):
            parsed = [block] if isinstance(block, BadRecord) else parse_block(block, source.fields or fields or {})
            for one in parsed:
                if isinstance(one, BadRecord):
                    raise UserError(str(one))
                samples.append(one)
        if len(samples) == before:
            raise UserError(f"{source} is empty; give a source that holds samples")
    return samples


def tokenize_domain(
    name: str, samples: Sequence[Sample], spec: EncoderSpec, tokenizers: Sequence[Any]
) -> TokenizedDomain:
    """Tokenizes a few samples in memory.

    Args:
        name: the domain.
        samples: as `read_samples` gives them.
        spec: templates, limits and the like.
        tokenizers: K tokenizers.
    """
    encoder = Encoder(spec, tokenizers)
    found = [encoder.encode(samples[start : start + CHUNK]) for start in range(0, len(samples), CHUNK)]
    found = found or [encoder.encode([])]
    refused = Counter(reason for part in found for reason, _ in part.refused)
    refused.update(bad.problem for part in found for bad in part.failed)
    batches = [make_batch([one.id for one in part.samples], part.prompts, part.responses) for part in found]
    return TokenizedDomain.in_memory(name, batches, dict(refused))


class TokenStore:
    """Collects samples for a domain in memory."""

    def __init__(self, specialists: int) -> None:
        """Starts empty, for K `specialists`."""
        self._sample_ids: list[str] = []
        self._prompts: list[list[Sequence[Sequence[int]]]] = [[] for _ in range(specialists)]
        self._responses: list[Sequence[Sequence[int]]] = []

    def add(
        self, sample_id: str, prompts: Sequence[Sequence[Sequence[int]]], responses: Sequence[Sequence[int]]
    ) -> None:
        """Adds a sample: prompts by specialist and turn, responses by turn."""
        self._sample_ids.append(sample_id)
        self._responses.append(responses)
        for column, own in zip(self._prompts, prompts, strict=True):
            column.append(own)

    def freeze(self, name: str, refused: dict[str, int]) -> TokenizedDomain:
        """The collected samples as a domain."""
        batch = make_batch(self._sample_ids, self._prompts, self._responses)
        return TokenizedDomain.in_memory(name, [batch], refused)
