"""What a line of ours says of a library's error."""

import pytest

from megafuser.errors import first_line, in_one_line


@pytest.mark.parametrize(
    ("message", "first", "whole"),
    [
        ("no such thing", "no such thing", "no such thing"),
        ("\n no such thing.\n  at line 3\n", "no such thing", "no such thing. at line 3"),
        ("", "ValueError", "ValueError"),
        (" \n", "ValueError", "ValueError"),
    ],
)
def test_an_error_is_a_part_of_a_line(message: str, first: str, whole: str) -> None:
    assert first_line(ValueError(message)) == first
    assert in_one_line(ValueError(message)) == whole
