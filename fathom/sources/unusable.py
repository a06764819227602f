"""Why a row can't be used: the one exception of the sources, and what no text of a row may hold."""

from __future__ import annotations

from typing import Any

LONGEST = 400
"""Characters of a row's own text that a message quotes."""


class Unusable(Exception):
    """Says why a row is set aside; never leaves the sources.

    reason: one of few, without the row's own values, so that rows can be counted by it. detail: those values,
    kept as one line of printable text, not too long.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        self.reason = reason
        self.detail = " ".join(detail[:LONGEST].encode("utf-8", "backslashreplace").decode().split())
        super().__init__(f"{reason} ({self.detail})" if detail else reason)


def check_plain(value: Any, name: str) -> None:
    """Raises Unusable for what JSON Lines can't carry or no tokenizer should see: null bytes, text that isn't
    Unicode (lone surrogates), and values that aren't plain JSON. name: of the field, for the message.
    """
    if isinstance(value, str):
        if "\0" in value:
            raise Unusable("null byte", f"in {name}")
        if not value.isascii():
            try:
                value.encode()
            except UnicodeEncodeError:
                raise Unusable("text is not Unicode", f"in {name}") from None
    elif isinstance(value, list | tuple):
        for item in value:
            check_plain(item, name)
    elif isinstance(value, dict):
        for key, item in value.items():
            check_plain(str(key), name)
            check_plain(item, name)
    elif not isinstance(value, bool | int | float | None):
        raise Unusable("a value is not plain JSON", f"{type(value).__name__} in {name}")
