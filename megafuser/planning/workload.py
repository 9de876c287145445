"""How long samples are and how many rows a step makes: measured roughly where the data is there, else assumed."""

import itertools
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from megafuser.config.schema import RunConfig, StageConfig

_LOOKED_AT = 200
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
    if sample_tokens is None:
        pairs = [pair for domain in config.data.domains.values() for pair in _domain_lengths(domain.train)]
        if pairs and all(_is_there(domain.train) for domain in config.data.domains.values()):
            lengths, responses = np.minimum(np.array(pairs), limit).T
            source = f"those of the first {len(pairs)} training samples at {_CHARACTERS_PER_TOKEN} characters a token"
            return Samples(lengths, np.minimum(responses, lengths), f"{source}: {lengths.mean():.0f} tokens on average")
    length = min(sample_tokens or _SAMPLE_TOKENS, limit)
    source = f"an assumption: {length} tokens each, {_RESPONSE_SHARE:.0%} of them response"
    return Samples(np.array([float(length)]), np.array([_RESPONSE_SHARE * length]), source)


def step_workload(config: RunConfig, stage: StageConfig, samples: Samples, data_parallel: int) -> Workload:
    """What a step of a stage holds; rows are taken to be full.

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
    return Workload(
        samples=count,
        tokens=tokens,
        response_tokens=count * float(samples.responses.mean()),
        squares=count * float((samples.lengths.astype(np.float64) ** 2).mean()),
        width=width,
        micro_batches=micro_batches,
    )


def _is_there(paths: tuple[str, ...]) -> bool:
    return all(Path(path).is_file() for path in paths)


def _domain_lengths(paths: tuple[str, ...]) -> Iterator[tuple[float, float]]:
    """(tokens, response tokens) of a domain's first samples; lines that are none are the stages' to refuse."""
    if not _is_there(paths):
        return
    with open(paths[0], encoding="utf-8", errors="replace") as file:
        for line in itertools.islice(file, _LOOKED_AT):
            try:
                prompt, response = _characters(json.loads(line))
            except (ValueError, TypeError, KeyError, AttributeError):
                continue
            yield (prompt + response) / _CHARACTERS_PER_TOKEN, response / _CHARACTERS_PER_TOKEN


def _characters(sample: dict[str, Any]) -> tuple[int, int]:
    if "messages" not in sample:
        return len(sample["instruction"]) + len(sample.get("system") or ""), len(sample["response"])
    turns = [(message["role"] == "assistant", len(message["content"])) for message in sample["messages"]]
    return sum(size for is_response, size in turns if not is_response), sum(size for ours, size in turns if ours)
