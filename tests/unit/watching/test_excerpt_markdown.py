"""Samples as Markdown, and what TensorBoard's page makes of them."""

import re
from html import unescape

from tensorboard.plugin_util import markdown_to_safe_html

from megafuser.watching.excerpt_markdown import SQUARES, markdown
from tests.unit.watching.made_up import excerpt

SPECIALISTS = ["a_b", "code"]


def test_a_square_stands_where_another_specialist_leads() -> None:
    weights = [[0.9, 0.1], [0.6, 0.4], [0.1, 0.9], [0.8, 0.2]]
    shown = markdown(excerpt(["a", "b", "c", "d"], weights), SPECIALISTS)
    assert shown.startswith("🟦 a\\_b, 🟧 code\n\n")
    assert shown.endswith("\n\n🟦ab🟧c🟦d")
    assert "4 of 9 response tokens, mean loss 1.000, mean weights a\\_b 0.60, code 0.40" in shown


def test_the_page_shows_texts_as_they_are() -> None:
    """No Markdown or HTML of a text's own comes through."""
    pieces = ["# no *heading*\n", "<script>alert(1)</script>", " `x` | 1. [a](http://b) &amp; ~~s~~\n~~~\n* x\n~~~"]
    html = markdown_to_safe_html(markdown(excerpt(pieces, [[0.9, 0.1]] * 3), SPECIALISTS))
    for tag in ("script", "h1", "a ", "em", "code", "table", "ol"):
        assert f"<{tag}" not in html, tag
    plain = unescape(re.sub(r"<[^>]+>", "", html.replace("<br>", "\n")))
    assert "What is *this*?" in plain and "\n<b>\n" in plain
    assert "# no *heading*" in plain
    assert "<script>alert(1)</script> `x` | 1. [a](http://b) &amp; ~~s~~" in plain
    assert plain.endswith("~~~\n* x\n~~~")
    assert html.count("<blockquote>") == 1, "the prompt, in two lines"


def test_lines_stay_as_they_are() -> None:
    """Empty and indented ones too, and none is shown twice: the page keeps white space."""
    pieces = ["def f():\n", "    x = 1\n\n", "    return x\n"]
    html = markdown_to_safe_html(markdown(excerpt(pieces, [[0.9, 0.1]] * 3), SPECIALISTS))
    assert "🟦def f():<br>    x = 1<br><br>    return x<br>" in html
    assert "<pre" not in html


def test_more_specialists_than_squares_are_named() -> None:
    names = [f"s{index}" for index in range(len(SQUARES) + 1)]
    weights = [[float(index == leader) for index in range(len(names))] for leader in (0, 8)]
    assert markdown(excerpt(["a", "b"], weights), names).endswith("\n\n«s0» a«s8» b")
