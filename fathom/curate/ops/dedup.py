"""`op: dedup`: problems without repeats."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from fathom.chunks import write_rows
from fathom.config import Input, StageConfig
from fathom.curate import dedup
from fathom.curate.funnel import finish
from fathom.records import Rollout, read_jsonl, read_problems

if TYPE_CHECKING:
    from fathom.ledger import Meter


class DedupConfig(StageConfig):
    """`op: dedup`. similarity: least Jaccard similarity of content words at equal numbers and gold.

    chains: the artifact whose rollouts.jsonl says which row has the most chains (default: `problems`).
    """

    problems: Input
    chains: Input | None = None
    similarity: float = Field(0.5, ge=0, le=1)


def run_dedup(inputs: dict[str, Any], config: DedupConfig, out: Path, meter: Meter) -> dict[str, Any]:
    """Stage: problems.jsonl without repeats; removed.jsonl says which row each one repeats and why."""
    problems = read_problems(inputs["problems"] / "problems.jsonl")
    recorded = (inputs.get("chains") or inputs["problems"]) / "rollouts.jsonl"
    chains = Counter(r.problem_id for r in read_jsonl(recorded, Rollout)) if recorded.exists() else Counter()
    repeats = dedup.find_repeats(problems, chains, config.similarity)
    gone = {r.row for r in repeats}
    kept = [p for i, p in enumerate(problems) if i not in gone]
    same = sum(r.rule != "similar" for r in repeats)
    write_rows(out / "removed.jsonl", dedup.removed_rows(problems, repeats))
    funnel = [
        ["problems", len(problems)],
        ["without equal texts", len(problems) - same],
        ["without near-duplicates", len(kept)],
    ]
    return finish("dedup", out, kept, funnel, {"by_rule": dict(sorted(Counter(r.rule for r in repeats).items()))})
