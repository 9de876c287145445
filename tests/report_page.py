"""Reads `report.html`: its structure, and the numbers that it shows, to compare with what they must be."""

import html
import math
import re
from collections.abc import Mapping, Sequence
from html.parser import HTMLParser
from typing import Any

import pytest

from tests.report_reference import Tokens


class Page(HTMLParser):
    """Checks that tags close in order; keeps tags, links and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.links: list[str] = []
        self.identifiers: list[str] = []
        self.text = ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.links += [value or "" for name, value in attributes if name.split(":")[-1] in ("src", "href")]
        self.identifiers += [value or "" for name, value in attributes if name == "id"]
        if tag not in ("meta", "link", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attributes)
        self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def check_numbers(source: str, wanted: Mapping[str, Any]) -> None:
    """The table, the numbers at the top, the entropies, the shares of the gap, the calibration, the plots' texts.

    Args:
        source: the page.
        wanted: what `report.json` must hold.
    """
    lines = [*wanted["domains"].items(), ("overall", wanted["overall"])]
    rows = [_row(name, own) for name, own in lines]
    shown = re.findall(r"<tr[^>]*><td>(\w+)</td><td>(\d+)</td>\s*<td>(\d+)</td>(.*?)</tr>", source, re.DOTALL)
    for (name, samples, count, cells), row in zip(shown, rows, strict=True):
        assert [name, int(samples), int(count)] == row[:3]
        close(re.findall(r'"value">([\d.]+)<', cells), row[3], 4)
        close(re.findall(r"<small>([\d.]+) to", cells), [low for low, _ in row[4]], 3)
        close(re.findall(r"to ([\d.]+)</small>", cells), [high for _, high in row[4]], 3)
    overall = wanted["overall"]["cross_entropy"]
    top = [overall["fused"], min(overall["specialists"].values()), overall["uniform"], overall["oracle"]]
    close(re.findall(r'<div class="number[ a-z]*"><b>([\d.]+)</b>', source), top, 4)
    entropies = re.findall(r'width: ([\d.]+)%"></span></span><span\s+class="value">([\d.]+)</span>', source)
    close([value for _, value in entropies], [own["gate_entropy"] for _, own in lines], 3)
    full = math.log(len(overall["specialists"]))
    close(re.findall(r"of at most ln \d = ([\d.]+)", source), [full], 3)
    close([width for width, _ in entropies], [100 * own["gate_entropy"] / full for _, own in lines], 1)
    _check_shares(source, [*wanted["domains"].items(), ("mean of the domains", wanted["mean"]), lines[-1]])
    calibration = wanted["overall"]["calibration"]
    found = re.search(r"over all domains\s+([\d.]+), where the most probable token is right in\s+([\d.]+)%", source)
    assert found is not None
    close(found.group(1), calibration["expected_calibration_error"], 3)
    close(found.group(2), 100 * calibration["accuracy"], 1)
    _check_plots(source, lines)


def _row(name: str, own: Mapping[str, Any]) -> list[Any]:
    losses, intervals = own["cross_entropy"], own["confidence_interval"]["cross_entropy"]
    keys = ("uniform", "fused", "oracle")
    values = [*losses["specialists"].values(), *(losses[key] for key in keys)]
    ends = [*intervals["specialists"].values(), *(intervals[key] for key in keys)]
    return [name, own["samples"], own["response_tokens"], values, ends]


def _check_shares(source: str, lines: Sequence[tuple[str, Mapping[str, Any]]]) -> None:
    share = r"([−\d]+)% \(([−\d]+)% to ([−\d]+)%\)"
    shown = re.findall(rf"<tr><td>([\w ]+)</td><td>{share}</td><td>{share}</td></tr>", source)
    for (name, *numbers), (wanted, own) in zip(shown, lines, strict=True):
        assert name == wanted
        intervals = own["confidence_interval"]
        values = [100 * value for key in ("gap_closed", "gap_closed_single") for value in (own[key], *intervals[key])]
        close([number.replace("−", "-") for number in numbers], values, 0)


def _check_plots(source: str, lines: Sequence[tuple[str, Mapping[str, Any]]]) -> None:
    """What the plots write; the lengths of their bars are matplotlib's."""
    plots = {
        label: re.findall(r"<text[^>]*>([^<]*)</text>", body)
        for label, body in re.findall(r'<svg[^>]*aria-label="([^"]*)"[^>]*>(.*?)</svg>', source, re.DOTALL)
    }
    bars = [text for text in plots["Bar chart of the cross-entropies by domain"] if re.fullmatch(r"\d+\.\d\d", text)]
    series = [[own["cross_entropy"]["specialists"][name] for _, own in lines] for name in lines[0][1]["gate"]]
    series += [[own["cross_entropy"][key] for _, own in lines] for key in ("uniform", "fused", "oracle")]
    close(bars, [value for values in series for value in values], 2)
    heat = plots["Heat map of the mean gate weights, domains by specialists"]
    weights = [value for _, own in lines for value in own["gate"].values()]
    close([text for text in heat if re.fullmatch(r"0\.\d{3}", text)], weights, 3)
    errors = [re.fullmatch(r"(\w+): ECE ([\d.]+)", text) for text in plots[_RELIABILITY]]
    found = {own[1]: own[2] for own in errors if own}
    assert found.keys() == {name for name, _ in lines}
    close(list(found.values()), [own["calibration"]["expected_calibration_error"] for _, own in lines], 3)


_RELIABILITY = "Reliability diagrams of the fused model by domain"


def check_samples(source: str, tokens: Mapping[str, Sequence[Tokens]]) -> None:
    """What each token of the coloured samples says of itself: losses and weights."""
    samples = re.findall(
        r'<div class="sample">\s*<p class="quiet">(\w+)\.valid\.jsonl:(\d+)(.*?)</div>\n</div>', source, re.DOTALL
    )
    assert len(samples) == 9
    for domain, line, body in samples:
        own = tokens[domain][int(line) - 1]
        titles = [html.unescape(title) for title in re.findall(r'title="(fused: loss [^"]*)"', body)]
        shown = [[float(number) for number in re.findall(r"(?:loss|weight) ([\d.]+)", title)] for title in titles]
        assert len(shown) == len(own["fused"])
        for place, (fused, *pairs) in enumerate(shown):
            close([fused, *pairs[1::2]], [own["fused"][place].item(), *own["specialists"][place].tolist()], 3)
            close(pairs[::2], own["weights"][place].tolist(), 2)


def close(shown: Any, wanted: Any, digits: int) -> None:
    """Whether numbers are those that were rounded to so many digits, to 1e-4 before."""
    values = [float(one) for one in shown] if isinstance(shown, list) else float(shown)
    assert values == pytest.approx(wanted, abs=0.501 * 10**-digits + 2e-4 * 10 ** max(0, 2 - digits))
