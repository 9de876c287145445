"""Numbers and excerpts that no model gave."""

import numpy as np

from megafuser.report.analysis import Analysis, analyse
from megafuser.report.calibration import BINS, Calibration
from megafuser.report.comparison import compare
from megafuser.report.extreme_tokens import ExtremeToken, ExtremeTokens
from megafuser.report.results import Report
from megafuser.report.scores import Scores
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


def table(scores: Scores, tokens: float = 40.0) -> np.ndarray:
    """Per-sample sums of three samples that give these means: the first half of the tokens, a quarter, a quarter."""
    single = [1.0, scores.fused, scores.uniform, scores.oracle, scores.gate_entropy]
    means = np.array([*single, *scores.specialists.values(), *scores.gate.values()])
    spread = np.array([[0.9], [1.0], [1.2]])
    counts = tokens * np.array([[0.5], [0.25], [0.25]])
    sums = counts * means * spread
    sums[:, 0] = counts[:, 0]
    return sums


def token(difference: float, pieces: list[str], place: int) -> ExtremeToken:
    return ExtremeToken(
        domain=DOMAINS[0],
        sample_id="file.jsonl:2",
        token=5,
        difference=difference,
        best=NAMES[0],
        fused=1.25,
        specialists=dict(zip(NAMES, (1.25 - difference, 3.0), strict=True)),
        gate=dict(zip(NAMES, (0.25, 0.75), strict=True)),
        prompt="Say <hello> now",
        pieces=pieces,
        place=place,
        weights=np.tile([0.25, 0.75], (len(pieces), 1)),
    )


def analysis(domains: dict[str, Scores]) -> Analysis:
    # so many tokens that the fused model's 1.5 and 2.2 are 1.9 together
    tables = {name: table(own, tokens) for (name, own), tokens in zip(domains.items(), (30.0, 40.0), strict=True)}
    one = Calibration.from_sums([*[4.0] * BINS, *[2.0] * BINS, *[1.0] * BINS])
    return analyse(
        domains,
        compare(tables, NAMES, seed=1),
        dict.fromkeys(domains, one),
        one,
        ExtremeTokens(helped=[token(-2.5, ["a <b>", "helped"], 1)], hurt=[token(3.5, ["hurt", " z"], 0)]),
    )


def report() -> Report:
    domains = {DOMAINS[0]: scores(1.5, 2.0, 3.0, 1.0), DOMAINS[1]: scores(2.2, 2.0, 3.0, 1.0)}
    return Report(
        checkpoint="run/joint/step_000002",
        stage="joint",
        step=2,
        shared_vocabulary=320,
        max_samples=3,
        version="1.2.3",
        domains=domains,
        overall=scores(1.9, 2.0, 3.0, 1.0),
        analysis=analysis(domains),
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
