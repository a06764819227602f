"""One row's way through a run: where it came from, what each stage made of it, what it was used for.

Told from the artifacts alone, each stage after those that it reads; nothing is graded or computed again.
A row is a problem (`aime/3`) or a training row of it (`aime/3#2`, chain 2); the whole problem is told in both cases.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

from fathom.errors import InputError
from fathom.records import json_lines
from fathom.report import facts
from fathom.report.read import Run, Stage, read_run

Row = Mapping[str, Any]
Step = dict[str, Any]

USES = {"sft": "trained on", "grpo": "trained on", "prefer": "trained on", "export": "exported"}
"""What it means that a stage of this op read the row."""

OWN_FIELDS = ("difficulty", "solve_rate")
NEAREST = 3
"""How many known ids are named when a row is unknown."""


@dataclass(frozen=True)
class Mention:
    """What one stage's files say of a problem.

    chosen: (number in examples.jsonl or pairs.jsonl from 1, row) of each training row. removed: its own row of removed.jsonl. aside: those of
    its chains, and its own where only some of an export's formats have no place for it. instead: rows that were removed because this one stays.
    """

    stage: Stage
    problem: Row | None
    chains: Sequence[Row]
    chosen: Sequence[tuple[int, Row]]
    removed: Row | None
    aside: Sequence[Row]
    instead: Sequence[Row]

    def __bool__(self) -> bool:
        return bool(self.hands_on or self.chains or self.removed or self.aside or self.instead)

    @property
    def hands_on(self) -> bool:
        return bool(self.problem or self.chosen)


def why(row: str, run_dir: Path | None = None) -> dict[str, Any]:
    """The way of a row, as plain JSON: `row`, `problem`, `run`, `outcome`, `usd` and a step per stage that met it.

    run_dir: a run directory; by default this directory, or the only run in `runs`. usd: paid for its
    chains, None where no row says. Raises InputError for what is not a run, and for an unknown row,
    with the nearest ids.
    """
    run = read_run(run_dir or _only_run())
    planned = {step["stage"]: place for place, step in enumerate(run.plan.get("stages", ()))}
    stages = sorted(run.stages, key=lambda stage: planned.get(stage.name, len(planned)))  # each after what it reads
    problem = row
    mentions = [mention(stage, problem) for stage in stages]
    if "#" in row and not any(found.hands_on or found.chains for found in mentions):
        prefix = row.rpartition("#")[0]
        of_prefix = [mention(stage, prefix) for stage in stages]
        if any(of_prefix):
            problem, mentions = prefix, of_prefix
            _check_chain(row, problem, mentions)
    if not any(mentions):
        near = nearest(run, row)
        told = f"; the nearest are {', '.join(near)}" if near else ""
        raise InputError(f"{run.directory}: no stage has a row {row!r}{told}")
    steps = list(_steps(run, mentions))
    return {
        "row": row,
        "problem": problem,
        "run": str(run.directory),
        "outcome": _outcome(steps),
        "usd": _paid(run, mentions),
        "steps": steps,
    }


def _check_chain(row: str, problem: str, mentions: Sequence[Mention]) -> None:
    """Raises InputError where the problem is known and has no such chain."""
    chains = {f"{problem}#{chain['index']}" for found in mentions for chain in found.chains}
    known = chains | {str(chosen["id"]) for found in mentions for _, chosen in found.chosen}
    known |= {str(aside["id"]) for found in mentions for aside in found.aside}
    if any(mentions) and row not in known:
        told = f"its chains are {', '.join(sorted(known))}" if known else "it has no chains"
        raise InputError(f"{problem} has no chain {row!r}; {told}")


def _only_run() -> Path:
    if Path("recipe.yaml").is_file():
        return Path()
    runs = sorted(path.parent for path in Path("runs").glob("*/recipe.yaml"))
    if len(runs) != 1:
        told = f"one of {', '.join(map(str, runs))}" if runs else "there is none in runs"
        raise InputError(f"why: name the RUN to look in: {told}")
    return runs[0]


# ------------------------------------------------------------------------------ reading


def mention(stage: Stage, problem: str) -> Mention:
    """Everything that a stage's artifact says of a problem."""

    def rows(name: str, key: str) -> list[tuple[int, Row]]:
        return [(n, row) for n, row in lines_with(stage.directory / name, problem) if row[key] == problem]

    removed = [row for _, row in lines_with(stage.directory / "removed.jsonl", problem)]
    own = [row for row in removed if row["id"] == problem]
    partly = stage.op == "export" and len(own) < len(set(stage.config["formats"]))  # it is in the other formats' files
    return Mention(
        stage,
        problem=next((row for _, row in rows("problems.jsonl", "id")), None),
        chains=[row for _, row in rows("rollouts.jsonl", "problem_id")],
        chosen=[found for name in facts.ROW_FILES for found in rows(name, "problem_id")],
        removed=own[0] if own and not partly else None,
        aside=[row for row in removed if str(row["id"]).startswith(f"{problem}#")] + (own if partly else []),
        instead=[row for row in removed if row.get("other") == problem],
    )


