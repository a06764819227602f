"""The certificate of a decontamination: what was checked against what, by which rules, and what went.

certificate.json, for programs (a data card binds it in):

    {"version": 1,
     "problems": {"read": 1000, "removed": 3, "kept": 997},
     "kept_sha256": "...",              of the problems.jsonl beside it
     "constants": {"long_gram": 13, ...},     thresholds that no recipe changes
     "benchmarks": [
       {"name": "aime24", "problems": 30,
        "sha256": "...",                of its problems: one canonical JSON line each, see `rows_hash`
        "rules": {"similarity": 0.5, ...},    as `Rules` of the recipe
        "removed": 2,                   training problems that it recognises
        "by_rule": {"exact": 1, "twin": 1},
        "texts": "shown",               or "withheld", then both texts below are null
        "rows": [{"id": "...", "source": "...", "rule": "twin", "score": 0.91,
                  "other": "aime24/3", "text": "the training problem", "other_text": "the benchmark's"}]}]}

A training problem that two benchmarks recognise stands under both, so `removed` of the benchmarks may
add up to more than the problems that went. certificate.md says the same to a reader. Not a proof of
absence: what the rules can't see is named in `decontaminate.py`.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from fathom.curate import decontaminate, fingerprint, text
from fathom.curate.decontaminate import HeldOut, Leak, Match
from fathom.records import Problem, to_json

VERSION = 1
CONSTANTS = {
    "long_gram": decontaminate.LONG,
    "short_gram": decontaminate.SHORT,
    "least_short_grams": decontaminate.ENOUGH,
    "stock_phrase_above": decontaminate.STOCK,
    "similarity_without_gold": fingerprint.UNKNOWN_GOLD_SIMILARITY,
    "contained": fingerprint.CONTAINED,
    "contained_with_three_numbers": fingerprint.CONTAINED_CONFIRMED,
    "added_numbers": fingerprint.ADDED_NUMBERS,
}
WITHHELD = "gpqa"
"""Benchmarks whose name starts so: their authors ask not to put questions in plain text on the web."""
SHOWN = 20
"""Removed rows per benchmark in certificate.md; certificate.json holds all."""


def rows_hash(problems: Iterable[Problem]) -> str:
    """SHA-256 of problems as JSON Lines in their order: equal for equal benchmarks, row for row."""
    digest = hashlib.sha256()
    for problem in problems:
        digest.update(to_json(problem).encode() + b"\n")
    return digest.hexdigest()


def certify(
    problems: Sequence[Problem], leaks: list[Leak], benchmarks: Sequence[HeldOut], kept: Path
) -> dict[str, Any]:
    """The certificate as plain JSON values. problems: what was read; kept: the file of those that stayed."""
    with open(kept, "rb") as stream:
        kept_hash = hashlib.file_digest(stream, "sha256").hexdigest()
    return {
        "version": VERSION,
        "problems": {"read": len(problems), "removed": len(leaks), "kept": len(problems) - len(leaks)},
        "kept_sha256": kept_hash,
        "constants": CONSTANTS,
        "benchmarks": [_benchmark(problems, leaks, benchmark) for benchmark in benchmarks],
    }


def _benchmark(problems: Sequence[Problem], leaks: list[Leak], benchmark: HeldOut) -> dict[str, Any]:
    withheld = benchmark.name.startswith(WITHHELD)
    matches = [(leak.row, match) for leak in leaks for match in leak.matches if match.benchmark == benchmark.name]
    return {
        "name": benchmark.name,
        "problems": len(benchmark.problems),
        "sha256": rows_hash(benchmark.problems),
        "rules": benchmark.rules.model_dump(),
        "removed": len(matches),
        "by_rule": dict(sorted(Counter(match.rule for _, match in matches).items())),
        "texts": "withheld" if withheld else "shown",
        "rows": [_row(problems[row], match, withheld) for row, match in matches],
    }


def _row(problem: Problem, match: Match, withheld: bool) -> dict[str, Any]:
    return {
        "id": problem.id,
        "source": problem.source,
        "rule": match.rule,
        "score": match.score,
        "other": match.other.id,
        "text": None if withheld else text.full_text(problem),
        "other_text": None if withheld else text.full_text(match.other),
    }


def write(folder: Path, certificate: dict[str, Any]) -> None:
    """Write certificate.json and certificate.md into a folder."""
    lines = json.dumps(certificate, ensure_ascii=False, indent=1)
    (folder / "certificate.json").write_text(lines + "\n", encoding="utf-8")
    (folder / "certificate.md").write_text(as_markdown(certificate), encoding="utf-8")


def as_markdown(certificate: dict[str, Any]) -> str:
    """The certificate for a reader: counts, rules, and the first removed rows of each benchmark."""
    count = certificate["problems"]
    rules = [rule for rule in decontaminate.RULES if any(rule in b["by_rule"] for b in certificate["benchmarks"])]
    lines = [
        "# Decontamination certificate",
        "",
        f"{count['read']:,} problems were compared with every problem of {len(certificate['benchmarks'])} benchmarks; "
        f"{count['removed']:,} were removed and {count['kept']:,} kept (SHA-256 of the file `{certificate['kept_sha256']}`).",
        "",
        f"| benchmark | problems | recognised |{''.join(f' {rule} |' for rule in rules)} SHA-256 of its rows |",
        f"|---|---|---|{'---|' * len(rules)}---|",
    ]
    for b in certificate["benchmarks"]:
        cells = [b["name"], f"{b['problems']:,}", f"{b['removed']:,}", *(str(b["by_rule"].get(r, 0)) for r in rules)]
        lines.append(f"| {' | '.join(cells)} | `{b['sha256'][:16]}...` |")
    for b in certificate["benchmarks"]:
        lines += ["", f"## {b['name']}", "", f"Rules: {_words(b['rules'])}."]
        if b["texts"] == "withheld":
            lines += ["", "The texts are withheld, as the benchmark's authors ask."]
        for row in b["rows"][:SHOWN]:
            lines += ["", f"**{row['id']}**: {row['rule']} ({row['score']:g}) of {row['other']}"]
            if b["texts"] == "shown":
                lines += ["", _quote(row["text"]), "", _quote(row["other_text"])]
        if len(b["rows"]) > SHOWN:
            lines += ["", f"{len(b['rows']) - SHOWN:,} more rows are in certificate.json."]
    lines += ["", f"Thresholds of all rules: {_words(certificate['constants'])}."]
    return "\n".join(lines) + "\n"


def _words(values: dict[str, Any]) -> str:
    return ", ".join(f"{key} {'off' if value is None else value}" for key, value in values.items())


def _quote(passage: str) -> str:
    return "\n".join("> " + line for line in passage.splitlines())
