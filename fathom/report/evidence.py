"""Figures of what the models wrote: solve rates, lengths, what a token budget buys, one problem read side by side."""

from __future__ import annotations

import itertools
import statistics
from typing import Any

from fathom.records import Problem, Rollout, read_jsonl
from fathom.report import charts, facts, words
from fathom.report.charts import Series
from fathom.report.read import Run, Stage, rollouts
from fathom.store import read_json

BINS = 32
RATES_SHOWN = 33
"""Distinct solve rates up to which each has a bar of its own: 32 chains a problem."""
CHAIN_SHOWN = 4000
"""Characters of a chain that the page shows."""


def evaluation(run: Run, model: str) -> Stage | None:
    """The finished evaluate stage that holds a model's chains."""
    return next((s for s in run.of("evaluate") if model in [row["model"] for row in s.metrics.get("rows", ())]), None)


def chains_of(run: Run, model: str, setting: facts.Setting) -> list[Rollout]:
    """The graded chains of a model in one evaluation setting."""
    stage = evaluation(run, model)
    if stage is None:
        return []
    wanted = (model, setting.benchmark, setting.temperature, setting.top_p, setting.max_tokens)
    return [chain for chain in rollouts(stage) if (chain.model, *_drawn(chain)) == wanted]


def _drawn(chain: Rollout) -> tuple[Any, ...]:
    sampling = chain.sampling
    drawn = (sampling.temperature, sampling.top_p, sampling.max_tokens) if sampling else (None, None, None)
    return (chain.meta.get("benchmark"), *drawn)


def pair_of_chains(run: Run, best: facts.Headline | None) -> tuple[list[Rollout], list[Rollout], tuple[str, str]]:
    """The chains behind the headline: the base's, the final model's, and the two names."""
    if best is None:
        return [], [], ("", "")
    names = (str(best.base["model"]), str(best.final["model"]))
    return chains_of(run, names[0], best.setting), chains_of(run, names[1], best.setting), names


def length_histogram(base: list[Rollout], final: list[Rollout], names: tuple[str, str]) -> dict[str, Any] | None:
    """Distribution of completion tokens of the base and the final model, with their means."""
    if not any(c.tokens for c in base) or not any(c.tokens for c in final):  # recorded chains may not say
        return None
    lengths = {names[0]: [c.tokens for c in base], names[1]: [c.tokens for c in final]}
    longest = max(max(values) for values in lengths.values())
    x = charts.nice_axis(0, longest, 8, words.number, whole=False)
    edges = [x.high * i / BINS for i in range(BINS + 1)]
    series = [
        Series(name, charts.histogram(values, edges), style, fill=True)
        for (name, values), style in zip(lengths.items(), ("base", "final"), strict=True)
    ]
    y = charts.nice_axis(0, 100 * max(share for s in series for _, share in s.points), 4, "{:g}%".format)
    scaled = [Series(s.name, [(a, 100 * b) for a, b in s.points], s.style, fill=True) for s in series]
    marks = [
        Series(f"mean of {name}: {statistics.fmean(values):.0f} tokens", [(statistics.fmean(values), 0.0)], style)
        for (name, values), style in zip(lengths.items(), ("base", "final"), strict=True)
    ]
    return {
        "chart": charts.plot(scaled, x, y, ("tokens of a chain", "share of chains"), marks),
        "sentence": " ".join(_length_line(name, chains) for name, chains in zip(names, (base, final), strict=True)),
    }


def _length_line(name: str, chains: list[Rollout]) -> str:
    lengths = sorted(chain.tokens for chain in chains)
    right = [chain.tokens for chain in chains if chain.verdict and chain.verdict.correct]
    wrong = [chain.tokens for chain in chains if chain.verdict and chain.verdict.correct is False]
    text = f"{name}: mean {statistics.fmean(lengths):.0f} tokens, median {statistics.median(lengths):.0f}"
    if right and wrong:
        text += f"; right answers take {statistics.fmean(right):.0f}, wrong ones {statistics.fmean(wrong):.0f}"
    return text + "."


def solve_rates(run: Run) -> list[dict[str, Any]]:
    """How many problems the base model solves how often: a histogram per solve_rate stage."""
    drawn = []
    for stage in run.of("solve_rate"):
        rates = [100 * row["solve_rate"] for row in stage.lines("problems.jsonl") if row.get("solve_rate") is not None]
        if rates:
            x = charts.nice_axis(0, 100, 10, "{:g}%".format)
            outline = [(at, len(rates) * share) for at, share in charts.histogram(rates, _edges(rates))]
            y = charts.nice_axis(0, max(count for _, count in outline), 4, words.number)
            chart = charts.plot([Series("", outline, "base", fill=True)], x, y, ("solve rate", "problems"), named=())
            caption = f"{words.number(len(rates))} problems, {_mean_rate(run, stage, rates)}"
            drawn.append({"stage": stage.name, "caption": caption, "chart": chart})
    return drawn


def _mean_rate(run: Run, stage: Stage, rates: list[float]) -> str:
    """The mean of the fractions; after waves, which stop early at problems that look settled, that of the fitted spread."""
    chains = run.stage(stage.config["chains"])
    if chains is not None and chains.config.get("until") and stage.metrics.get("mean_fitted") is not None:
        return f"fitted mean {words.percent(stage.metrics['mean_fitted'])} (chains were drawn in waves)"
    return f"mean {statistics.fmean(rates):.1f}%"


