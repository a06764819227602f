"""The evaluate stage: benchmarks x samplings of one model -> rollouts, rows of results.json, budget curves.

It joins what others do: `benchmarks` gives problems, `rollout` samples and grades, `scores` and
`curves` compute. The rollouts it writes are enough to compute every number again (`regrade.py`).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from pydantic import Field, model_validator

from fathom import graders
from fathom.config import Input, ModelInput, Operational, StageConfig
from fathom.engines import Engine, EngineConfig
from fathom.engines.replicas import check_fan_out, staffed_engine
from fathom.errors import InputError
from fathom.evaluate import metrics
from fathom.evaluate.curves import budget_curve
from fathom.evaluate.scores import Scores, Setting, collect, result_row, versus
from fathom.fanout import Crew, RayConfig
from fathom.records import Rollout, Sampling, read_jsonl, write_jsonl
from fathom.rollout import SamplingConfig, roll_out
from fathom.sources import benchmarks
from fathom.sources.benchmarks import Benchmark, BenchmarkChoice

if TYPE_CHECKING:
    from fathom.ledger import Meter


class EvaluateConfig(StageConfig):
    """`op: evaluate`.

    model: what the engine runs, and how rows name it (else the engine's own name). against: an
    earlier evaluate stage (the base model) for `vs_base`; it must hold the same benchmarks and
    samplings, with any number of samples. samples: chains per problem (one at temperature 0, where
    all are equal). beside: further evaluate stages (the parts of a merge) to compare with, paired.
    budgets: tokens at which the stored chains are read again (see `curves.SHARES`).
    usd_per_million_tokens: prices the budget curves; without it they hold tokens only. ray: where
    chunks are drawn and graded at once, one per replica of the engine.
    """

    model: ModelInput | None = None
    against: Input | None = None
    beside: list[Input] = []
    benchmarks: list[BenchmarkChoice] = Field(min_length=1)
    samples: int = Field(64, ge=1)
    samplings: list[SamplingConfig] = Field([SamplingConfig()], min_length=1)
    engine: EngineConfig
    system: str | None = None
    budgets: list[int] | None = None
    usd_per_million_tokens: float | None = None
    chunk: Annotated[int, Operational] = Field(64, ge=1)
    ray: Annotated[RayConfig | None, Operational] = None

    @model_validator(mode="after")
    def _fans_out(self) -> EvaluateConfig:
        check_fan_out(self.engine, self.ray)
        return self


def run_evaluate(inputs: dict[str, Any], config: EvaluateConfig, out: Path, meter: Meter) -> dict[str, Any]:
    """Stage: a model -> problems.jsonl, rollouts.jsonl, rows.json, comparisons.json and curves.json.

    Every rollout carries its benchmark in `meta` and its sampling, so several temperatures share the
    file. Everything that can be wrong with the input is found before the first token is sampled.
    """
    suites = _load(config, meter.seed)
    base = _read_base(inputs.get("against"), config, suites)
    with staffed_engine(config.engine, inputs.get("model"), meter, config.ray) as (engine, crew):
        rollouts = _sample(config, suites, engine, crew, meter)
    write_jsonl(out / "problems.jsonl", [problem for suite in suites for problem in suite.problems])
    write_jsonl(out / "rollouts.jsonl", rollouts)
    scores = collect(rollouts)
    _write_json(out / "comparisons.json", compare_beside(scores, inputs.get("beside", [])))
    return write_scores(scores, base, config.budgets, config.usd_per_million_tokens, out)


def compare_beside(scores: Sequence[Scores], directories: Sequence[Path]) -> list[dict[str, Any]]:
    """Paired differences to the models of other evaluate stages, wherever benchmark and sampling are the same."""
    others = [s for directory in directories for s in collect(read_jsonl(directory / "rollouts.jsonl", Rollout))]
    return [
        {"model": score.model, "other": other.model, **score.setting._asdict(), **versus(score, other)}
        for score in scores
        for other in others
        if other.setting == score.setting
    ]


def write_scores(
    scores: list[Scores],
    base: dict[Setting, Scores],
    budgets: Sequence[int] | None,
    usd_per_million_tokens: float | None,
    out: Path,
) -> dict[str, Any]:
    """Write rows.json and curves.json for scored rollouts; returns the stage's metrics.

    base: the base model's scores by setting (may be empty).
    """
    rows = [result_row(score, base.get(score.setting)) for score in scores]
    curves = [
        {
            **{key: row[key] for key in ("model", "benchmark", "temperature", "top_p")},
            "pass_at": score.pass_at,
            "tokens": metrics.token_summary(np.concatenate(score.tokens)) if score.counted else None,
            **budget_curve(score, budgets, usd_per_million_tokens),
        }
        for row, score in zip(rows, scores, strict=True)
    ]
    _write_json(out / "rows.json", rows)
    _write_json(out / "curves.json", curves)
    unusable = {str(score.setting): list(score.unusable) for score in scores if score.unusable}
    return {"rows": rows, **({"unusable_gold": unusable} if unusable else {})}


def _load(config: EvaluateConfig, seed: int) -> list[Benchmark]:
    benchmarks.names(config.benchmarks)
    return [benchmarks.load(choice, seed) for choice in config.benchmarks]


def _read_base(directory: Path | None, config: EvaluateConfig, suites: list[Benchmark]) -> dict[Setting, Scores]:
    if directory is None:
        return {}
    base = {score.setting: score for score in collect(read_jsonl(directory / "rollouts.jsonl", Rollout))}
    for suite in suites:
        for sampling in config.samplings:
            setting = Setting(suite.name, sampling.temperature, sampling.top_p, sampling.max_tokens)
            if setting not in base:
                raise InputError(f"against {config.against!r}: has no rollouts for {setting}")
            known = set(base[setting].problem_ids)
            if sum(problem.id in known for problem in suite.problems) < min(2, len(suite.problems)):
                raise InputError(f"against {config.against!r}: shares no two problems with {setting}")
    return base


def _sample(config: EvaluateConfig, suites: list[Benchmark], engine: Engine, crew: Crew, meter: Meter) -> list[Rollout]:
    rollouts: list[Rollout] = []
    for suite in suites:
        for drawn in config.samplings:
            sampling: Sampling = drawn.sampling(meter.seed)
            done = roll_out(
                suite.problems,
                engine,
                sampling,
                1 if sampling.temperature == 0 else config.samples,
                graders.grade,
                meter,
                chunk=config.chunk,
                prompt=suite.prompt,
                system=config.system,
                crew=crew,
            )
            name = config.model or engine.name
            rollouts += [replace(r, model=name, meta={**r.meta, "benchmark": suite.name}) for r in done]
    return rollouts


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
