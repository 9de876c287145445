"""The first samples of a domain that training would use, without a cache: enough to look at."""

from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

from megafuser.config.schema import RunConfig
from megafuser.data.sources.records import BadRecord, read_blocks
from megafuser.data.sources.samples import Sample, parse_block
from megafuser.data.sources.split import in_valid
from megafuser.data.templates import get_template
from megafuser.data.tokenization import tokenize_domain
from megafuser.data.tokenized import TokenizedDomain
from megafuser.data.vocabulary import end_id, shared_vocabulary
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
    """Tokenizes training samples of a domain until `count` are kept; `refused` counts those that were not.

    Args:
        config: the run.
        name: the domain.
        tokenizers: by specialist.
        rows: embedding rows of each specialist.
        max_positions: `max_position_embeddings` of each specialist.
        count: how many samples are wanted; there may be fewer, and a few more.

    Raises:
        UserError: a line cannot be used and `data.on_error` is `stop`, a template fails, or the tokenizers do not
            agree.
    """
    names = [specialist.name for specialist in config.specialists]
    shared = shared_vocabulary(tokenizers, rows)
    templates = [get_template(specialist.template, tokenizers[specialist.name]) for specialist in config.specialists]
    stream = _samples(config, name)
    read: list[Sample] = []
    while True:
        more = list(islice(stream, count))
        read += more
        domain = tokenize_domain(
            name,
            read,
            tokenizers=[tokenizers[specialist] for specialist in names],
            templates=templates,
            end_id=end_id(tokenizers, config.data.end_token, shared),
            shared_vocabulary=shared,
            limit=min(config.data.sequence_length, *max_positions.values()),
            rows=[rows[specialist] for specialist in names],
        )
        if len(domain) >= count or not more or len(read) >= _MOST_READ:
            return domain


def _samples(config: RunConfig, name: str) -> Iterator[Sample]:
    """A domain's training samples in order, without those that are kept apart for validation."""
    domain = config.data.domains[name]
    for source in domain.sources("train"):
        for block in read_blocks(source):
            for one in [block] if isinstance(block, BadRecord) else parse_block(block, source.fields):
                if isinstance(one, Sample):
                    if domain.valid or not in_valid(one, config.data.valid_fraction):
                        yield one
                elif config.data.on_error == "stop":
                    raise UserError(str(one))
