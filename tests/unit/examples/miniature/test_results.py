"""The miniature's claims; its jobs fit together, and its variants differ in what they say."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from examples.miniature.claims import claims
from examples.miniature.fused_config import core_variants, fused_config, other_variants
from examples.miniature.jobs import Jobs
from examples.miniature.run import environment
from examples.miniature.settings import FAST, FULL, Settings
from examples.shared.scheduler import critical_paths
from examples.shared.tables import format_claims
from tests.unit.examples.measured import measure


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
    assert not found["below the text specialist, trained further, in its own domain"].holds
    assert found["below the code specialist, trained further, in its own domain"].holds
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


@pytest.mark.parametrize(("settings", "minutes"), [(FULL, 150), (FAST, 10)], ids=["full", "fast"])
def test_the_jobs_fit_together_and_into_the_time(settings: Settings, minutes: float) -> None:
    jobs = Jobs(settings, Path("/out"), Path("/downloads"), Path("/python"))
    every = jobs.all(settings.seeds)
    ranks = critical_paths(every)
    assert sum(job.seconds for job in every) / 2 < minutes * 60 and max(ranks.values()) < minutes * 60
    assert len({job.output for job in every}) == len(every)
    # the last job waits for all others, and another seed alone has what it needs
    assert set(every[-1].needs) == {job.name for job in every[:-1]}
    critical_paths(jobs.all(settings.seeds[-1:]))


def test_jobs_find_the_examples_wherever_the_run_was_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTHONPATH", raising=False)
    imports = [sys.executable, "-c", "import examples.miniature.settings, examples.smollm2.settings"]
    subprocess.run(imports, env=environment(), cwd=tmp_path, check=True)


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
