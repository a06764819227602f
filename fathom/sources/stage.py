"""`op: sources`: read every source of a recipe into one file of problems and one of recorded chains.

Rows are written as they come and never held: of a problem only its id stays in memory.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Any

from pydantic import Field

from fathom.config import StageConfig
from fathom.errors import InputError
from fathom.records import Rollout, to_json
from fathom.sources import generated, hub, local, programs
from fathom.sources.corpora import CORPORA
from fathom.sources.generated import GeneratedConfig
from fathom.sources.hub import HubConfig
from fathom.sources.local import LocalConfig
from fathom.sources.programs import ProgramsConfig
from fathom.sources.rows import Found, Outcome, SetAside

if TYPE_CHECKING:
    from fathom.ledger import Meter

Source = Annotated[LocalConfig | HubConfig | GeneratedConfig | ProgramsConfig, Field(discriminator="name")]

HOPELESS = 10_000
"""A source whose first rows, so many of them, are all set aside is an error: its columns are wrong, not its rows."""


TOLD = 5_000
"""Rows between two signs of life."""


class SourcesConfig(StageConfig):
    """`op: sources`. Each source is chosen by its `name`; later sources follow earlier ones."""

    sources: list[Source] = Field(min_length=1)


def read(source: Source, seed: int) -> Iterator[Outcome]:
    """What becomes of each row of one source. seed: the recipe's; only sources that are made here use it."""
    if isinstance(source, GeneratedConfig):
        return generated.read(source, seed)
    if isinstance(source, ProgramsConfig):
        return programs.read(source, seed)
    return local.read(source) if isinstance(source, LocalConfig) else hub.read(source)


def label(source: Source) -> str:
    """How a source is called in tables and rules: its label, its file's name, or its corpus."""
    if isinstance(source, GeneratedConfig | ProgramsConfig):
        return f"{source.name}-{source.split}"
    return local.label(source) if isinstance(source, LocalConfig) else hub.label(source)


def run_sources(inputs: dict[str, Any], config: SourcesConfig, out: Path, meter: Meter) -> dict[str, Any]:
    """Stage: -> problems.jsonl, rollouts.jsonl (recorded chains, without verdicts), removed.jsonl.

    A row of no use is set aside with its reason. Raises InputError for a source without one usable row, and
    for a row of a local file whose id is there already, naming both places; of a corpus, which its reader
    can't mend (and may name twice, with other filters), such a row is set aside.
    """
    total = Tally()
    by_source: Counter[str] = Counter()
    with ExitStack() as stack:
        tables = Tables(*(stack.enter_context(_opened(out / name)) for name in _FILES))
        for source in config.sources:
            tally = _take(source, config, tables, meter)
            by_source[label(source)] += tally.found
            total += tally
    return {
        "problems": total.found,
        "chains": total.chains,
        "by_source": dict(by_source),
        "licences": dict(total.licences.most_common()),
        "set_aside": dict((total.reasons + total.chain_reasons).most_common()),
        "funnel": total.funnel(),
    }


_FILES = ("problems.jsonl", "rollouts.jsonl", "removed.jsonl")


def _opened(path: Path) -> IO[str]:
    return open(path, "w", encoding="utf-8", newline="\n")


@dataclass
class Tables:
    """The open files, and the ids that stand in `problems`."""

    problems: IO[str]
    chains: IO[str]
    removed: IO[str]
    ids: set[str] = field(default_factory=set)

    def set_aside(self, row: SetAside) -> None:
        self.removed.write(json.dumps(row.row(), ensure_ascii=False, separators=(",", ":")) + "\n")


@dataclass
class Tally:
    """Counts of rows, and of the chains beside them. first: the first row that was set aside."""

    read: int = 0
    wanted: int = 0
    found: int = 0
    chains: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    chain_reasons: Counter[str] = field(default_factory=Counter)
    licences: Counter[str] = field(default_factory=Counter)
    first: SetAside | None = None

    def __add__(self, other: Tally) -> Tally:
        names = ("read", "wanted", "found", "chains", "reasons", "chain_reasons", "licences")
        return Tally(**{name: getattr(self, name) + getattr(other, name) for name in names})

    def funnel(self) -> list[list[Any]]:
        """Rows left after each reason, the most frequent first."""
        steps: list[list[Any]] = [["rows read", self.read]]
        left = self.wanted
        if left < self.read:
            steps.append(["wanted by the sources' filters", left])
        for reason, count in self.reasons.most_common():
            left -= count
            steps.append([f"left after: {reason}", left])
        return [*steps, ["problems", self.found]]


def _take(source: Source, config: SourcesConfig, tables: Tables, meter: Meter) -> Tally:
    """Write one source's rows, then the chains of its problems that have a file of their own.

    Raises InputError when no row is usable.
    """
    tally, own = Tally(), set()
    for row in read(source, meter.seed):
        tally.read += 1
        if tally.read % TOLD == 0:
            meter.check()
            meter.progress(tally.read, max(tally.read, _expected(source)), f"rows of {label(source)}")
        if isinstance(row, Found) and row.problem.id in tables.ids:
            row = _repeated(row, source, config, meter.seed)
        if isinstance(row, Found):
            tally.wanted += 1
            tally.found += 1
            tally.licences[row.problem.licence] += 1
            if isinstance(source, LocalConfig):
                own.add(row.problem.id)
            tables.ids.add(row.problem.id)
            tables.problems.write(to_json(row.problem) + "\n")
            for chain in row.chains:
                _write_chain(chain, tally, tables)
        elif row is not None:
            tally.wanted += 1
            tally.reasons[row.reason] += 1
            tally.first = tally.first or row
            tables.set_aside(row)
        if tally.wanted == HOPELESS and not tally.found:
            break
    if not tally.found:
        raise _none_left(source, tally)
    if isinstance(source, LocalConfig):
        for chain in local.joined_chains(source, own):
            _write_chain(chain, tally, tables)
    return tally


def _expected(source: Source) -> int:
    """Rows that a corpus is known to hold; 0 where nobody has counted."""
    return CORPORA[source.name].rows[source.split or CORPORA[source.name].split] if isinstance(source, HubConfig) else 0


def _write_chain(chain: Rollout | SetAside, tally: Tally, tables: Tables) -> None:
    if isinstance(chain, SetAside):
        tally.chain_reasons[f"chain: {chain.reason}"] += 1
        tables.set_aside(chain)
    else:
        tally.chains += 1
        tables.chains.write(to_json(chain) + "\n")


def _repeated(row: Found, source: Source, config: SourcesConfig, seed: int) -> SetAside:
    """A row whose id was there before. The sources are read again for its place, which only an error costs."""
    name = row.problem.id
    if isinstance(source, HubConfig):
        return SetAside(row.where, name, "its id occurs twice")
    rows = (other for each in config.sources for other in read(each, seed))
    first = next(other.where for other in rows if isinstance(other, Found) and other.problem.id == name)
    raise InputError(f"{row.where}: id {name!r} occurs twice, first at {first}")


def _none_left(source: Source, tally: Tally) -> InputError:
    left = f"no problem left of {tally.read} rows read ({tally.wanted} wanted) from {label(source)}"
    if tally.first is None:
        return InputError(f"sources: {left}")
    return InputError(f"{tally.first.where}: {tally.first}; {left}")
