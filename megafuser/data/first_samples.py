"""The first samples of a domain that training would use, without a cache: enough to look at.

Showing them is `data.preview`.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from typing import Any

from megafuser.config.schema import RunConfig
from megafuser.data.cache.loading import check_templates, encoder_spec
from megafuser.data.sources.reading import read_blocks
from megafuser.data.sources.records import BadRecord
from megafuser.data.sources.samples import Sample, parse_block
from megafuser.data.sources.split import in_valid
from megafuser.data.tokenization import Encoder
from megafuser.data.tokenized import TokenizedDomain, make_batch
from megafuser.errors import UserError

# Where hardly any sample is kept, the reasons are what there is to see.
_MOST_READ = 4096


def first_kept(
    config: RunConfig,
    name: str,
    tokenizers: Mapping[str, Any],
    rows: Mapping[str, int],
    max_positions: Mapping[str, int],
    count: int,
) -> TokenizedDomain:
    """Tokenizes training samples of a domain until `count` are kept; `refused` counts those that were not, and lines
    that cannot be used.

    Args:
        config: the run.
        name: the domain.
        tokenizers: by specialist.
        rows: embedding rows of each specialist.
        max_positions: `max_position_embeddings` of each specialist.
        count: how many samples are wanted; there may be fewer, and a few more.

    Raises:
        UserError: a line cannot be used and `data.on_error` is `stop`, a template or tokenizer does not work, or the
            tokenizers do not agree.
    """
    ordered = {specialist.name: tokenizers[specialist.name] for specialist in config.specialists}
    check_templates(config, ordered)
    spec = encoder_spec(config, name, ordered, rows, max_positions)
    encoder = Encoder(spec, list(ordered.values()))
    read, kept = 0, 0
    refused: Counter[str] = Counter()

    def leave_out(bad: BadRecord) -> None:
        if config.data.on_error == "stop":
            raise UserError(f"{bad}, or set data.on_error=skip")
        refused[bad.kind] += 1

    stream = _samples(config, name, leave_out)
    batches: list[Any] = []
    while not batches or (kept < count and read < _MOST_READ):
        samples = list(islice(stream, count))
        found = encoder.encode(samples)
        batches.append(make_batch([sample.id for sample in found.samples], found.prompts, found.responses))
        refused.update(reason for reason, _ in found.refused)
        for bad in found.failed:
            leave_out(bad)
        read, kept = read + len(samples), kept + len(found.samples)
        if not samples:
            break
    return TokenizedDomain.in_memory(name, batches, dict(refused))


def _samples(config: RunConfig, name: str, leave_out: Callable[[BadRecord], None]) -> Iterator[Sample]:
    """A domain's training samples in order, without those that are kept apart for validation."""
    domain = config.data.domains[name]
    for source in domain.sources("train"):
        for block in read_blocks(source):
            for one in [block] if isinstance(block, BadRecord) else parse_block(block, source.fields):
                if isinstance(one, Sample):
                    if domain.valid or not in_valid(one, config.data.valid_fraction):
                        yield one
                else:
                    leave_out(one)
