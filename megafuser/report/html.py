"""`report.html`: one page that needs nothing else, made from a template that escapes every text.

The plots are `report.plots`; the numbers are `report.results`.
"""

import math
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from megafuser.figures.page import page_template
from megafuser.figures.palette import blend, specialist_colours
from megafuser.report import plots
from megafuser.report.bootstrap import LEVEL, Estimate
from megafuser.report.comparison import Comparison
from megafuser.report.curves import Curves
from megafuser.report.extreme_tokens import ExtremeToken
from megafuser.report.results import Report
from megafuser.report.scores import Scores
from megafuser.watching.excerpts import Excerpt, ExcerptTurn


@dataclass(frozen=True)
class Cell:
    """A cross-entropy of the table."""

    text: str
    is_best: bool
    interval: str


@dataclass(frozen=True)
class Token:
    """A response token, as the page shows it."""

    text: str
    background: str
    title: str


def render(report: Report, excerpts: list[Excerpt], curves: Curves | None, training: bool = False) -> str:
    """Makes the page.

    Args:
        report: the numbers.
        excerpts: samples to show, in the order of the domains.
        curves: of the run that the checkpoint belongs to, where they were found.
        training: whether learning rates and gradient norms are to be shown too.
    """
    colours = specialist_colours(report.specialists)
    domains = list(report.domains)
    specialists = report.specialists
    analysis = report.analysis
    compared = [*analysis.comparisons.domains.values(), analysis.comparisons.overall]
    # no mapping, since a domain may have that name too
    calibrated = list(analysis.calibration.items())
    if len(domains) < 4:
        calibrated.append(("overall", analysis.overall_calibration))
    drawn = {
        "paper": plots.paper_heatmap(analysis.paper_gate) if analysis.paper_gate else "",
        "reliability": plots.reliability_diagram(calibrated),
        "gap": plots.gap_closed(report),
        "rates": plots.rate_curves(curves) if curves and training else "",
        "bars": plots.cross_entropy_bars(report),
        "gate": plots.gate_heatmap(report),
        "loss": plots.loss_curves(curves, domains) if curves else "",
        "gate_curves": plots.gate_curves(curves, domains, specialists) if curves else "",
    }
    return page_template("megafuser.report", "report.html.j2").render(
        report=report,
        headline=in_a_sentence("All domains together", report.overall),
        sentences=[in_a_sentence(name, scores) for name, scores in report.domains.items()],
        table=[(name, scores, cells(scores, own)) for (name, scores), own in zip(report.lines, compared, strict=True)],
        decision=analysis.decision,
        warnings=analysis.warnings,
        calibration=analysis,
        level=LEVEL,
        resamples=analysis.comparisons.resamples,
        single=analysis.comparisons.single,
        extremes=[
            ("Where fusion helps most", [_extreme(token, colours) for token in analysis.tokens.helped]),
            ("Where fusion hurts most", [_extreme(token, colours) for token in analysis.tokens.hurt]),
        ],
        max_entropy=math.log(len(specialists)),
        gaps=[
            (name, *map(_share, (own.gap_closed, own.gap_closed_single)))
            for name, own in [
                *analysis.comparisons.domains.items(),
                ("mean of the domains", analysis.comparisons.mean),
                ("overall", analysis.comparisons.overall),
            ]
        ],
        plots={name: Markup(svg) for name, svg in drawn.items()},
        has_curves=curves is not None,
        colours=colours,
        groups=_grouped(excerpts, domains, colours),
    )


def in_a_sentence(name: str, scores: Scores) -> str:
    """One plain sentence: the fused model against the best specialist."""
    best = scores.best_specialist
    alone = scores.specialists[best]
    if abs(scores.gain) < 5e-4:  # what is shown as 0.000
        return f"{name}: the fused model is as good as the best specialist, {best} ({alone:.3f} nats per token)."
    percent = abs(scores.gain) / alone
    relation = "better" if scores.gain > 0 else "worse"
    return (
        f"{name}: the fused model is {relation} than the best specialist, {best}, by {abs(scores.gain):.3f} nats per "
        f"token ({scores.fused:.3f} against {alone:.3f}, {percent:.1%})."
    )


def cells(scores: Scores, compared: Comparison) -> list[Cell]:
    """The specialists', the uniform mixture's, the fused model's and the oracle's loss; the oracle, no model, is never
    the best.
    """
    losses = [*scores.specialists.values(), scores.uniform, scores.fused]
    best = min(losses)
    estimates = [*compared.specialists.values(), compared.uniform, compared.fused]
    own = [
        Cell(f"{loss:.4f}", loss == best, _interval(estimate)) for loss, estimate in zip(losses, estimates, strict=True)
    ]
    return [*own, Cell(f"{scores.oracle:.4f}", False, _interval(compared.oracle))]


def tokens(turn: ExcerptTurn, colours: dict[str, str]) -> list[Token]:
    """The tokens of a turn with their backgrounds and what is shown on pointing at them."""
    values = turn.values
    backgrounds = blend(values.weights, list(colours.values()))
    shown = []
    for index, piece in enumerate(turn.pieces):
        parts = [
            f"{name}: weight {weight:.2f}, loss {loss:.3f}"
            for name, weight, loss in zip(colours, values.weights[index], values.specialists[index], strict=True)
        ]
        title = "\n".join([f"fused: loss {values.fused[index]:.3f}", *parts])
        shown.append(Token(_visible(piece), backgrounds[index], title))
    return shown


def _grouped(
    excerpts: list[Excerpt], domains: list[str], colours: dict[str, str]
) -> list[tuple[str, list[tuple[Excerpt, list[tuple[str, list[Token]]]]]]]:
    """By domain: the excerpts, each with the prompts and the tokens of its turns."""
    shown = [(excerpt, [(turn.prompt, tokens(turn, colours)) for turn in excerpt.turns]) for excerpt in excerpts]
    return [(name, [own for own in shown if own[0].domain == name]) for name in domains]


def _visible(piece: str) -> str:
    """Gives line breaks something to see; the page's style does so for tokens that end within a character."""
    return piece.replace("\n", "↵\n")


def _extreme(token: ExtremeToken, colours: dict[str, str]) -> tuple[ExtremeToken, list[Token], int]:
    """A helped or hurt token with the tokens around it, and which of them it is."""
    backgrounds = blend(token.weights, list(colours.values()))
    shown = [
        Token(_visible(piece), background, _weights(colours, weights))
        for piece, background, weights in zip(token.pieces, backgrounds, token.weights, strict=True)
    ]
    return token, shown, token.place


def _weights(colours: dict[str, str], weights: np.ndarray) -> str:
    return "\n".join(f"{name}: weight {weight:.2f}" for name, weight in zip(colours, weights, strict=True))


def _interval(own: Estimate) -> str:
    return f"{own.low:.3f} to {own.high:.3f}"


def _share(own: Estimate | None) -> str:
    """A share and its interval as text."""
    if own is None:
        return "no gap"
    # the added zero makes a plus of what was rounded to minus zero
    value, low, high = (f"{round(share, 2) + 0.0:.0%}".replace("-", "−") for share in (own.value, *own.interval))
    return f"{value} ({low} to {high})"
