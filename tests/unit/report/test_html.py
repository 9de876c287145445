"""The page: what it says, and that nothing it shows is taken for markup."""

import dataclasses

import pytest
from markupsafe import escape

from megafuser.report.bootstrap import Estimate
from megafuser.report.comparison import compare
from megafuser.report.html import Cell, _share, cells, in_a_sentence, render
from megafuser.report.scores import Scores
from tests.unit.report.made_up import DOMAINS, NAMES, excerpt, report, scores, table

BETTER, WORSE = (f"D: the fused model is {own} than the best specialist, text," for own in ("better", "worse"))


@pytest.mark.parametrize(
    ("fused", "says"),
    [
        (1.5, f"{BETTER} by 0.500 nats per token (1.500 against 2.000, 25.0%)."),
        (2.5, f"{WORSE} by 0.500 nats per token (2.500 against 2.000, 25.0%)."),
        (2.0006, "D: the fused model is worse than the best specialist, text, by 0.001 nats per token (2.001 against"),
        (2.0004, "D: the fused model is as good as the best specialist, text (2.000 nats per token)."),
        (2.00001, "D: the fused model is as good as the best specialist, text (2.000 nats per token)."),
    ],
)
def test_the_verdict_is_one_sentence(fused: float, says: str) -> None:
    assert in_a_sentence("D", scores(fused, 2.0, 3.0, 1.0)).startswith(says)


def test_the_best_of_a_row_is_a_model() -> None:
    def made(own: Scores) -> list[Cell]:
        return cells(own, compare({"D": table(own)}, NAMES, seed=1).overall)

    assert [cell.is_best for cell in made(scores(2.2, 2.0, 3.0, 1.0))] == [True, False, False, False, False]
    assert [cell.text for cell in made(scores(1.5, 2.0, 3.0, 1.0))][3:] == ["1.5000", "1.0000"]
    # the three samples have 0.9, 1 and 1.2 times the mean
    assert [cell.interval for cell in made(scores(1.5, 2.0, 3.0, 1.0))][3] == "1.350 to 1.800"


def test_every_text_is_escaped() -> None:
    page = render(report(), [excerpt(DOMAINS[0], ["<script>", " \n", ""], response_tokens=9)], None)
    assert "<script" not in page
    assert "&lt;script&gt;</span>" in page
    assert "Say &lt;hello&gt;" in page
    assert "code <b>" not in page
    assert "<h3>zebra &amp; co</h3>" in page
    assert " ↵\n</span>" in page
    assert "the first 3 of\n9 response tokens" in page
    assert "(the first 3 samples of each domain)" in page
    assert "<h2>Training</h2>" not in page
    assert "a &lt;b&gt;</span>" in page
    assert "Say &lt;hello&gt; now" in page


def test_the_verdict_stands_above_the_numbers() -> None:
    own = report()
    page = render(own, [], None)
    assert own.analysis.decision.verdict == "unclear"
    assert page.index('<section class="verdict unclear">') < page.index("<h2>Cross-entropy</h2>")
    for reason in own.analysis.decision.reasons:
        assert str(escape(reason.text)) in page


def test_after_joint_training_the_specialists_are_others() -> None:
    says = "as joint training has left them"
    assert says in render(report(), [], None)
    assert says not in render(dataclasses.replace(report(), stage="warmup"), [], None)


def test_shares_of_the_gap_are_written_without_a_negative_zero() -> None:
    assert _share(Estimate(-0.004, -0.52, 0.004)) == "0% (−52% to 0%)"
    assert _share(None) == "no gap"


def test_helped_and_hurt_tokens_stand_in_their_context() -> None:
    page = render(report(), [], None)
    helped, hurt = page.index("Where fusion helps most"), page.index("Where fusion hurts most")
    assert helped < page.index("−2.50") < hurt < page.index("+3.50")
    assert page.count('<span class="this"') == 2
    assert page.index('<span class="this"') < page.index(">helped</span>") < hurt


def test_a_token_tells_its_weights_and_losses() -> None:
    page = render(report(), [excerpt(DOMAINS[1], ["a"])], None)
    title = "fused: loss 1.250\ntext: weight 0.25, loss 0.500\ncode &lt;b&gt;: weight 0.75, loss 2.000"
    assert f'title="{title}"' in page


def test_domains_keep_their_order() -> None:
    page = render(report(), [excerpt(DOMAINS[0], ["a"]), excerpt(DOMAINS[1], ["b"])], None)
    assert page.index(f"<h3>{DOMAINS[0].replace('&', '&amp;')}</h3>") < page.index(f"<h3>{DOMAINS[1]}</h3>")


def test_a_domain_may_be_called_overall() -> None:
    own = report()
    calibration = {"overall": own.analysis.calibration[DOMAINS[0]]}
    analysis = dataclasses.replace(own.analysis, calibration=calibration)
    assert render(dataclasses.replace(own, analysis=analysis), [], None).count("overall: ECE") == 2
