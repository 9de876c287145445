"""What a run trains on, in numbers: from the caches' own counts and the configuration.

They are shown by `data.statistics_table` and `data.statistics_page`.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from megafuser.config.schema import RunConfig
from megafuser.data.stage_sampler import stage_sampler
from megafuser.data.tokenized import TokenizedDomain

Document = dict[str, Any]

# What is told of lengths, as `length_summary` names it.
LENGTH_KEYS = ("mean", "p50", "p95", "max")


def gather(config: RunConfig, train: Sequence[TokenizedDomain], valid: Sequence[TokenizedDomain]) -> Document:
    """Everything that is known about a run's data, as `statistics.json` holds it.

    Args:
        config: the run.
        train: tokenized training samples by domain, in the configuration's order.
        valid: tokenized validation samples likewise.

    Returns:
        `splits`: by split and domain what the cache counted, with the configuration's names and weights of the sources,
        and `length_summary`; `stages`: by stage its steps, and of each domain (or source with a weight) its samples,
        its draws over all steps, and the times that each sample is seen.
    """
    specialists = [specialist.name for specialist in config.specialists]
    return {
        "run_dir": config.run_dir,
        "specialists": specialists,
        "sequence_length": config.data.sequence_length,
        "splits": {
            split: {domain.name: _of_domain(config, domain, split) for domain in domains}
            for split, domains in (("train", train), ("valid", valid))
        },
        "stages": {stage: _of_stage(config, stage, train) for stage in ("warmup", "joint")},
    }


def length_summary(lengths: np.ndarray) -> dict[str, float]:
    """Mean, median, 95th percentile and maximum of `[N]` lengths; percentiles are lengths that occur."""
    if not len(lengths):
        return dict.fromkeys(LENGTH_KEYS, 0.0)
    p50, p95 = np.percentile(lengths, [50, 95], method="inverted_cdf")
    return {"mean": float(lengths.mean()), "p50": int(p50), "p95": int(p95), "max": int(lengths.max())}


def _of_domain(config: RunConfig, domain: TokenizedDomain, split: str) -> dict[str, Any]:
    specialists = [specialist.name for specialist in config.specialists]
    views = {name: length_summary(domain.lengths[:, index]) for index, name in enumerate(specialists)}
    listed = config.data.domains[domain.name]
    own = listed.sources(split) or listed.sources("train")
    # The cache may have been made for other names and weights; validation knows no weights.
    sources = [
        counted | {"name": str(source), "weight": source.weight if split == "train" else None}
        for counted, source in zip(domain.statistics["sources"], own, strict=True)
    ]
    lengths = {"views": views, "responses": length_summary(domain.response_lengths)}
    return domain.statistics | {"sources": sources, "length_summary": lengths}


def _of_stage(config: RunConfig, stage: str, train: Sequence[TokenizedDomain]) -> dict[str, Any]:
    settings = config.stage(stage)
    sampler = stage_sampler(config, stage, train)
    return {
        "steps": settings.steps,
        "samples_per_step": settings.samples_per_domain * len(train),
        "draws": [
            {
                "domain": train[own.domain].name,
                "source": own.source,
                "samples": own.size,
                "draws": own.draws,
                "times": own.draws / own.size,
            }
            for own in sampler.draws(settings.steps)
        ],
    }
