"""Generated problems: unlimited, seeded, verifiable, with a teacher's chains and planted defects.

One `GeneratedConfig` is one corpus; the same config gives the same problems, byte for byte.
Problems come with `chains` recorded chains each, as OpenR1-Math-220k has them: most of them careful,
some long, some wrong. On request the corpus holds near-duplicates (the same problem in other words)
and leaks (problems of another generated corpus, say the evaluation's), so that dedup and
decontamination have real work; `meta.planted` says what each such row is.

Problems whose numbers hash into the held-out eighth belong to the splits that are named `eval...`
and to no other, so a training corpus (or the tiny base's pretraining) can't meet an evaluation
problem by luck, only as a planted leak.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from random import Random
from typing import Literal

from pydantic import Field

from fathom.config import StageConfig
from fathom.errors import InputError
from fathom.records import Problem, Rollout
from fathom.sources.chains import CAREFUL, STYLES, Style, Writer
from fathom.sources.families import FAMILIES, Family, Numbers, question
from fathom.sources.rows import Found

TEACHER = "generated-teacher"
TEACHER_STYLES = {"careful": 0.45, "careful-verbose": 0.4, "careless-verbose": 0.15}


class GeneratedCorpus(StageConfig):
    """Which problems: how many, from which families and levels, under which seed.

    split names a stream of its own: corpora of different splits draw independently; one that starts
    with "eval" draws from the held-out problems, any other from the rest.
    """

    name: Literal["generated"] = "generated"
    split: str = "train"
    count: int = Field(gt=0)
    seed: int = 0
    families: list[str] = Field(sorted(FAMILIES), min_length=1)
    levels: tuple[int, int] = (1, 10)


class GeneratedConfig(GeneratedCorpus):
    """A corpus with what real corpora have beside clean problems.

    chains: recorded teacher chains per problem. duplicates: rows that repeat an earlier problem in
    other words. leaks: rows copied from `leak_from`, half of them in other words.
    """

    chains: int = Field(0, ge=0)
    duplicates: int = Field(0, ge=0)
    leaks: int = Field(0, ge=0)
    leak_from: GeneratedCorpus | None = None


def generate(config: GeneratedConfig, seed: int = 0) -> tuple[list[Problem], list[Rollout]]:
    """The corpus's problems in order, and their teacher chains.

    seed: the recipe's seed, added to the corpus's own. Raises InputError for an unknown family or an
    impossible level range.
    """
    rows = _rows(config, seed)
    return rows, [chain for p in rows for chain in _teach(config, seed, p)]


def read(config: GeneratedConfig, seed: int) -> Iterator[Found]:
    """The same as rows of a source: each problem with its chains, which are written as they are asked for."""
    for number, problem in enumerate(_rows(config, seed), 1):
        where = f"generated {config.split}: problem {number}"
        yield Found(where, problem, list(_teach(config, seed, problem)))


def _rows(config: GeneratedConfig, seed: int) -> list[Problem]:
    _check(config)
    drawn = list(_draw(config, seed))
    rows = [_problem(config, i, *d) for i, d in enumerate(drawn)]
    rng = stream(config.split, config.seed + seed, "planted")
    for copy in range(config.duplicates):
        of = rng.randrange(config.count)
        rows.append(_reworded(rows[of], *drawn[of], f"dup{copy:05d}", f"duplicate of {rows[of].id}", 1))
    if config.leaks:
        rows.extend(_leaks(config, seed, rng))
    rng.shuffle(rows)
    return rows


def _check(config: GeneratedConfig) -> None:
    for corpus in filter(None, (config, config.leak_from)):
        for name in corpus.families:
            if name not in FAMILIES:
                raise InputError(f"generated: unknown family {name!r}; known: {', '.join(sorted(FAMILIES))}")
        low, high = corpus.levels
        if not 1 <= low <= high <= 10:
            raise InputError(f"generated: levels {[low, high]} must be two numbers from 1 to 10, the lower first")
    if config.leaks and config.leak_from is None:
        raise InputError("generated: leaks needs leak_from, the corpus that leaks")


def stream(split: str, seed: int, what: str) -> Random:
    """Random numbers of one purpose, which nothing else that is drawn can shift."""
    key = f"{split}/{seed}/{what}".encode()
    return Random(int.from_bytes(hashlib.sha256(key).digest()[:8], "big"))


def _draw(config: GeneratedCorpus, seed: int) -> Iterator[tuple[Family, int, Numbers, int]]:
    """(family, level, numbers, wording) of each problem; no problem comes twice in one corpus."""
    rng, seen, tries = stream(config.split, config.seed + seed, "problems"), set(), 0
    while len(seen) < config.count:
        family = FAMILIES[rng.choice(config.families)]
        level = rng.randint(*config.levels)
        numbers = family.draw(rng, level)
        wording = rng.randrange(len(family.wordings))
        key = identity(family, numbers)
        tries += 1
        if tries > 50 * config.count:
            raise InputError(
                f"generated: only {len(seen)} different problems exist for these families and levels; asked for {config.count}"
            )
        if key not in seen and held_out(key) == config.split.startswith("eval"):
            seen.add(key)
            yield family, level, numbers, wording


def identity(family: Family, numbers: Numbers) -> str:
    """What makes two questions the same problem: the family and its numbers, whatever the words."""
    return f"{family.name} {[v for v in numbers.values() if not isinstance(v, str)]}"


def held_out(identity: str) -> bool:
    """Whether only evaluation splits may draw this problem: one in eight, by hash."""
    return hashlib.sha256(identity.encode()).digest()[0] % 8 == 0


def _problem(config: GeneratedCorpus, i: int, family: Family, level: int, numbers: Numbers, wording: int) -> Problem:
    return Problem(
        id=f"gen-{config.split}-{family.name}-d{level:02d}-{i:06d}",
        question=question(family, numbers, wording),
        gold=family.solve(Writer(CAREFUL, Random(0)), numbers),
        source=f"generated/{family.name}",
        licence="Apache-2.0",
        meta={"family": family.name, "level": level, "numbers": numbers},
    )


def _reworded(
    of: Problem, family: Family, level: int, numbers: Numbers, wording: int, tag: str, why: str, shift: int
) -> Problem:
    return Problem(
        id=f"{of.id}-{tag}",
        question=question(family, numbers, wording + shift),
        gold=of.gold,
        source=of.source,
        licence=of.licence,
        meta={**of.meta, "planted": why},
    )


def _leaks(config: GeneratedConfig, seed: int, rng: Random) -> Iterator[Problem]:
    victim = config.leak_from
    drawn = list(_draw(victim, seed))
    if config.leaks > len(drawn):
        raise InputError(f"generated: {config.leaks} leaks asked for, but leak_from holds {len(drawn)} problems")
    for n, i in enumerate(sorted(rng.sample(range(len(drawn)), config.leaks))):
        of = _problem(victim, i, *drawn[i])
        yield _reworded(of, *drawn[i], f"leak{n:05d}", f"leak of {of.id}", n % 2)


def write_chain(family: str, numbers: Numbers, style: Style, rng: Random) -> str:
    """One completion (thinking, `</think>`, boxed answer) for a problem of a family."""
    writer = Writer(style, rng)
    return writer.text(FAMILIES[family].solve(writer, numbers))


def _teach(config: GeneratedConfig, seed: int, problem: Problem) -> Iterator[Rollout]:
    rng = stream(config.split, config.seed + seed, f"chains/{problem.id}")
    names = rng.choices(list(TEACHER_STYLES), list(TEACHER_STYLES.values()), k=config.chains)
    for index, name in enumerate(names):
        text = write_chain(problem.meta["family"], problem.meta["numbers"], STYLES[name], rng)
        yield Rollout(
            problem.id, index, text, tokens=len(text.split()), finish="stop", model=TEACHER, meta={"style": name}
        )
