"""`op: dedup`: problems without repeats."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from fathom.chunks import write_rows
from fathom.config import Input, Operational, StageConfig
from fathom.curate import dedup
from fathom.curate.corpus import Corpus
from fathom.curate.funnel import metrics
from fathom.fanout import RayConfig, open_crew
from fathom.records import Rollout, read_jsonl

if TYPE_CHECKING:
    from fathom.ledger import Meter


class DedupConfig(StageConfig):
    """`op: dedup`. similarity: least Jaccard similarity of content words at equal numbers and gold.

    chains: the artifact whose rollouts.jsonl says which row has the most correct chains, or, without
    verdicts, the most chains (default: `problems`). workers: processes of this machine;
    null is one per processor. ray: a cluster in their place.
    """

    problems: Input
    chains: Input | None = None
    similarity: float = Field(0.5, ge=0, le=1)
    workers: Annotated[int | None, Operational] = Field(None, ge=1)
    ray: Annotated[RayConfig | None, Operational] = None


def run_dedup(inputs: dict[str, Any], config: DedupConfig, out: Path, meter: Meter) -> dict[str, Any]:
    """Stage: problems.jsonl without repeats; removed.jsonl says which row each one repeats and why."""
    recorded = (inputs.get("chains") or inputs["problems"]) / "rollouts.jsonl"
    chains = dedup.count_chains(read_jsonl(recorded, Rollout)) if recorded.exists() else {}
    with Corpus(inputs["problems"] / "problems.jsonl") as problems:
        with open_crew(config.ray, config.workers) as crew:
            repeats = dedup.find_repeats(problems, chains, config.similarity, crew, meter.progress)
        by_rule = Counter(r.rule for r in repeats)
        same = sum(count for rule, count in by_rule.items() if rule.startswith("same text"))
        funnel = [
            ["problems", len(problems)],
            ["without equal texts", len(problems) - same],
            ["without near-duplicates", len(problems) - len(repeats)],
        ]
        found = metrics("dedup", len(problems) - len(repeats), funnel, {"by_rule": dict(sorted(by_rule.items()))})
        problems.copy_without({r.row for r in repeats}, out / "problems.jsonl")
        write_rows(out / "removed.jsonl", dedup.removed_rows(problems, repeats))
    return found
