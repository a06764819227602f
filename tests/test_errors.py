"""How another library's error becomes part of one line."""

import pytest

from fathom.errors import first_line


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (ValueError("no such thing"), "no such thing"),
        (ValueError("\n  no such thing\nat all\n"), "no such thing"),
        (ValueError("what is wrong:\n  this\nand that"), "what is wrong: this"),
        (ValueError("what is wrong:"), "what is wrong:"),
        (TimeoutError(), "TimeoutError"),
        (OSError(" \n"), "OSError"),
    ],
)
def test_the_first_line_of_an_error_or_its_kind(error, told):
    assert first_line(error) == told
