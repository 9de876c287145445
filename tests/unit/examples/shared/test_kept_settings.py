"""An output directory has one set of settings; what differs is named."""

from pathlib import Path

import pytest

from examples.shared.kept_settings import keep_values, read_values
from megafuser.errors import UserError


def test_what_differs_is_named_wherever_it_is(tmp_path: Path) -> None:
    path = tmp_path / "settings.json"
    values = {"steps": 3, "limit": None, "data": {"text": {"files": ["a"]}, "code": {"files": ["b"]}}}
    for _ in range(2):
        keep_values(values, path)
    for other, names in (
        (values | {"steps": 4}, "steps"),
        (values | {"data": values["data"] | {"code": {"files": ["c"]}}}, "data.code.files"),
        # as text they are not the same
        (values | {"steps": 3.0}, "steps"),
        ({"steps": 3, "data": values["data"]}, "limit"),
        (dict(reversed(values.items())), "order of all"),
        # which samples are drawn depends on it
        (values | {"data": dict(reversed(values["data"].items()))}, "order of data"),
    ):
        with pytest.raises(UserError) as refused:
            keep_values(other, path)
        assert f"{tmp_path} was made with other settings ({names}); remove it" in str(refused.value)
    assert read_values(path) == values
