"""API keys: who may ask, and how much. Only hashes of keys are kept, and they are compared in constant time.

    python -m fathom.serve.keys alice >> keys.yaml

prints the new key once, to stderr, and its entry for the file of keys:

    alice: {sha256: 5e88..., requests_per_minute: 60, tokens_per_minute: 100000, concurrency: 8}

A key is 256 random bits, so a plain hash of it can't be reversed by guessing. Not a user database: a key is
withdrawn by taking its entry out of the file and starting the server again.
"""

from __future__ import annotations

import argparse
import hashlib
import hmac
import re
import secrets
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

from pydantic import Field, ValidationError

from fathom.config import StageConfig
from fathom.document import load_document
from fathom.errors import InputError

VARIABLE = "FATHOM_SERVE_KEYS"
"""Environment variable with entries `name:sha256`, separated by white space or commas."""

NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")


class Limits(StageConfig):
    """What one key may ask for; nothing is limited where a value is absent.

    tokens_per_minute: of prompts and completions. concurrency: answers in the making at once.
    """

    requests_per_minute: float | None = Field(None, gt=0)
    tokens_per_minute: float | None = Field(None, gt=0)
    concurrency: int | None = Field(None, ge=1)


class KeyEntry(Limits):
    """A key in the file. sha256: of the key, in hexadecimal digits."""

    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


def sha256(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()


class Keys:
    """The keys that a server knows, by name. Without any, everyone may ask."""

    def __init__(self, entries: Mapping[str, KeyEntry]):
        self.entries = dict(entries)

    def __bool__(self) -> bool:
        return bool(self.entries)

    def owner(self, key: str) -> str | None:
        """The name of a presented key, or None. Takes as long for a wrong key as for a right one."""
        presented, found = sha256(key), None
        for name, entry in self.entries.items():
            if hmac.compare_digest(entry.sha256, presented):
                found = name
        return found


def read_keys(path: Path | None, usual: Limits, variable: str | None = None) -> Keys:
    """The keys of a YAML file and of the environment. usual: limits of entries that name none.

    variable: value of the environment variable. Raises InputError that names the file and the entry, never a hash.
    """
    given = load_document(path).values if path else {}
    entries: dict[str, KeyEntry] = {}
    for name, values in given.items():
        if isinstance(values, str):
            values = {"sha256": values}
        entries[name] = _entry(name, values, usual, str(path))
    for word in filter(None, re.split(r"[\s,]+", variable or "")):
        name, colon, digest = word.partition(":")
        if not colon:  # a whole key, perhaps: it is not repeated
            raise InputError(f"${VARIABLE}: expected entries of the form name:sha256")
        entries[name] = _entry(name, {"sha256": digest}, usual, f"${VARIABLE}")
    digests = [entry.sha256 for entry in entries.values()]
    if len(set(digests)) < len(digests):
        raise InputError(f"{path or f'${VARIABLE}'}: two names have the same key")
    return Keys(entries)


def _entry(name: str, values: object, usual: Limits, where: str) -> KeyEntry:
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise InputError(f"{where}: expected a name of letters, digits, '.', '_' and '-' for a key")
    if not isinstance(values, dict):
        raise InputError(f"{where}: {name}: expected {{sha256: ...}}")
    try:
        return KeyEntry.model_validate({**usual.model_dump(), **values})
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        what = "expected the 64 hexadecimal digits of a key's SHA-256" if first["loc"] == ("sha256",) else first["msg"]
        raise InputError(f"{where}: {name}: {'.'.join(map(str, first['loc']))}: {what}") from None


def new_key() -> str:
    return f"fathom-{secrets.token_urlsafe(32)}"


def main() -> None:
    parser = argparse.ArgumentParser(description="Make an API key: it goes to stderr once, its entry to stdout.")
    parser.add_argument("name", help="whose key it is, for the file and the access log")
    name = parser.parse_args().name
    if not NAME.fullmatch(name):
        sys.exit(f"{name!r}: expected letters, digits, '.', '_' and '-'")
    key = new_key()
    print(f"{name}: {{sha256: {sha256(key)}}}")
    print(f"the key of {name}, which is shown this once: {key}", file=sys.stderr)


if __name__ == "__main__":
    main()
