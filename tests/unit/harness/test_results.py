"""From the harness's dictionaries to JSON and to a table, and the paper's tasks by the harness's names."""

import numpy

from megafuser.harness.paper_results import COLUMNS, MODELS
from megafuser.harness.results import scores, table

FUSED = {
    "results": {
        "gsm8k": {
            "alias": "gsm8k",
            "exact_match,strict-match": 0.25,
            "exact_match_stderr,strict-match": 0.05,
            "exact_match,flexible-extract": 0.5,
            "exact_match_stderr,flexible-extract": "N/A",
        },
        "sums": {"acc,none": numpy.float64(0.125), "acc_stderr,none": float("nan"), "alias": "sums", "sample_len": 8},
    }
}
ALONE = {"results": {"gsm8k": {"exact_match,strict-match": 0.75}}}


def test_scores_have_their_errors():
    assert scores(FUSED)["gsm8k", "exact_match (strict-match)"] == (0.25, 0.05)
    assert scores(FUSED)["gsm8k", "exact_match (flexible-extract)"] == (0.5, None)
    assert len(scores(FUSED)) == 3


def test_a_table_sets_models_and_the_paper_side_by_side():
    lines = table({"fused": FUSED, "code": ALONE}, "RUN").splitlines()
    assert lines[0] == "# RUN"
    assert lines[2] == "| task | metric | fused | code | paper's UltraFuser (%) |"
    assert lines[4] == "| gsm8k | exact_match (strict-match) | 0.2500 ± 0.0500 | 0.7500 | 54.59 |"
    assert lines[6] == "| sums | acc | 0.1250 |  |  |"
    assert "| WizardMath | 56.18 |" in lines
    own = {"results": {"sums": FUSED["results"]["sums"]}}
    assert "paper" not in table({"fused": own}, "RUN")


def test_the_paper_has_a_number_for_each_column():
    assert all(column in values for column, _ in COLUMNS.values() for values in MODELS.values())
    best = {column: max(MODELS, key=lambda model: MODELS[model][column]) for column in MODELS["UltraFuser"]}
    assert best["TQA"] == best["HEval"] == best["SAT"] == "UltraFuser"
    assert best["GSM8K"] == best["MATH"] == "WizardMath"
