"""Problems and recorded chains from files: JSON Lines, JSON, Parquet; rows, messages or ShareGPT.

A recipe names the columns; nothing is guessed from names. Conversations give their first exchange:
the first user turn is the question, the assistant turn after it a recorded chain. Rows go by one at a time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Set
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from fathom.config import FileInput
from fathom.errors import InputError
from fathom.records import Rollout
from fathom.sources.files import read_rows
from fathom.sources.rows import ChainColumns, Outcome, RowSpec, SetAside, outcomes, refuse_unseen, to_chains, value
from fathom.sources.unusable import Unusable


class LocalChains(ChainColumns):
    """Recorded chains in the problem's own row, or in a file of their own (`path`) joined by `problem`."""

    path: FileInput | None = None
    problem: str = "problem_id"


class LocalConfig(RowSpec):
    """`{name: local, path: ..., columns: {...}, chains: {...}}`.

    label: the source's name in ids and tables (default: the file's name). format: `rows`, or
    conversations in the column `messages` (role, content) or `conversations` (from, value), whose chain is
    then the column `chain`: Sky-T1's rows read with `chains: {text: chain, sections: true}`.
    """

    name: Literal["local"] = "local"
    path: FileInput
    label: str | None = None
    format: Literal["rows", "messages", "sharegpt"] = "rows"
    chains: LocalChains | None = None


def label(config: LocalConfig) -> str:
    """The source's name in ids and tables."""
    return config.label or Path(config.path).name.split(".")[0]


def read(config: LocalConfig) -> Iterator[Outcome]:
    """What becomes of each row. Raises InputError for a file that is missing or can't be read."""
    rows = read_rows(Path(config.path))
    beside = config.chains if config.chains and config.chains.path is None else None
    if config.format == "rows":
        return outcomes(rows, config, label(config), beside)
    chains = beside or ChainColumns(text="chain", written_by=label(config))
    return outcomes(rows, config, label(config), chains, partial(_exchanged, config=config))


def joined_chains(config: LocalConfig, ids: Set[str]) -> Iterator[Rollout | SetAside]:
    """Chains from a file of their own, in its order; those of other problems are passed over.

    ids: of the problems found. Raises InputError when no chain belongs to one of them.
    """
    chains = config.chains
    if chains is None or chains.path is None:
        return
    count: Counter[str] = Counter()
    unseen = chains.optional()
    for number, (where, row) in enumerate(read_rows(Path(chains.path)), 1):
        try:
            key = str(value(row, chains.problem))
            found = to_chains(row, chains, key, unseen, count[key]) if key in ids else []
        except Unusable as fault:
            yield SetAside(where, f"{label(config)}-chains-{number:06d}", fault.reason, fault.detail)
            continue
        if key in ids:
            count[key] = found[-1].index + 1 if found else count[key]
        yield from found
    if not count:
        raise InputError(f"{chains.path}: no row's {chains.problem!r} is the id of one of the {len(ids)} problems")
    refuse_unseen(unseen, chains.path)


_TURNS = {"messages": ("messages", "role", "content"), "sharegpt": ("conversations", "from", "value")}
_USER, _ASSISTANT = ("user", "human"), ("assistant", "gpt")


def _exchanged(row: Any, config: LocalConfig) -> dict[str, Any]:
    """The row with its first exchange in the question column and in `chain`."""
    column, role, content = _TURNS[config.format]
    turns = value(row, column)
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise Unusable(f"{column!r} is not a list of turns with {role!r} and {content!r}")
    for user, assistant in pairwise(turns):
        if user.get(role) in _USER and assistant.get(role) in _ASSISTANT:
            thought = assistant.get("reasoning_content") or assistant.get("reasoning")
            answer = assistant.get(content) or ""
            chain = f"<think>\n{thought}\n</think>\n\n{answer}" if thought else answer
            return {**row, config.columns.question: user.get(content), "chain": chain}
    raise Unusable(f"no user turn followed by an assistant turn in {column!r}")
