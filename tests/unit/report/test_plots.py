"""The plots as part of a page: well-formed, named apart, and without anything that points outside."""

import math
import re
from xml.etree import ElementTree

import pytest

from megafuser.report import plots
from megafuser.report.bootstrap import Estimate
from megafuser.report.curves import Curves
from megafuser.report.gate_checks import PAPER
from tests.unit.report.made_up import DOMAINS, NAMES, report


def curves() -> Curves:
    def line(stage: str, step: int) -> dict:
        values = {"stage": stage, "step": step, "loss": math.exp(-step), "lr": 1e-3, "grad_norm": 0.5}
        values |= {f"loss/{DOMAINS[0]}": 1.0}
        return values | {f"gate/{DOMAINS[0]}/{name}": 0.5 for name in NAMES}

    return Curves(
        train={stage: [line(stage, step) for step in (1, 2, 3)] for stage in ("warmup", "joint")},
        valid={"joint": [line("joint", 3)]},
    )


DRAWN = {
    "bars": lambda: plots.cross_entropy_bars(report()),
    "gate": lambda: plots.gate_heatmap(report()),
    "paper": lambda: plots.paper_heatmap(PAPER),
    "reliability": lambda: plots.reliability_diagram(list(report().analysis.calibration.items())),
    "gap": lambda: plots.gap_closed(report()),
    "rates": lambda: plots.rate_curves(curves()),
    "loss": lambda: plots.loss_curves(curves(), DOMAINS),
    "gatecurves": lambda: plots.gate_curves(curves(), DOMAINS, NAMES),
}


def texts(svg: str) -> list[str]:
    return [element.text or "" for element in tree(svg).iter() if element.tag.endswith("text")]


def tree(svg: str) -> ElementTree.Element:
    # A name space that HTML has built in
    return ElementTree.fromstring(svg.replace("<svg ", '<svg xmlns:xlink="x" ', 1))


@pytest.mark.parametrize("name", list(DRAWN))
def test_a_plot_is_an_element_of_a_page(name: str) -> None:
    svg = DRAWN[name]()
    root = tree(svg)
    assert root.tag == "svg"
    assert root.get("aria-label")
    assert "http" not in svg
    assert "<image" not in svg
    identifiers = re.findall(r'\bid="([^"]*)"', svg)
    assert all(own.startswith(f"{name}-") for own in identifiers)
    assert set(re.findall(r'(?:url\(|href=")#([^)"]*)', svg)) <= set(identifiers)
    assert "currentColor" in svg


def test_bars_stand_for_all_losses_and_all_names() -> None:
    shown = texts(DRAWN["bars"]())
    assert {*DOMAINS, *NAMES, "overall", "uniform", "fused", "oracle"} <= set(shown)
    assert {"1.50", "2.20", "1.90", "2.50"} <= set(shown)


def test_numbers_stand_above_the_whiskers() -> None:
    # SVG's vertical axis points down
    svg = DRAWN["bars"]()
    numbers = [
        (float(x), float(y))
        for x, y, text in re.findall(r'<text [^>]*?x="([\d.]+)" y="([\d.]+)"[^>]*>([^<]*)</text>', svg)
        if re.fullmatch(r"\d\.\d\d", text)
    ]
    whiskers = re.findall(r'<path d="M ([\d.]+) [\d.]+ \nL \1 ([\d.]+) ', svg)
    assert len(numbers) == 3 * 5
    for x, y in numbers:
        (top,) = (float(top) for place, top in whiskers if abs(float(place) - x) < 3)
        assert y < top


def test_whiskers_reach_down_and_up_to_the_intervals_ends() -> None:
    found = plots._whiskers([Estimate(2.0, 1.5, 4.0), Estimate(2.0, 2.25, 3.0), Estimate(2.0, 1.0, 1.5)])
    assert found.tolist() == [[0.5, 0.0, 1.0], [2.0, 1.0, 0.0]], "a value may lie outside of its interval"


def test_steps_are_whole() -> None:
    ticks = [text for text in texts(DRAWN["rates"]()) if re.fullmatch(r"[123](\.\d+)?", text)]
    assert {"1", "2", "3"} <= set(ticks)


def test_the_heat_map_writes_its_weights() -> None:
    shown = texts(DRAWN["gate"]())
    assert {*DOMAINS, *NAMES, "overall"} <= set(shown)
    assert (shown.count("0.250"), shown.count("0.750")) == (3, 3)


def test_new_plots_name_what_they_show() -> None:
    assert {"0.450", "0.590", "0.430"} <= set(texts(DRAWN["paper"]()))
    assert {"learning rate", "gradient norm", "warmup", "joint"} <= set(texts(DRAWN["rates"]()))
    assert {*DOMAINS, "overall", "mean of the domains"} <= set(texts(DRAWN["gap"]()))
    assert {f"{name}: ECE 0.250" for name in DOMAINS} <= set(texts(DRAWN["reliability"]()))


def test_curves_name_stages_and_specialists() -> None:
    assert {"warmup", "joint", "all", "all, validation"} <= set(texts(DRAWN["loss"]()))
    assert {f"{DOMAINS[0]}, warmup", f"{DOMAINS[1]}, joint", *NAMES} <= set(texts(DRAWN["gatecurves"]()))
