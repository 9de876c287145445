"""Which models an evaluation goes through, and what they are called."""

import pytest

from megafuser.harness.evaluate import _models


def test_the_fused_model_and_each_specialist_alone() -> None:
    assert _models(["text", "code"], None, alone=False) == {"fused": None}
    assert _models(["text", "code"], "code", alone=False) == {"code": None}
    found = _models(["text", "code"], None, alone=True)
    assert found == {"fused": None, "text": [1.0, 0.0], "code": [0.0, 1.0], "uniform": [0.5, 0.5]}
    assert next(iter(found)) == "fused", "results.json is the first one's"


@pytest.mark.parametrize("taken", ["fused", "uniform"])
def test_a_specialist_may_have_a_mixtures_name(taken: str) -> None:
    found = _models([taken, "code"], None, alone=True)
    assert found["fused"] is None
    assert found["uniform"] == [0.5, 0.5]
    assert found[f"{taken} alone"] == [1.0, 0.0]
    assert len(found) == 4
