"""The miniature's tables: claims, intervals, cells; its jobs fit together."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from examples.miniature import settings as all_settings
from examples.miniature.claims import claims
from examples.miniature.fused_config import core_variants, fused_config, other_variants
from examples.miniature.jobs import Jobs
from examples.miniature.settings import FULL
from examples.shared.marks import replace_marked
from examples.shared.measures import Measure, Row, intervals, right_interval, trained_tokens
from examples.shared.scheduler import critical_paths
from examples.shared.tables import format_claims, format_rows
from megafuser.errors import UserError


def measure(text: float, code: float, math: float, **others: Any) -> Any:
    losses = {"text": text, "code": code, "math": math}
    losses["mean"] = sum(losses.values()) / 3
    ends = {name: (value - 0.1, value + 0.1) for name, value in losses.items()}
    return Measure(losses, ends, **others)


def rows(fused: Any) -> dict[str, dict[int, Any]]:
    """One seed, of which only the fused model is given."""
    return {
        "fused": {1: fused},
        **{f"specialist-{name}": {1: measure(*own)} for name, own in SPECIALISTS.items()},
        **{f"trained-on-{name}": {1: measure(*own)} for name, own in TRAINED_ON.items()},
        **{name: {1: measure(9, 9, 9)} for name in ("linear", "ties", "dare")},
        "fine-tuned": {1: measure(3, 3, 3)},
        "larger": {1: measure(1.5, 1.5, 1.5)},
        "btx": {},
    }


SPECIALISTS = {"text": (2, 8, 8), "code": (8, 2, 8), "math": (8, 8, 2)}
TRAINED_ON = {"text": (1.7, 8, 8), "code": (8, 1.9, 8), "math": (8, 8, 1.9)}


def test_claims_hold_or_not_as_the_numbers_say() -> None:
    found = {claim.text: claim for claim in claims(rows(measure(1.8, 1.8, 1.8)))}
    assert all(claim.holds for claim in found.values() if claim.required)
    assert len([claim for claim in found.values() if claim.required]) == 10
    assert not found["below the text specialist trained on, in its own domain"].holds
    assert found["below the code specialist trained on, in its own domain"].holds
    assert not found["mean below one larger model of the same size from scratch"].holds
    assert "mean below BTX" not in found
    assert found["below the best specialist on math"].seeds[1][1] == pytest.approx(-0.2)
    # worse than a specialist in one domain only
    found = {claim.text: claim for claim in claims(rows(measure(1.8, 2.1, 1.8)))}
    assert [claim.text for claim in found.values() if claim.required and not claim.holds] == [
        "below the best specialist on code"
    ]


def test_a_claim_must_hold_on_every_seed() -> None:
    two = rows(measure(1.8, 1.8, 1.8))
    for name, seeds in two.items():
        if seeds:
            two[name] = {1: seeds[1], 2: measure(2.5, 1.8, 1.8) if name == "fused" else seeds[1]}
    found = {claim.text: claim for claim in claims(two)}
    claim = found["below the best specialist on text"]
    assert claim.seeds[1][0] and not claim.seeds[2][0] and not claim.holds
    (line,) = [line for line in format_claims([claim]) if line.startswith("| below")]
    assert line == "| below the best specialist on text | yes | yes (-0.2000) | **no** (+0.5000) | +0.1500 ± 0.4950 |"


def test_cells_have_mean_and_spread_over_seeds_and_an_interval_over_samples() -> None:
    two = Row("fused", {1: measure(1.0, 2, 2, response_tokens=10), 2: measure(1.2, 2, 2, response_tokens=30)})
    table = format_rows(
        [two, Row("worse", {1: measure(3, 3, 3)}), Row("oracle", {1: measure(0, 0, 0)}, contender=False), Row("none")]
    )
    assert table[2].startswith("| fused | **1.100** ± 0.141 (1.000–1.200) | **2.000** ± 0.000 (1.900–2.100) |")
    assert table[2].endswith("|  | 20 |")
    assert table[3].startswith("| worse | 3.000 (2.900–3.100)") and "**" not in table[4] and len(table) == 5


def test_an_interval_is_as_wide_as_theory_says() -> None:
    random = np.random.default_rng(1)
    sums = random.normal(3.0, 1.0, 400)
    part = {name: {"sums": sums.tolist(), "tokens": [1] * 400} for name in ("text", "code", "math")}
    ends = intervals(part, 1)
    for name, independent in (("text", 1), ("mean", 3)):
        low, high = ends[name]
        assert (low + high) / 2 == pytest.approx(sums.mean(), abs=0.02)
        assert high - low == pytest.approx(2 * 1.96 * sums.std() / (400 * independent) ** 0.5, rel=0.15)


@pytest.mark.parametrize(("right", "count"), [(0, 200), (3, 200), (100, 200), (10, 10)])
def test_the_interval_of_right_answers_holds_what_the_answers_do_not_contradict(right: int, count: int) -> None:
    share = right / count
    for end in right_interval([True] * right + [False] * (count - right)):
        if 1e-9 < end < 1 - 1e-9:
            # the score test's statistic is just at its bound there
            assert abs(share - end) / (end * (1 - end) / count) ** 0.5 == pytest.approx(1.96, abs=1e-3)
        else:
            assert end == pytest.approx(share)


def test_tokens_of_a_gate_that_was_not_trained_do_not_count(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    lines = [("warmup", 0.0, 5), ("joint", 1.0, 7), ("joint", 0.0, 8)]

    def write(first_rate: float) -> None:
        made = [
            {
                "split": "train",
                "stage": stage,
                "lr": first_rate if stage == "warmup" else rate,
                "response_tokens": count,
            }
            for stage, rate, count in lines
        ]
        path.write_text("".join(json.dumps(line) + "\n" for line in [*made, {"split": "valid"}]), "utf-8")

    write(0.0)
    assert (trained_tokens(path, "warmup"), trained_tokens(path, "joint")) == (0, 15)
    write(0.1)
    assert (trained_tokens(path, "warmup"), trained_tokens(path, "joint")) == (5, 20)


def test_the_tables_take_the_marked_place(tmp_path: Path) -> None:
    (tmp_path / "plots").mkdir()
    (tmp_path / "plots" / "losses.svg").write_text("<svg/>", "utf-8")
    (tmp_path / "table.md").write_text("new ![losses](plots/losses.svg)", "utf-8")
    file = tmp_path / "docs" / "results.md"
    file.parent.mkdir()
    text = "before\n<!-- miniature:begin -->\n{}<!-- miniature:end -->\n<!-- other:begin -->\n<!-- other:end -->\n"
    file.write_text(text.format("old\n"), "utf-8")
    for _ in range(2):
        replace_marked(file, tmp_path, "miniature")
        assert file.read_text("utf-8") == text.format("new ![losses](miniature/losses.svg)\n")
    assert (file.parent / "miniature" / "losses.svg").exists()
    file.write_text("no marks", "utf-8")
    with pytest.raises(UserError, match="must have one line"):
        replace_marked(file, tmp_path, "miniature")


@pytest.mark.parametrize(("name", "minutes"), [("FULL", 150), ("FAST", 10)])
def test_the_jobs_fit_together_and_into_the_time(name: str, minutes: float) -> None:
    settings = getattr(all_settings, name)
    jobs = Jobs(settings, Path("/out"), Path("/downloads"), Path("/python"))
    every = jobs.all(settings.seeds)
    ranks = critical_paths(every)
    assert sum(job.seconds for job in every) / 2 < minutes * 60 and max(ranks.values()) < minutes * 60
    assert len({job.output for job in every}) == len(every)
    # the last job waits for all others, and another seed alone has what it needs
    assert set(every[-1].needs) == {job.name for job in every[:-1]}
    critical_paths(jobs.all(settings.seeds[-1:]))


def test_variants_differ_only_in_what_they_say() -> None:
    config = {
        variant.name: fused_config(FULL, Path("/out"), 1, variant, "dev")
        for variant in core_variants(FULL) + other_variants(FULL)
    }
    assert config["joint-only"]["joint"] == config["balanced"]["joint"] == config["unbalanced"]["joint"]
    assert config["joint-only"]["warmup"]["lr"] == 0 and config["joint-only"]["warmup"]["steps"] == 1
    assert config["unbalanced"]["data"]["balanced"] is False and config["balanced"]["data"]["balanced"] is True
    test = fused_config(FULL, Path("/out"), 1, SimpleNamespace(**vars(core_variants(FULL)[0])), "test")
    assert test["data"]["domains"]["text"]["valid"] == ["/out/data/text.test.jsonl"]
    # what no specialist was trained on
    assert test["data"]["domains"]["text"]["train"] == ["/out/data/text.fusion.jsonl"]
    test["data"]["domains"] = config["balanced"]["data"]["domains"]
    assert test == config["balanced"]