def lines_with(path: Path, text: str) -> Iterator[tuple[int, Row]]:
    """The numbered rows of a JSON Lines file in whose line the text stands; the others are not even parsed."""
    if not path.is_file():
        return
    needles = {json.dumps(text, ensure_ascii=escaped)[1:-1].encode() for escaped in (False, True)}
    with open(path, "rb") as stream:
        for number, line in enumerate(stream, 1):
            if any(needle in line for needle in needles):
                yield number, json.loads(line)


def nearest(run: Run, wanted: str) -> list[str]:
    """The known ids that share most of their beginning and end with the wanted one."""
    files = [("problems.jsonl", "id"), ("removed.jsonl", "id"), ("rollouts.jsonl", "problem_id")]
    paths = [(stage.directory / name, key) for stage in run.of("sources", "given", "evaluate") for name, key in files]
    known = {str(row[key]) for path, key in paths if path.is_file() for _, row in json_lines(path)}

    def unlike(name: str) -> tuple[int, str]:
        start = _shared(name, wanted)
        return max(len(name), len(wanted)) - start - _shared(name[:start:-1], wanted[:start:-1]), name

    return sorted(known, key=unlike)[:NEAREST]


def _shared(one: str, other: str) -> int:
    """Length of the common beginning."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


# ------------------------------------------------------------------------------ telling


def _steps(run: Run, mentions: Sequence[Mention]) -> Iterator[Step]:
    """A step per stage that met the row; `from` names the stages it came from."""
    reads = facts.inputs(run)
    handed_on: dict[str, Mention] = {}
    for found in mentions:
        stage = found.stage
        sources = [handed_on[name] for name in reads[stage.name] if name in handed_on]
        if found or (sources and stage.op in USES):
            came_from = sorted(source.stage.name for source in sources)
            yield {"stage": stage.name, "op": stage.op, "from": came_from, **_step(found, sources)}
        if found.hands_on:
            handed_on[stage.name] = found


def _step(found: Mention, sources: Sequence[Mention]) -> Step:
    """What a stage did with the row: `did`, and what belongs to that. sources: what the stages that it reads say of it."""
    op = found.stage.op
    before = next((source.problem for source in sources if source.problem), None)
    given = {row["id"] for source in sources for _, row in source.chosen}
    none_left = given <= {row["id"] for row in found.aside}
    if found.removed:
        step = {"did": "removed", **{name: value for name, value in found.removed.items() if name != "id"}}
    elif op in USES:
        step = {"did": "left out" if found.aside and none_left else USES[op]}
    elif given and none_left and not found.hands_on:
        step = {"did": "removed", "reason": "; ".join(dict.fromkeys(row["reason"] for row in found.aside))}
    elif found.chosen:
        number, row = found.chosen[0]
        lineage = row.get("lineage", {})
        step = {
            "did": "chosen",
            "training_row": row["id"],
            "number": number,
            "rows": found.stage.metrics.get("pairs" if op == "pairs" else "examples"),
        }
        if len(found.chosen) > 1:
            step["more"] = [{"training_row": row["id"], "number": number} for number, row in found.chosen[1:]]
        step |= (
            {"lineage": lineage} if op in ("select", "pairs") else {"part": lineage.get("part")} if op == "mix" else {}
        )
    elif found.problem:
        step = {"did": "kept", **_changes(before, found.problem)} if before else _origin(found.problem)
    else:
        step = {"did": "chains" if found.chains or found.aside else "named"}
    if found.chains:
        step["chains"] = [_chain(row) for row in found.chains]
    if found.aside:
        step["aside"] = [{"row": row["id"], "reason": row["reason"]} for row in found.aside]
    if found.instead:
        step["instead"] = [{"row": row["id"], "reason": row["reason"]} for row in found.instead]
    return step


def _origin(problem: Row) -> Step:
    kept = ("question", "gold", "kind", "source", "licence", "meta", *OWN_FIELDS)
    return {"did": "read", **{name: problem[name] for name in kept if problem.get(name) is not None}}


def _changes(before: Row, after: Row) -> Step:
    """What a stage wrote on the problem: fields and keys of `meta` that are new or different."""
    found = {name: after.get(name) for name in OWN_FIELDS if after.get(name) != before.get(name)}
    known = before.get("meta", {})
    found |= {f"meta.{name}": value for name, value in after.get("meta", {}).items() if value != known.get(name)}
    return {"set": found} if found else {}


def _chain(row: Row) -> Step:
    """A chain without its text."""
    told = {name: row[name] for name in ("index", "model", "tokens", "finish") if row.get(name) is not None}
    verdict = row.get("verdict")
    meta = {name: row["meta"][name] for name in ("usd", "rewrite", "prompt") if name in row.get("meta", {})}
    return told | ({"verdict": verdict} if verdict else {}) | meta


def _outcome(steps: Sequence[Step]) -> str:
    """The end of it in a line."""
    by: dict[str, list[str]] = {}
    for step in steps:
        by.setdefault(step["did"], []).append(step["stage"])
    ends = [f"{did} by {' and '.join(by[did])}" for did in (*dict.fromkeys(USES.values()), "left out") if did in by]
    if ends:
        return "; ".join(ends)
    if chosen := by.get("chosen"):
        later = [s["stage"] for s in steps if s["did"] == "removed" and not set(chosen).isdisjoint(s["from"])]
        return f"chosen by {' and '.join(chosen)}, " + (
            f"removed by {' and '.join(later)}" if later else "not used yet"
        )
    if removed := by.get("removed"):
        return f"removed by {' and '.join(removed)}"
    held_out = all(step["op"] == "evaluate" or step["did"] == "named" for step in steps)
    return "a problem of an evaluation" if held_out else "kept, not chosen yet"


def _paid(run: Run, mentions: Sequence[Mention]) -> float | None:
    """Dollars for its chains and their rewriting: each chain once, as the last artifact that has it says.

    A stage has a chain from one that it reads, where that has a chain of this model and index, else of its own.
    """
    reads = facts.inputs(run)
    drawn_by: dict[tuple[str, str, int], str] = {}
    costs: dict[tuple[str, str, int], float] = {}
    for found in mentions:
        for row in found.chains:
            name = found.stage.name
            sources = (drawn_by.get((source, row["model"], row["index"])) for source in reads[name])
            by = drawn_by[name, row["model"], row["index"]] = next(filter(None, sources), name)
            meta = row.get("meta", {})
            known = [usd for usd in (meta.get("usd"), meta.get("rewrite", {}).get("usd")) if usd is not None]
            if known:
                costs[by, row["model"], row["index"]] = sum(known)
    return sum(costs.values()) if costs else None
