"""`report.html`: one page that needs nothing else, made from a template that escapes every text."""

import importlib.resources
import math
from dataclasses import dataclass

import jinja2
from markupsafe import Markup

from megafuser.evaluation import plots
from megafuser.evaluation.curves import Curves
from megafuser.evaluation.scores import Report, Scores
from megafuser.figures.palette import blend, specialist_colours
from megafuser.watching.excerpts import Excerpt, ExcerptTurn


@dataclass(frozen=True)
class Cell:
    """A cross-entropy of the table."""

    text: str
    is_best: bool


@dataclass(frozen=True)
class Token:
    """A response token, as the page shows it."""

    text: str
    background: str
    title: str


def render(report: Report, excerpts: list[Excerpt], curves: Curves | None) -> str:
    """Makes the page.

    Args:
        report: the numbers.
        excerpts: samples to show, in the order of the domains.
        curves: of the run that the checkpoint belongs to, where they were found.
    """
    source = importlib.resources.files("megafuser.evaluation").joinpath("report.html.j2").read_text(encoding="utf-8")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    colours = specialist_colours(report.specialists)
    domains = list(report.domains)
    specialists = report.specialists
    drawn = {
        "bars": plots.cross_entropy_bars(report),
        "gate": plots.gate_heatmap(report),
        "loss": plots.loss_curves(curves, domains) if curves else "",
        "gate_curves": plots.gate_curves(curves, domains, specialists) if curves else "",
    }
    return environment.from_string(source).render(
        report=report,
        headline=verdict("All domains together", report.overall),
        verdicts=[verdict(name, scores) for name, scores in report.domains.items()],
        table=[(name, scores, cells(scores)) for name, scores in report.lines],
        max_entropy=math.log(len(specialists)),
        meters=[(name, scores, _share(scores.gap_closed)) for name, scores in report.lines],
        plots={name: Markup(svg) for name, svg in drawn.items()},
        has_curves=curves is not None,
        colours=colours,
        groups=_grouped(excerpts, domains, colours),
    )


def verdict(name: str, scores: Scores) -> str:
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


def cells(scores: Scores) -> list[Cell]:
    """The specialists', the uniform mixture's, the fused model's and the oracle's loss; the oracle, no model, is never
    the best.
    """
    losses = [*scores.specialists.values(), scores.uniform, scores.fused]
    best = min(losses)
    own = [Cell(f"{loss:.4f}", is_best=loss == best) for loss in losses]
    return [*own, Cell(f"{scores.oracle:.4f}", is_best=False)]


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


def _share(value: float | None) -> tuple[str, float]:
    """A share as text and as the width of a bar in percent."""
    if value is None:
        return "no gap", 0.0
    return f"{value:z.0%}".replace("-", "−"), min(max(value, 0.0), 1.0) * 100