def _edges(rates: list[float]) -> list[float]:
    """Bins around each value where there are few (k chains give k + 1 rates), else tenths."""
    values = sorted(set(rates))
    if len(values) > RATES_SHOWN:
        return [10.0 * i for i in range(11)]
    return [0.0, *((a + b) / 2 for a, b in itertools.pairwise(values)), 100.0]


def budget_curves(run: Run) -> list[dict[str, Any]]:
    """What a token budget buys, one plot and table per benchmark and sampling, from the stages' curves.json."""
    curves = [
        {**curve, "token_price": token_price(run, stage)}
        for stage in run.of("evaluate")
        if (stage.directory / "curves.json").is_file()
        for curve in read_json(stage.directory / "curves.json")
    ]
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for curve in curves:
        if len(curve["points"]) > 1:
            most = None if curve["temperature"] is None else curve["points"][-1]["max_tokens"]
            key = (curve["benchmark"], curve["temperature"], curve["top_p"], most)
            groups.setdefault(key, []).append(curve)
    return [_budget_plot(run, key, group) for key, group in groups.items()]


def _budget_plot(run: Run, key: tuple[Any, ...], curves: list[dict[str, Any]]) -> dict[str, Any]:
    benchmark, temperature, top_p, _ = key
    base = next((curve["model"] for curve in curves if curve["model"] == "base"), None)
    colours = charts.styles([curve["model"] for curve in curves], base, run.final)
    series = [_budget_line(curve, colours[curve["model"]]) for curve in curves]
    every = [point for s in series for line in (s.points, s.low, s.high) for point in line]
    x = charts.nice_axis(0, max(a for a, _ in every), 6, words.number, whole=False)
    y = charts.nice_axis(min(b for _, b in every), max(b for _, b in every), 5, "{:g}%".format)
    knees = [f"{curve['model']} {words.number(curve['knee'])}" for curve in curves if curve.get("knee")]
    drawn = "recorded chains" if temperature is None else f"temperature {temperature:g}, top_p {top_p:g}"
    return {
        "title": benchmark,
        "caption": drawn + (f"; knee (tokens): {', '.join(knees)}" if knees else ""),
        "chart": charts.plot(series, x, y, ("token budget", "pass@1")),
        "rows": [
            _budget_row(curve, point)
            for curve in curves
            if curve["model"] in (base, run.final)
            for point in curve["points"]
        ],
    }


def token_price(run: Run, stage: Stage) -> float | None:
    """Dollars per completion token of an evaluation: its bill, waste left out, over what it generated. None if unpriced."""
    line = next((ln for ln in run.bill if (ln.stage, ln.key) == (stage.name, stage.manifest["key"])), None)
    generated = sum(usage.completion_tokens for usage in line.tokens.values()) if line else 0
    return (line.usd - (line.wasted_usd or 0.0)) / generated if generated and line.usd is not None else None


def _budget_row(curve: dict[str, Any], point: dict[str, Any]) -> list[str]:
    """Model, budget, pass@1, cons@k, truncated, dollars per 1,000 correct answers."""
    usd, tokens, price = point["usd_per_correct"], point["tokens_per_correct"], curve["token_price"]
    if usd is None and tokens is not None and price is not None:
        usd = tokens * price
    return [
        curve["model"],
        words.number(point["max_tokens"]),
        words.percent(point["pass1"]),
        words.percent(point["cons"]),
        words.percent(point["truncated"]),
        words.NONE if tokens is None else words.dollars(None if usd is None else 1000 * usd),
    ]


def _budget_line(curve: dict[str, Any], style: str) -> Series:
    points = curve["points"]
    known = [point for point in points if point["pass1_ci"]]
    return Series(
        curve["model"],
        [(point["max_tokens"], 100 * point["pass1"]) for point in points],
        style,
        low=[(point["max_tokens"], 100 * point["pass1_ci"][0]) for point in known],
        high=[(point["max_tokens"], 100 * point["pass1_ci"][1]) for point in known],
    )


def side_by_side(run: Run, base: list[Rollout], final: list[Rollout], names: tuple[str, str]) -> dict[str, Any] | None:
    """The first problem whose first chains are both right, as written by both models."""
    theirs = {chain.problem_id: chain for chain in base if _first_and_right(chain)}
    pair = next(((theirs[c.problem_id], c) for c in final if _first_and_right(c) and c.problem_id in theirs), None)
    stage = evaluation(run, names[1])
    if pair is None or stage is None:
        return None
    problems = read_jsonl(stage.directory / "problems.jsonl", Problem)
    problem = next(problem for problem in problems if problem.id == pair[0].problem_id)
    return {
        "rule": "The first problem of the evaluation whose first sampled chain is right with both models; nothing was picked by hand.",
        "question": problem.question,
        "check": checked_by(problem),
        "sides": [
            {
                "model": name,
                "style": style,
                "verdict": f"{chain.tokens} tokens, {outcome(problem, chain)}",
                "text": words.shortened(chain.text, CHAIN_SHOWN),
            }
            for name, style, chain in zip(names, ("base", "final"), pair, strict=True)
        ],
    }


def checked_by(problem: Problem) -> str:
    """What decides whether an answer is right."""
    return f"Answer: {problem.gold}" if problem.gold is not None else f"Checked by {len(problem.tests or ())} tests"


def outcome(problem: Problem, chain: Rollout) -> str:
    """A graded chain's answer; of a program, which is all of its text, how its tests went."""
    return chain.verdict.why if problem.kind == "code" else f"answer {chain.verdict.answer}"


def _first_and_right(chain: Rollout) -> bool:
    return chain.index == 0 and chain.verdict is not None and chain.verdict.correct is True
