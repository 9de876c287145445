"""How long samples are and how many rows a step makes: measured roughly where the data is there, else assumed.

Real samples are packed by `data.packing`.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from megafuser.config.data import SourceConfig
from megafuser.config.schema import RunConfig
from megafuser.config.stages import StageConfig
from megafuser.data.sources.reading import read_blocks
from megafuser.data.sources.records import BadRecord
from megafuser.data.sources.samples import Sample, parse_block
from megafuser.errors import UserError

_LOOKED_AT = 200
_BLOCK_BYTES = 1 << 16
_CHARACTERS_PER_TOKEN = 3.5
_SAMPLE_TOKENS, _RESPONSE_SHARE = 1024, 0.6


@dataclass(frozen=True)
class Samples:
    """Lengths that stand for all samples.

    Attributes:
        lengths: [n] tokens of a specialist's view.
        responses: [n] of them, response tokens.
        source: where they come from, in words.
    """

    lengths: np.ndarray
    responses: np.ndarray
    source: str


@dataclass(frozen=True)
class Workload:
    """One step of a stage, over all ranks.

    Attributes:
        samples: number of samples.
        tokens: of one specialist's views, without padding.
        response_tokens: positions that meet gate and heads.
        squares: sum over the samples of length².
        width: positions of a row.
        micro_batches: rows of each data-parallel rank.
    """

    samples: int
    tokens: float
    response_tokens: float
    squares: float
    width: int
    micro_batches: int


def find_samples(config: RunConfig, sample_tokens: int | None) -> Samples:
    """Lengths from the first lines of the training files, or assumed ones where files are missing.

    Args:
        config: the run's configuration.
        sample_tokens: what every sample's length shall be, whatever the files say.
    """
    limit = config.data.sequence_length
    domains = [domain.sources("train") for domain in config.data.domains.values()]
    if sample_tokens is None:
        found = [list(_domain_lengths(domain)) for domain in domains]
        pairs = [pair for own in found for pair in own]
        if pairs and all(map(_are_there, domains)):
            if config.data.weights is not None and all(found):
                pairs = _by_weight(found, [config.data.weights[name] for name in config.data.domains])
            elif not config.data.balanced and all(found):
                # in proportion to their numbers of samples, which files' sizes and first samples tell roughly
                sizes = [sum(Path(str(source.path)).stat().st_size for source in domain) for domain in domains]
                means = [sum(length for length, _ in own) / len(own) for own in found]
                pairs = _by_weight(found, [size / mean for size, mean in zip(sizes, means, strict=True)])
            lengths, responses = np.minimum(np.array(pairs), limit).T
            source = f"those of the first {len(pairs)} training samples at {_CHARACTERS_PER_TOKEN} characters a token"
            return Samples(lengths, np.minimum(responses, lengths), f"{source}: {lengths.mean():.0f} tokens on average")
    length = min(sample_tokens or _SAMPLE_TOKENS, limit)
    source = f"an assumption: {length} tokens each, {_RESPONSE_SHARE:.0%} of them response"
    return Samples(np.array([float(length)]), np.array([_RESPONSE_SHARE * length]), source)


def step_workload(config: RunConfig, stage: StageConfig, samples: Samples, data_parallel: int) -> Workload:
    """What a step of a stage holds.

    Rows are taken to be full, as far as the samples go: where there are more rows than they need, since each rank gets
    as many as the others, `data.packing` spreads the samples over all of them, and all are narrower.

    Args:
        config: the run's configuration.
        stage: one of its stages.
        samples: what samples are like.
        data_parallel: ranks that rows are dealt to.
    """
    count = stage.samples_per_domain * len(config.data.domains)
    width = stage.row_width or config.data.sequence_length
    tokens = count * float(samples.lengths.mean())
    micro_batches = max(1, math.ceil(math.ceil(tokens / width) / data_parallel))
    if config.parallel.virtual_pipeline > 1:
        micro_batches = math.ceil(micro_batches / config.parallel.pipeline) * config.parallel.pipeline
    fullest = math.ceil(count / (micro_batches * data_parallel)) * float(samples.lengths.mean())
    return Workload(
        samples=count,
        tokens=tokens,
        response_tokens=count * float(samples.responses.mean()),
        squares=count * float((samples.lengths.astype(np.float64) ** 2).mean()),
        width=min(width, math.ceil(max(fullest, float(samples.lengths.max())))),
        micro_batches=micro_batches,
    )


def _by_weight(domains: Sequence[list[tuple[float, float]]], weights: Sequence[float]) -> list[tuple[float, float]]:
    """Lengths of as many samples as were looked at, each domain with its share, and with one at least."""
    total = sum(map(len, domains))
    counts = [max(1, round(total * weight / sum(weights))) for weight in weights]
    return [own[index % len(own)] for own, count in zip(domains, counts, strict=True) for index in range(count)]


def _are_there(sources: Sequence[SourceConfig]) -> bool:
    """Whether all are files of this machine; data sets are not fetched for an estimate."""
    try:
        return all(source.path is not None and Path(source.path).is_file() for source in sources)
    except OSError:  # such as a directory that may not be read
        return False


def _domain_lengths(sources: Sequence[SourceConfig]) -> Iterator[tuple[float, float]]:
    """(tokens, response tokens) of a domain's first samples; lines that are none are the stages' to refuse."""
    if not _are_there(sources):
        return
    for sample in itertools.islice(_first_samples(sources[0]), _LOOKED_AT):
        response = sum(len(response) for _, response in sample.turns)
        prompt = len(sample.system or "") + sum(len(instruction) for instruction, _ in sample.turns)
        yield (prompt + response) / _CHARACTERS_PER_TOKEN, response / _CHARACTERS_PER_TOKEN


def _first_samples(source: SourceConfig) -> Iterator[Sample]:
    try:
        for block in read_blocks(source, block_bytes=_BLOCK_BYTES):
            parsed = [] if isinstance(block, BadRecord) else parse_block(block, source.fields)
            yield from (one for one in parsed if isinstance(one, Sample))
    except UserError:
        # A file that cannot be opened is the stages' to refuse, too; an estimate does without it.
        return
