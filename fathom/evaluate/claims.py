"""Is a published number consistent with stored rollouts, or with the published figures alone?

Three verdicts. "contradicted": the 95% interval excludes what is claimed. "consistent": it does
not, and it is tight enough to have excluded something else. "underpowered": it excludes neither
the claim nor its opposite, so the evaluation can't carry the claim.

Two questions are kept apart. *These problems*: would a rerun on the same problems say the same?
Only sampling is uncertain. *Problems like these*: does it hold beyond the benchmark's 30 problems?
The problems are uncertain too.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from fathom.errors import InputError
from fathom.evaluate import evidence, intervals, power, published
from fathom.evaluate.claim_text import Claim, parse_claim
from fathom.evaluate.compare import load_scores
from fathom.evaluate.evidence import Z95, Side
from fathom.evaluate.scores import Scores, Setting, shared

TOLERANCE = 0.05
"""A claim of one figure is carried when a rerun could have shown it wrong by this much (with power 80%)."""

Z80 = intervals.normal_quantile(0.8)


def check_claim(text: str, run: Path | None = None) -> dict[str, Any]:
    """Judge a claim such as "Fathom-R1-14B AIME25 pass@1 52.71 > Light-R1-14B 51.15".

    run: a run directory, evaluate artifact or rollouts.jsonl to judge it by; without one, the
    published figures alone. Returns `verdict`, `scope` (which of the two questions it answers),
    `why` (a sentence), and the numbers behind it. Raises InputError for a claim that can't be read,
    or whose models or benchmark are neither in the run nor published.
    """
    runs = load_scores(run) if run is not None else []
    claim = parse_claim(text, tuple({score.setting.benchmark for score in runs}))
    judged = _compare(claim, runs) if claim.other else _single(claim, runs)
    return {"claim": text, "benchmark": claim.benchmark, "metric": claim.metric, **judged}


# ---------------------------------------------------------------------------- one figure


def _single(claim: Claim, runs: list[Scores]) -> dict[str, Any]:
    score = evidence.pick(claim, claim.model, runs) if runs else None
    claimed = evidence.stated(claim, claim.model, claim.value, len(score.problem_ids) if score else None)
    references = [evidence.from_rollouts(score, claim)] if score else _published_references(claim)
    judged = _against(claimed, references) if references else _unchecked(claimed)
    shown = {"claimed": claimed.shown(), "evidence": [side.shown() for side in references]}
    return {**judged, **shown, "notes": list(claimed.notes)}


def _published_references(claim: Claim) -> list[Side]:
    """Other published measurements of the claimed figure; none when it is the only one."""
    listed = published.find(claim.model, claim.benchmark, claim.metric)
    if not listed:
        raise InputError(f"claim {claim.text!r}: no published figure of {claim.model} on {claim.benchmark}; give a run")
    return [evidence.from_figure(figure) for figure in listed if not evidence.agrees(claim.value, figure)]


def _against(claimed: Side, references: list[Side]) -> dict[str, Any]:
    """The claimed figure against other measurements on the same problems, weighted by their samples."""
    samples = sum(side.samples for side in references)
    found = sum(side.value * side.samples for side in references) / samples
    variance = sum(side.variance * side.samples**2 for side in references) / samples**2
    error = math.sqrt(claimed.variance + variance)
    difference, half, detectable = claimed.value - found, Z95 * error, (Z95 + Z80) * error
    would = f"a difference of {100 * detectable:.1f} would have shown (power 80%)"
    if abs(difference) > half:
        verdict, so = "contradicted", "more than sampling explains"
    elif detectable > TOLERANCE:
        verdict, so = "underpowered", f"only {would}"
    else:
        verdict, so = "consistent", would
    why = (
        f"claimed {claimed.value:.2%}, found {found:.2%}: {_points(difference)}, "
        f"95% ± {100 * half:.1f} on the same {claimed.problems} problems; {so}"
    )
    numbers = {"difference": difference, "ci": [difference - half, difference + half], "detectable": detectable}
    return {"verdict": verdict, "scope": "these problems", "why": why, **numbers}


def _unchecked(claimed: Side) -> dict[str, Any]:
    """A published figure that nobody else has measured: only its own width can be judged."""
    half = Z95 * math.sqrt(claimed.variance)
    verdict = "consistent" if half <= TOLERANCE else "underpowered"
    low, high = claimed.ci
    why = (
        "it is the published figure, with no other measurement to hold against it; a rerun on the same "
        f"{claimed.problems} problems may differ by {100 * half:.1f} points, and over problems like these the 95% "
        f"interval is {low:.1%} to {high:.1%}"
    )
    return {"verdict": verdict, "scope": "these problems", "why": why}


# ---------------------------------------------------------------------------- two figures


def _compare(claim: Claim, runs: list[Scores]) -> dict[str, Any]:
    runs = _sampled_alike(claim, runs)
    a = evidence.best(claim, claim.model, claim.value, runs)
    b = evidence.best(claim, claim.other, claim.other_value, runs)
    here, beyond = _on_these_problems(a, b), _on_problems_like_these(a, b, claim)
    paired = a.scores is not None and b.scores is not None
    scope, judged = ("problems like these", beyond) if paired else ("these problems", here)
    size = _claimed_size(claim)
    misquoted = [side.misquoted for side in (a, b) if side.misquoted]
    verdict = "contradicted" if misquoted else _verdict(claim, judged["ci"], size)
    low, high = (100 * end for end in judged["ci"])
    why = f"{a.model} - {b.model} = {_points(judged['difference'])}, 95% interval {low:+.1f} to {high:+.1f} ({scope})"
    if size is not None and not judged["ci"][0] <= size <= judged["ci"][1]:
        misquoted.append(f"claimed {_points(size)}")
    aim = abs(judged["difference"] if size is None else size)
    return {
        "verdict": verdict,
        "scope": scope,
        "why": "; ".join([why, *misquoted]),
        "a": a.shown(),
        "b": b.shown(),
        "these_problems": here,
        "problems_like_these": beyond,
        "needed": _needed(_noise(a, b, claim), aim, a, claim) if aim else None,
        "notes": [*a.notes, *b.notes],
    }


def _sampled_alike(claim: Claim, runs: list[Scores]) -> list[Scores]:
    """Those of settings that the run has of both models, where it has any: what differs must be the model alone."""

    def settings(model: str) -> set[Setting]:
        return {score.setting for score in runs if published.same_name(score.model, model)}

    both = settings(claim.model) & settings(claim.other)
    both = {s for s in both if s.benchmark == claim.benchmark and claim.temperature in (None, s.temperature)}
    return [score for score in runs if score.setting in both] or runs


def _verdict(claim: Claim, ci: list[float], size: float | None) -> str:
    """size: the claimed difference (signed), where one is stated: it must lie inside the interval."""
    low, high = ci
    if size is not None and not low <= size <= high:
        return "contradicted"
    if low <= 0 <= high:
        return "underpowered"
    return "consistent" if (low > 0) == (claim.relation == ">") else "contradicted"


def _claimed_size(claim: Claim) -> float | None:
    if claim.value is not None and claim.other_value is not None:
        return claim.value - claim.other_value
    return claim.difference


def _on_these_problems(a: Side, b: Side) -> dict[str, Any]:
    half = Z95 * math.sqrt(a.variance + b.variance)
    difference = a.value - b.value
    return {"difference": difference, "ci": [difference - half, difference + half]}


def _on_problems_like_these(a: Side, b: Side, claim: Claim) -> dict[str, Any]:
    """Paired where rollouts allow it, else the widest bound."""
    if a.scores and b.scores:
        ours, theirs = shared(a.scores, b.scores)
        if claim.metric == "cons":
            paired = intervals.paired_difference(ours.consensus, theirs.consensus, samples=1)
        else:
            least = min(ours.samples, theirs.samples)
            paired = intervals.paired_difference(ours.solve_rates, theirs.solve_rates, least)
        return {"difference": paired.mean, "ci": list(paired.ci), "p": paired.p, "how": "paired by problem"}
    half = Z95 * math.sqrt(sum(side.value * (1 - side.value) / side.problems for side in (a, b)))
    difference = a.value - b.value
    return {
        "difference": difference,
        "ci": [difference - half, difference + half],
        "how": "unpaired bound: published figures don't say which problems were solved",
    }


def _needed(noise: power.Noise, difference: float, side: Side, claim: Claim) -> dict[str, Any]:
    """What power 80% takes: samples on these problems (null: no number is enough), or problems at this k.

    Of published figures the spread between problems is unknown, so `problems` is the least it can be.
    A vote gains nothing that can be planned from more samples, so for cons@k only problems are given.
    """
    samples = {"samples_per_problem": power.samples_needed(noise, difference, side.problems)}
    problems = power.problems_needed(noise, difference, side.samples)
    return {"difference": difference, **(samples if claim.metric == "pass1" else {}), "problems": problems}


def _noise(a: Side, b: Side, claim: Claim) -> power.Noise:
    """The parts of the difference's variance, measured where two runs allow it."""
    if not (a.scores and b.scores):
        return power.Noise(0.0, a.within, b.within)
    ours, theirs = shared(a.scores, b.scores)
    if claim.metric == "cons":
        spread = float(np.var(ours.consensus - theirs.consensus, ddof=1))
        return power.Noise(max(0.0, spread - a.within - b.within), a.within, b.within)
    if min(ours.samples, theirs.samples) < 2:
        return power.Noise(0.0, a.within, b.within)
    return power.measured_noise(ours.correct, theirs.correct)


def _points(value: float) -> str:
    return f"{100 * value:+.1f} points"
