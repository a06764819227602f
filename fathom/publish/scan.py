"""What must not leave the machine: keys and tokens, and paths that tell of the machine or its user.

It looks at every text file whole and at the heads of binary ones, for the shapes of common keys, for the values
of this process's own environment variables that are named like secrets, and for home and working
directories. It is a net, not a proof: a password in plain words has no shape.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

HEAD = 1 << 20
"""Bytes that are read of a file that is not text: the headers of weights lie there."""
SHORTEST = 8
"""Characters of a value in the environment, below which it may well occur by chance."""

KEYS = {
    "a Hugging Face token": rb"\bhf_[A-Za-z0-9]{20,}",
    "an OpenAI or Anthropic key": rb"\bsk-[A-Za-z0-9_-]{20,}",
    "an AWS key": rb"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b",
    "a GitHub token": rb"\b(?:gh[pousr]_[A-Za-z0-9]{30,}|github_pat_[A-Za-z0-9_]{30,})",
    "a Google key": rb"\bAIza[A-Za-z0-9_-]{35}",
    "a Slack token": rb"\bxox[abeprs]-[A-Za-z0-9-]{10,}",
    "a private key": rb"-----BEGIN [A-Z ]*PRIVATE KEY-----",
}
HOMES = (
    rb"/(?:home|Users)/[\w.-]+[/\\]",  # Linux and macOS
    rb"[A-Z]:\\\\?Users\\\\?[\w.-]+[/\\]",  # Windows, with backslashes as they are or doubled, as JSON has them
    rb"(?<![\w.])/(?:root)/\w",  # the administrator's
)
"""What a path below somebody's home directory looks like: shapes to look for in files, no paths of any machine."""
PATHS = {"a path of a home directory": b"|".join(HOMES)}
VOCABULARY = {"tokenizer.json", "vocab.json", "merges.txt"}
"""Files of words that a tokenizer learnt, among which paths are no news."""
SECRET_NAME = re.compile(r"(KEY|TOKEN|SECRET|PASSWORD|PASSWD)S?$")


@dataclass(frozen=True)
class Finding:
    """file: its path below the folder. line: from 1; 0 in a file that is not text. what: never the secret itself."""

    file: str
    line: int
    what: str

    @property
    def told(self) -> str:
        return f"line {self.line}: {self.what}" if self.line else self.what


def scan(folder: Path, names: Sequence[str], environment: Mapping[str, str]) -> Iterator[Finding]:
    """What is found in these files of a folder, file by file: of each kind the first place."""
    keys = {what: re.compile(pattern) for what, pattern in KEYS.items()} | _own_secrets(environment)
    paths = {what: re.compile(pattern) for what, pattern in PATHS.items()} | _own_places(folder)
    for name in names:
        patterns = keys if Path(name).name in VOCABULARY else keys | paths
        yield from _scan_file(folder / name, name, patterns)


def _scan_file(path: Path, name: str, patterns: Mapping[str, re.Pattern[bytes]]) -> Iterator[Finding]:
    with open(path, "rb") as stream:
        head = stream.read(HEAD)
        text = b"\0" not in head
        content = head + stream.read() if text else head
    for what, pattern in patterns.items():
        if found := pattern.search(content):
            yield Finding(name, content.count(b"\n", 0, found.start()) + 1 if text else 0, what)


def _own_secrets(environment: Mapping[str, str]) -> dict[str, re.Pattern[bytes]]:
    return {
        f"the value of {name}": re.compile(re.escape(value.encode()))
        for name, value in environment.items()
        if SECRET_NAME.search(name.upper()) and len(value) >= SHORTEST
    }


def _own_places(folder: Path) -> dict[str, re.Pattern[bytes]]:
    """Directories of this machine that a file may have caught: where the run lies, and where this process works."""
    places = {"the run's directory": folder.resolve().parent, "the working directory": Path.cwd()}
    return {
        f"a path of this machine ({what})": re.compile(re.escape(str(place).encode()))
        for what, place in places.items()
        if len(place.parts) > 2
    }
