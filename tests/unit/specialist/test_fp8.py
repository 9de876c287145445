"""Which FP8 recipe a specialist computes in, and how the log says so; the multiples are test_layout_checks.py's."""

import pytest

from megafuser.config.compute import PrecisionConfig
from megafuser.specialist.fp8 import recipe, recipes_in_use


@pytest.mark.parametrize(
    ("fp8", "trains", "used"),
    [
        (None, False, None),
        ("delayed", True, "delayed"),
        ("delayed", False, "tensorwise"),
        ("tensorwise", False, "tensorwise"),
        ("blockwise", False, "blockwise"),
    ],
)
def test_delayed_scales_need_a_backward(fp8: str | None, trains: bool, used: str | None) -> None:
    assert recipe(PrecisionConfig(fp8=fp8), trains=trains) == used  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("fp8", "trained", "words"),
    [
        (None, (), None),
        ("delayed", ("text", "code"), "delayed"),
        ("delayed", ("text",), "delayed, but tensorwise for code, frozen"),
        ("delayed", (), "tensorwise in place of delayed, since no specialist trains"),
        ("blockwise", (), "blockwise"),
    ],
)
def test_the_log_says_what_is_used(fp8: str | None, trained: tuple[str, ...], words: str | None) -> None:
    trains = {name: name in trained for name in ("text", "code")}
    assert recipes_in_use(PrecisionConfig(fp8=fp8), trains) == words  # type: ignore[arg-type]
