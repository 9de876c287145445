"""Which FP8 recipe a specialist computes in, and how the log says so; the multiples are test_layout_checks.py's."""

import typing

import pytest

from megafuser.config.compute import PrecisionConfig
from megafuser.specialist.fp8 import RECIPES, recipe, recipes_in_use


def test_every_recipe_of_the_configuration_is_described() -> None:
    allowed, _none = typing.get_args(typing.get_type_hints(PrecisionConfig)["fp8"])
    assert RECIPES.keys() == set(typing.get_args(allowed))


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
