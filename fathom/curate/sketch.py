"""Fingerprints of many problems as arrays of numbers: a million of them fit in about a gigabyte.

A sketch holds hashes of what `Fingerprint` compares (64 bits for a whole text, its gold and its
numbers, 32 bits for a word) and MinHash bands, which are equal in some place for most pairs of
problems with similar words. Hashes stand in for the text: at 64 bits a million texts collide once
in thirty million corpora.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from zlib import crc32

import numpy as np
from rensa import RMinHash

from fathom.curate.fingerprint import Content, Fingerprint
from fathom.records import Problem

BANDS, ROWS = 42, 3
"""MinHash bands and the values in each: two sets with Jaccard similarity 0.5 share a band with probability 0.996."""
_MIX = np.uint64(0x9E3779B97F4A7C15)


def hash64(text: str) -> int:
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little")


def mix(*keys: np.ndarray) -> np.ndarray:
    """One uint64 key from several, element by element."""
    mixed = np.zeros(1, np.uint64)
    for key in keys:
        mixed = (mixed ^ key) * _MIX
        mixed ^= mixed >> np.uint64(29)
    return mixed


def bands(contents: Iterable[Content]) -> np.ndarray:
    """MinHash bands of words and symbols: uint64[contents, BANDS]; those of different bands never meet."""
    tokens = [sorted(content.words | content.symbols) for content in contents]
    digests = RMinHash.digests_from_token_sets(tokens, BANDS * ROWS, 0)
    values = np.array(digests, np.uint64).reshape(-1, BANDS, ROWS)
    return mix(np.arange(BANDS, dtype=np.uint64), *np.moveaxis(values, 2, 0))


@lru_cache(maxsize=1 << 17)
def _hash32(token: str) -> int:
    return crc32(token.encode())


@dataclass
class Ragged:
    """Lists of 32-bit hashes, one per problem, end to end."""

    values: np.ndarray
    ends: np.ndarray

    @classmethod
    def of(cls, lists: list[Iterable[str]]) -> Ragged:
        hashed = [sorted(map(_hash32, tokens)) for tokens in lists]
        flat = np.fromiter((value for row in hashed for value in row), np.uint32)
        return cls(flat, np.cumsum([len(row) for row in hashed], dtype=np.int64))

    @classmethod
    def joined(cls, parts: list[Ragged]) -> Ragged:
        sizes = np.cumsum([0, *(len(part.values) for part in parts)])
        ends = [part.ends + start for part, start in zip(parts, sizes, strict=False)]
        return cls(np.concatenate([part.values for part in parts]), np.concatenate(ends))

    def sizes(self) -> np.ndarray:
        return np.diff(self.ends, prepend=0)

    def least(self, seed: int) -> np.ndarray:
        """A MinHash of every list: uint64[lists], equal for two lists as often as they are similar; 0 for empty ones."""
        filled = self.sizes() > 0
        least = np.zeros(len(self.ends), np.uint64)
        if filled.any():
            hashed = mix(np.array([seed], np.uint64), self.values.astype(np.uint64))
            least[filled] = np.minimum.reduceat(hashed, (self.ends - self.sizes())[filled])
        return least

    def __getitem__(self, row: int) -> list[int]:
        return self.values[self.ends[row - 1] if row else 0 : self.ends[row]].tolist()


@dataclass
class Sketches:
    """One entry per problem. text: of the normalised text; gold: 0 where unknown; block: of numbers and gold."""

    text: np.ndarray
    gold: np.ndarray
    block: np.ndarray
    bands: np.ndarray
    words: Ragged
    symbols: Ragged
    numbers: Ragged

    def content(self, row: int) -> Content:
        words, symbols = frozenset(self.words[row]), frozenset(self.symbols[row])
        return Content(words, symbols, tuple(self.numbers[row]), int(self.gold[row]) or None)

    @classmethod
    def joined(cls, parts: list[Sketches]) -> Sketches:
        whole = {name: np.concatenate([getattr(p, name) for p in parts]) for name in ("text", "gold", "block", "bands")}
        ragged = {name: Ragged.joined([getattr(p, name) for p in parts]) for name in ("words", "symbols", "numbers")}
        return cls(**whole, **ragged)


def sketch(problems: list[Problem]) -> Sketches:
    """The sketches of some problems, in order."""
    prints = [Fingerprint.of(problem) for problem in problems]
    contents = [this.content for this in prints]

    def hashes(texts: Iterable[str]) -> np.ndarray:
        return np.fromiter(map(hash64, texts), np.uint64)

    gold = np.fromiter((0 if c.gold is None else hash64(c.gold) or 1 for c in contents), np.uint64)
    return Sketches(
        text=hashes(this.plain for this in prints),
        gold=gold,
        block=mix(gold, hashes(" ".join(c.numbers) for c in contents)),
        bands=bands(contents),
        words=Ragged.of([c.words for c in contents]),
        symbols=Ragged.of([c.symbols for c in contents]),
        numbers=Ragged.of([c.numbers for c in contents]),
    )
