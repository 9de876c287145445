"""Numbers and excerpts that no model gave."""

import numpy as np

from megafuser.evaluation.scores import Report, Scores
from megafuser.watching.excerpts import Excerpt, ExcerptTurn, TokenValues

NAMES = ["text", "code <b>"]
DOMAINS = ["zebra & co", "$overall$"]


def scores(fused: float, first: float, second: float, oracle: float) -> Scores:
    return Scores(
        samples=3,
        response_tokens=40,
        fused=fused,
        uniform=2.5,
        oracle=oracle,
        specialists=dict(zip(NAMES, (first, second), strict=True)),
        gate={NAMES[0]: 0.25, NAMES[1]: 0.75},
        gate_entropy=0.5,
    )


def report() -> Report:
    return Report(
        checkpoint="run/joint/step_000002",
        stage="joint",
        step=2,
        shared_vocabulary=320,
        max_samples=3,
        version="1.2.3",
        domains={DOMAINS[0]: scores(1.5, 2.0, 3.0, 1.0), DOMAINS[1]: scores(2.2, 2.0, 3.0, 1.0)},
        overall=scores(1.9, 2.0, 3.0, 1.0),
    )


def excerpt(domain: str, pieces: list[str], response_tokens: int | None = None) -> Excerpt:
    count = len(pieces)
    values = TokenValues(
        fused=np.full(count, 1.25),
        specialists=np.tile([0.5, 2.0], (count, 1)),
        weights=np.tile([0.25, 0.75], (count, 1)),
    )
    turn = ExcerptTurn(prompt="Say <hello>", pieces=pieces, values=values)
    return Excerpt(domain, "file.jsonl:1", response_tokens or count, count, [turn])
