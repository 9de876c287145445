"""The page about a run's data: complete, escaped, and in need of nothing else."""

import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest

from megafuser.config.load import load_config
from megafuser.data import statistics_page
from megafuser.data.statistics import gather
from megafuser.figures.palette import specialist_colours
from tests.fused_case import write_config
from tests.unit.data.statistics_case import configuration, made_up


@pytest.fixture(scope="module")
def document(tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "config.yaml"
    return gather(load_config(write_config(path, configuration()), []), *made_up())


@pytest.fixture(scope="module")
def page(document):
    return statistics_page.render(document)


class Reader(HTMLParser):
    """Collects cells, and everything that a browser would fetch."""

    def __init__(self):
        super().__init__()
        self.cells, self.fetched, self.tags = [], [], set()

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        for key, value in attributes:
            if key in ("src", "href", "xlink:href") and not (value or "").startswith("#"):
                self.fetched.append(value)

    def handle_data(self, data):
        self.cells.append(data.strip())


def test_the_page_has_all_numbers_and_fetches_nothing(page):
    reader = Reader()
    reader.feed(page)
    assert reader.fetched == [] and "script" not in reader.tags and "@import" not in page
    for shown in ("220", "45 / 30 / 90 / 90", "500 times", "data/text.jsonl:3", "data/b.jsonl", "75.0% of the draws"):
        assert shown in reader.cells, shown
    assert "Validation samples" in reader.cells and page.count("<svg") == 3


def test_texts_of_the_data_are_escaped(page):
    assert "<b>" not in page and "longer than 100 positions &lt;b&gt;" in page and "runs/&lt;x&gt;" in page


def test_plots_are_whole_and_share_no_identifiers(document, page):
    plots = [
        statistics_page.length_histograms(document, "train"),
        statistics_page.token_bars(document),
        statistics_page.seen_bars(document),
    ]
    for plot in plots:
        ElementTree.fromstring(plot.replace("xlink:href", "href"))
        assert plot in page
    assert "data/a.jsonl" in plots[2] and "responses" in plots[0]
    identifiers = re.findall(r'\bid="([^"]+)"', page)
    assert len(identifiers) == len(set(identifiers))


def test_equal_lengths_hide_no_specialist(document):
    """The curve on top is thinner than the one below it."""
    lengths = {"edges": [0, 32], "views": {"text": [3], "code": [3]}, "responses": [2]}
    own = document["splits"]["train"]["text"] | {"lengths": lengths}
    plot = statistics_page.length_histograms(document | {"splits": {"train": {"text": own}}}, "train")
    colours = specialist_colours(document["specialists"]).values()
    widths = [float(re.search(rf"stroke: {colour}; stroke-width: ([\d.]+)", plot)[1]) for colour in colours]
    assert widths[0] > widths[1] > 0


def test_shares_are_shown_where_sources_have_any(document, page):
    assert page.count("<th>share</th>") == 1, "of training; validation sources have none"


def test_a_split_without_a_single_length_in_a_bin_is_drawn(document):
    empty = {"edges": [0, 32], "views": {"text": [0], "code": [0]}, "responses": [0]}
    own = document["splits"]["train"]["text"] | {"lengths": empty}
    made = document | {"splits": {"train": {"text": own}}}
    assert statistics_page.length_histograms(made, "train").startswith("<svg")
