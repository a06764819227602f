"""What sampling chains is expected to take: tokens, seconds, peak memory and paid calls, by the engine that samples them.

The `annotate`, `rewrite`, `rollout` and `evaluate` functions of the table of ops, beside `estimates.py`, and `generate`, on which
they and the estimate of GRPO rest. Lengths of chains are assumptions that stand here; speeds are `physics.py`'s.
"""

from __future__ import annotations

from dataclasses import astuple, replace
from pathlib import Path
from typing import Any

from fathom import physics
from fathom.bands import Prior, expected_chains
from fathom.estimates import GRADED_PER_SECOND, ROW_TOKENS, Estimate, Inputs, Setting, file_rows, shape_of
from fathom.ledger import dollars
from fathom.physics import Range
from fathom.records import Usage
from fathom.sources.benchmarks import table

CORPUS_CHAIN = Range(0.20, 0.40, 0.65)
"""Mean length of a sampled chain on corpus problems as a share of max_tokens. Assumption, below the next."""

BENCHMARK_CHAIN = Range(0.30, 0.62, 0.80)
"""The same on benchmarks: Fathom-R1's tables have 10,083-12,717 of 16,384 (0.62-0.78) on AIME25 and HMMT25."""

ANSWER_TOKENS = Range(150, 800, 2500)
"""Completion tokens of one annotation by a reasoning API model. Assumption."""

CALL_SECONDS = Range(2, 8, 30)
"""One call to an API, of as many at once as the engine's `concurrency`. Assumption."""

BATCH_SECONDS = Range(600, 7200, 86400)
"""A batch of the Batch API, whatever its size. Its completion window is 24 hours; the rest an assumption."""

PROMPT_TOKENS = Range(100, 250, 500)
"""Prompt tokens of one problem with its template. Assumption."""

SOLVE_RATES = (Prior(0.2, 0.2), Prior(0.3, 0.3), Prior(1, 1))
"""How a model's solve rates may be spread: most problems nearly always or hardly ever solved, or all rates alike. Assumption."""

START_SECONDS = {"gpu": Range(60, 120, 300), "cpu": Range(1, 3, 8)}
"""Loading a model and starting its engine. Assumption for the GPU; measured on 2 CPU cores for tiny models."""


def annotate(config: Any, inputs: Inputs, setting: Setting) -> Estimate:
    before = inputs[config.problems]
    answers = ANSWER_TOKENS.at_most(config.max_tokens)
    made = generate(config, inputs, setting, before.rows, answers, config.max_tokens)
    return replace(made, rows=before.rows, chains=before.chains)


def rewrite(config: Any, inputs: Inputs, setting: Setting) -> Estimate:
    rows, given = inputs[config.problems].rows, inputs[config.chains]
    per_problem, chain = given.chains or 1, CORPUS_CHAIN * config.max_tokens
    made = generate(config, inputs, setting, rows * per_problem, chain, config.max_tokens, PROMPT_TOKENS + chain)
    return replace(made, rows=rows, chains=per_problem, row_tokens=given.row_tokens)


def rollout(config: Any, inputs: Inputs, setting: Setting) -> Estimate:
    before = inputs[config.problems]
    cap = config.sampling.max_tokens
    samples = Range.exactly(config.samples)
    if config.until:
        samples = Range(*sorted(expected_chains(config.until, config.samples, spread) for spread in SOLVE_RATES))
    made = generate(config, inputs, setting, before.rows * samples, CORPUS_CHAIN * cap, cap)
    writer = setting.specs.get(config.model or "", "")
    return replace(made, rows=before.rows, chains=samples.mid, row_tokens=ROW_TOKENS.get(writer))


def evaluate(config: Any, inputs: Inputs, setting: Setting) -> Estimate:
    problems = sum(_benchmark_rows(benchmark) for benchmark in config.benchmarks)
    total: Estimate | None = None
    for sampling in config.samplings:
        chains = Range.exactly(problems * (config.samples if sampling.temperature else 1))
        made = generate(config, inputs, setting, chains, BENCHMARK_CHAIN * sampling.max_tokens, sampling.max_tokens)
        total = made if total is None else _both(total, made)
    if len(config.samplings) > 1 and config.engine.kind == "http" and not config.engine.replay:
        return replace(total, note=_called(config.engine, total.api_usd))
    return total


def _benchmark_rows(benchmark: Any) -> int:
    if made := benchmark.generated or benchmark.programs:
        rows = made.count
    elif benchmark.path is not None:
        rows = file_rows(Path(benchmark.path))
    else:
        entry = table().get(benchmark.name)
        rows = entry.problems if entry and entry.problems else 500
    return min(rows, benchmark.limit or rows)


def generate(
    config: Any,
    inputs: Inputs,
    setting: Setting,
    chains: Range,
    length: Range,
    cap: int,
    prompt: Range = PROMPT_TOKENS,
) -> Estimate:
    """Chains of some mean length, after prompts of another, by the engine of a configuration."""
    kind = config.engine.kind
    tokens = chains * (length + prompt)
    if kind in ("scripted", "recorded"):
        return Estimate(Range(0.2, 1, 5) + chains.over(GRADED_PER_SECOND), note=f"{kind} engine: no model runs")
    if kind == "http" and config.engine.replay:
        return Estimate(Range(0.2, 1, 5) + chains.over(GRADED_PER_SECOND), note="recorded answers: no call is made")
    if kind == "http":
        name, batch = config.engine.model, config.engine.batch
        costs = [
            setting.prices.tokens_usd(name, Usage(round(n * before), round(n * answer)), batch)
            for n, before, answer in zip(astuple(chains), astuple(prompt), astuple(length.at_most(cap)), strict=True)
        ]
        api_usd = None if None in costs else Range(*costs)
        seconds = BATCH_SECONDS if batch else chains * CALL_SECONDS * (1 / config.engine.concurrency)
        return Estimate(seconds, tokens=tokens, api_usd=api_usd, note=_called(config.engine, api_usd))
    shape = shape_of(config.model, inputs, setting)
    if shape is None:
        return Estimate(None, tokens=tokens, note="size of the model unknown before it is downloaded")
    context = length.mid / 2 + prompt.mid
    speed = physics.decoding_speed(shape, context, setting.device, setting.count, max(chains.mid, 1))
    peak = physics.decoding_memory(shape, context, setting.device, chains.mid)
    return Estimate(START_SECONDS[setting.kind] + (chains * length).over(speed), tokens=tokens, peak_gib=peak)


def _called(engine: Any, api_usd: Range | None) -> str:
    told = "no price is known" if api_usd is None else f"{dollars(api_usd.mid)} of it for their tokens"
    return f"{'batches' if engine.batch else 'calls'} to {engine.model}: {told}"


def _both(first: Estimate, second: Estimate) -> Estimate:
    """One stage that does two pieces of work in turn."""
    return Estimate(
        first.seconds + second.seconds if first.seconds and second.seconds else None,
        tokens=first.tokens + second.tokens if first.tokens and second.tokens else None,
        peak_gib=max(first.peak_gib or 0, second.peak_gib or 0) or None,
        api_usd=first.api_usd + second.api_usd if first.api_usd and second.api_usd else None,
        note=first.note,
    )
