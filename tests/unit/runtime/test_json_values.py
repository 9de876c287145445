"""What becomes of values that JSON does not have."""

import json

import numpy
import pytest

from megafuser.runtime.json_values import json_safe


def test_json_has_no_number_that_is_none():
    values = {1: float("nan"), "a": numpy.float32(0.5), "b": (numpy.int64(3), float("inf")), "c": len, "d": {2.0}}
    safe = json.loads(json.dumps(json_safe(values), allow_nan=False))
    assert safe == {"1": None, "a": 0.5, "b": [3, None], "c": str(len), "d": [2.0]}


@pytest.mark.parametrize("value", [[], {}, None, True, "text"])
def test_what_json_has_stays(value):
    assert json_safe(value) == value
