"""Repeated problems: the same text, or the same numbers and answer in similar words.

Two passes. The first reduces every problem to a sketch and groups equal texts. The second looks for
near-duplicates (`fingerprint.near`) among problems that share a group: equal numbers and gold (and, where
these are many, a MinHash band of the words), or equal gold, a band, and a MinHash of the numbers. Time and
memory grow with the number of problems, not of pairs: a group keeps at most `SMALL_BLOCK` to compare with.
Not a semantic search: the same problem with other numbers or another wording altogether stays.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fathom.curate import text
from fathom.curate.corpus import Progress, map_chunks, row_ids
from fathom.curate.fingerprint import ADDED_NUMBERS, near
from fathom.curate.sketch import BANDS, Sketches, mix, sketch
from fathom.fanout import Crew
from fathom.records import Problem, Rollout

SMALL_BLOCK = 64
"""Groups up to this many problems are compared pair by pair."""
MOST_COMPARED = 128
"""A problem is compared with so many others at most, those first that it shares most groups with."""


@dataclass(frozen=True)
class Repeat:
    """Row `row` repeats row `of`, which is kept (positions in the input).

    rule: "same text", "same text, other gold", "similar" or "contained"; score: 0-1.
    """

    row: int
    of: int
    rule: str
    score: float


def count_chains(chains: Iterable[Rollout]) -> dict[str, tuple[int, int]]:
    """(chains that a grader found correct, all chains) per problem id: the greater, the more a row is worth keeping."""
    correct: Counter[str] = Counter()
    every: Counter[str] = Counter()
    for chain in chains:
        every[chain.problem_id] += 1
        correct[chain.problem_id] += chain.verdict is not None and chain.verdict.correct is True
    return {key: (correct[key], count) for key, count in every.items()}


def find_repeats(
    problems: Sequence[Problem],
    chains: Mapping[str, tuple[int, int]],
    similarity: float,
    crew: Crew | None = None,
    progress: Progress | None = None,
) -> list[Repeat]:
    """Every row that repeats a kept one, in row order.

    Of each group the row with the most correct chains is kept, among equals the one with the most
    chains, then the first. chains: of `count_chains`. similarity: least Jaccard similarity of content
    words, 0-1; at 0 equal numbers and equal gold are enough. crew, progress: see
    `map_chunks`.
    """
    parts = list(map_chunks(sketch, problems, crew, progress))
    if not parts:
        return []
    sketches = Sketches.joined(parts)
    del parts
    every = np.arange(len(problems))
    worth = np.array([chains.get(key, (0, 0)) for key in row_ids(problems)], np.int64)
    best_first = np.lexsort((every, -worth[:, 1], -worth[:, 0]))
    first = _first_of_text(sketches.text, best_first)
    nearest = _find_near(sketches, best_first[first[best_first] == best_first], similarity)
    repeats = []
    for row in np.flatnonzero(first != every).tolist():
        of = int(first[row])
        same_gold = sketches.gold[row] == sketches.gold[of]
        same = Repeat(row, of, "same text" if same_gold else "same text, other gold", 1.0)
        repeats.append(Repeat(row, nearest[of].of, nearest[of].rule, nearest[of].score) if of in nearest else same)
    return sorted([*repeats, *nearest.values()], key=lambda r: r.row)


def _first_of_text(texts: np.ndarray, best_first: np.ndarray) -> np.ndarray:
    """For every row the best row with the same text, itself included."""
    _, position, inverse = np.unique(texts[best_first], return_index=True, return_inverse=True)
    first = np.empty_like(best_first)
    first[best_first] = best_first[position[inverse]]
    return first


def _find_near(sketches: Sketches, rows: np.ndarray, similarity: float) -> dict[int, Repeat]:
    """Near-duplicates among rows with different texts, given best first: row -> what it repeats."""
    kept: defaultdict[int, list[int]] = defaultdict(list)
    found = {}
    for row, groups in _rows_with_groups(sketches, rows, similarity):
        this = sketches.content(row)
        best = None
        met = Counter(other for group in groups for other in kept[group])
        for other in sorted(sorted(met, key=lambda i: (-met[i], i))[:MOST_COMPARED]):
            verdict = near(this, sketches.content(other), similarity)
            if verdict and (best is None or verdict.score > best.score):
                best = Repeat(row, other, verdict.rule, round(verdict.score, 4))
        if best:
            found[row] = best
            continue
        for group in groups:
            if len(kept[group]) < SMALL_BLOCK:
                kept[group].append(row)
    return found


def _rows_with_groups(sketches: Sketches, rows: np.ndarray, similarity: float) -> Iterator[tuple[int, list[int]]]:
    """The rows that share a group with another row, in the order given, each with its groups."""
    positions, groups = [], []
    offset = 0
    for members, keys in _groupings(sketches, rows, similarity):
        _, inverse, counts = np.unique(keys, return_inverse=True, return_counts=True)
        shared = counts[inverse] > 1
        positions.append(members[shared])
        groups.append(inverse[shared] + offset)
        offset += len(counts)
    position, group = np.concatenate(positions), np.concatenate(groups)
    order = np.lexsort((group, position))
    position, group = position[order], group[order]
    for own in np.split(np.arange(len(position)), np.flatnonzero(np.diff(position)) + 1):
        if len(own):
            yield int(rows[position[own[0]]]), group[own].tolist()


def _groupings(sketches: Sketches, rows: np.ndarray, similarity: float) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(positions in `rows`, key of each): positions with equal keys are compared."""
    everyone = np.arange(len(rows))
    block = sketches.block[rows]
    _, inverse, counts = np.unique(block, return_inverse=True, return_counts=True)
    size = counts[inverse]
    known = sketches.gold[rows] != 0
    small = (size <= SMALL_BLOCK) | ((similarity == 0) & known)  # at 0 equal numbers and gold are enough
    yield everyone[small], block[small]
    if similarity == 0 and small.all():
        return
    numbers = sketches.numbers.sizes()[rows]
    some, few = everyone[known & (numbers > 0)], everyone[known & (numbers <= ADDED_NUMBERS)]
    for band in range(BANDS):
        own = sketches.bands[rows, band]
        if not small.all():
            yield everyone[~small], mix(block[~small], own[~small])
        yield some, mix(sketches.gold[rows[some]], own[some], sketches.numbers.least(band)[rows[some]])
        if band % 2:
            yield few, mix(sketches.gold[rows[few]], sketches.bands[rows[few], band - 1], own[few])


def removed_rows(problems: Sequence[Problem], repeats: Iterable[Repeat]) -> Iterator[dict[str, object]]:
    """One plain row per repeat: which row it repeats, why, and both texts."""
    for repeat in repeats:
        this, of = problems[repeat.row], problems[repeat.of]
        yield {
            "id": this.id,
            "reason": f"{repeat.rule}: repeats {of.id}",
            "rule": repeat.rule,
            "other": of.id,
            "similarity": repeat.score,
            "text": text.full_text(this),
            "other_text": text.full_text(of),
        }
