"""THE generate -> grade loop: n chains per problem, graded as they arrive, resumable.

Solve rates, rejection sampling, evaluation and GRPO all call `roll_out`. It knows neither how
text is made (an engine's business), nor what a right answer is (a grader's), nor when a problem has
chains enough (`fathom.bands`).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, model_validator

from fathom import graders
from fathom.bands import REFERENCE, Until, count_solved, fit_prior, open_counts, savings
from fathom.chunks import digest, run_chunks, write_rows
from fathom.config import Input, ModelInput, Operational, StageConfig
from fathom.engines import Completion, Engine, EngineConfig, Request
from fathom.engines.replicas import check_fan_out, staffed_engine
from fathom.errors import InputError, WorkError
from fathom.fanout import Crew, RayConfig, open_crew
from fathom.prompts import Prompt
from fathom.prompts.ask import ask
from fathom.records import Problem, Rollout, Sampling, Usage, Verdict, read_jsonl, read_problems, to_json, write_jsonl

if TYPE_CHECKING:
    from fathom.ledger import Meter

Grade = Callable[[Problem, str, bool], Verdict]


def roll_out(
    problems: Sequence[Problem],
    engine: Engine,
    sampling: Sampling,
    samples: int,
    grade: Grade | None,
    meter: Meter,
    *,
    chunk: int = 64,
    prompt: Prompt | None = None,
    system: str | None = None,
    allow_fewer: bool = False,
    until: Until | None = None,
    crew: Crew | None = None,
    keep_tokens: bool = False,
) -> list[Rollout]:
    """Sample `samples` chains of every problem and grade each as (problem, text, truncated).

    Returns rollouts in the order of `problems`, then by index; the verdict is None without `grade`.
    Every `chunk` problems are saved under `meter.scratch`, so a killed run repeats at most one
    chunk and ends with the same bytes. `allow_fewer` accepts an engine that has fewer chains.
    `until` draws in waves and leaves a problem alone, before it has `samples` chains, once enough
    bands are certain; the chains that are drawn are the same ones as without it.
    crew: who works on the chunks (default: this process); what it sends to others must pickle, as an
    `engines.replicas.Replica` does. keep_tokens: leave `token_ids` and `logprobs`, as the engine
    drew them, in the rollouts' `meta`. Raises WorkError when the engine skips, repeats or invents a chain.
    """
    by_id = {p.id: p for p in problems}
    messages = {p.id: ask(p, prompt, system) for p in problems}

    def bill(chains: Sequence[Rollout]) -> None:
        if engine.device != "api":  # whose engine bills every call itself
            usage = sum((Usage(r.prompt_tokens, r.tokens) for r in chains), Usage())
            meter.usage(engine.name, usage, engine.device)

    def draw(going: Mapping[str, int], more: int, size: int) -> list[Rollout]:
        """Up to `more` further chains of each problem; `going` says from which index on."""
        requests = [Request(key, messages[key], min(more, samples - first), first) for key, first in going.items()]
        asked = [by_id[r.key] for r in requests]
        name = digest(engine.name, to_json(sampling), samples, size, *map(to_json, asked), *requests)
        work = partial(
            _work_chunk,
            engine=engine,
            sampling=sampling,
            grade=grade,
            allow_fewer=allow_fewer,
            keep_tokens=keep_tokens,
        )
        pairs = list(zip(asked, requests, strict=True))
        folder = meter.scratch / f"rollouts-{name}"
        return run_chunks(pairs, size, folder, work, Rollout, meter, "problems", crew=crew, bill=bill)

    if until is None:
        return draw(dict.fromkeys(by_id, 0), samples, chunk)
    size = max(chunk, chunk * samples // until.wave)  # about as many chains at once as without waves
    return _in_waves(list(by_id), until, samples, lambda going: draw(going, until.wave, size))


def _in_waves(
    ids: Sequence[str], until: Until, samples: int, draw: Callable[[Mapping[str, int]], list[Rollout]]
) -> list[Rollout]:
    """Waves of `draw` until enough bands are certain, or every problem that isn't has `samples` chains."""
    done: list[Rollout] = []
    first = dict.fromkeys(ids, 0)
    going = list(ids)
    while going:
        done += draw({key: first[key] for key in going})
        first.update((key, first[key] + until.wave) for key in going)
        counts = count_solved(done, until.max_tokens)
        times = Counter(counts.values())
        unsure = open_counts(times, until, samples, fit_prior(times))
        going = [key for key in ids if counts.get(key) in unsure and first[key] < samples]
    order = {key: i for i, key in enumerate(ids)}
    return sorted(done, key=lambda r: (order[r.problem_id], r.index))


def _work_chunk(
    pairs: Sequence[tuple[Problem, Request]],
    engine: Engine,
    sampling: Sampling,
    grade: Grade | None,
    allow_fewer: bool,
    keep_tokens: bool,
) -> list[Rollout]:
    """One chunk, sorted. Grading runs in a thread of its own, behind the generation of later chains."""
    by_id = {problem.id: problem for problem, _ in pairs}
    order = {key: i for i, key in enumerate(by_id)}
    requests = [request for _, request in pairs]
    with ThreadPoolExecutor(max_workers=1) as grading:
        prompts = {r.key: digest(*map(to_json, r.messages)) for r in requests}
        pending = []
        for completion in engine.generate(requests, sampling):
            problem = by_id.get(completion.key)
            if problem is None:
                raise WorkError(f"{engine.name}: answered {completion.key!r}, which was not asked")
            truncated = completion.finish == "length"
            verdict = grading.submit(grade, problem, completion.text, truncated) if grade else None
            pending.append((completion, verdict))
        done = [
            _rollout(c, engine.name, sampling, prompts[c.key], v.result() if v else None, keep_tokens)
            for c, v in pending
        ]
    _check_complete(done, requests, engine.name, allow_fewer)
    return sorted(done, key=lambda r: (order[r.problem_id], r.index))


def _rollout(
    completion: Completion, model: str, sampling: Sampling, prompt: str, verdict: Verdict | None, keep_tokens: bool
) -> Rollout:
    paid = {} if completion.usd is None else {"usd": completion.usd}
    drawn = {"token_ids": list(completion.token_ids), "logprobs": list(completion.logprobs)} if keep_tokens else {}
    return Rollout(
        problem_id=completion.key,
        index=completion.index,
        text=completion.text,
        tokens=completion.tokens,
        finish=completion.finish,
        model=model,
        prompt_tokens=completion.prompt_tokens,
        sampling=sampling,
        verdict=verdict,
        meta={"prompt": prompt, **paid, **drawn},
    )


def _check_complete(done: Sequence[Rollout], requests: Sequence[Request], engine: str, allow_fewer: bool) -> None:
    got = [(r.problem_id, r.index) for r in done]
    wanted = {(r.key, i) for r in requests for i in range(r.first, r.first + r.samples)}
    if len(set(got)) < len(got) or not wanted.issuperset(got):
        key, index = next(g for g in got if got.count(g) > 1 or g not in wanted)
        raise WorkError(f"{engine}: chain {index} of {key!r} came twice or was not asked")
    if not allow_fewer and len(got) < len(wanted):
        key, index = min(wanted.difference(got))
        raise WorkError(f"{engine}: chain {index} of {key!r} never came ({len(got)} of {len(wanted)} did)")


class SamplingConfig(StageConfig):
    """How chains are drawn, as a recipe writes it; the seed is the recipe's."""

    temperature: float = Field(0.6, ge=0)
    top_p: float = Field(0.95, gt=0, le=1)
    max_tokens: int = Field(16384, ge=1)

    def sampling(self, seed: int) -> Sampling:
        return Sampling(self.temperature, self.top_p, self.max_tokens, seed)


class RolloutConfig(StageConfig):
    """`op: rollout`. prompt: a template's name, or `{file: mine.txt}` (by problem kind when absent).

    until: draw in waves, no further where the solve rate's band is certain; `samples` is then the most of
    any problem, and `chunk` counts as if each had them.
    grade: false keeps chains without verdicts, for a later grade stage. chunk: problems per
    saved piece of work. ray: where chunks are drawn and graded at once, one per replica of the engine.
    """

    problems: Input
    model: ModelInput | None = None
    engine: EngineConfig
    samples: int = Field(8, ge=1)
    until: Until | None = None
    sampling: SamplingConfig = SamplingConfig()
    prompt: Prompt | None = None
    system: str | None = None
    grade: bool = True
    chunk: Annotated[int, Operational] = Field(64, ge=1)
    ray: Annotated[RayConfig | None, Operational] = None

    @model_validator(mode="after")
    def _until_can_decide(self) -> RolloutConfig:
        if self.until and not self.grade:
            raise ValueError("until decides by verdicts, which grade: false leaves out")
        if self.until and self.samples > REFERENCE:
            raise ValueError(f"until draws at most {REFERENCE} chains of a problem, samples is {self.samples}")
        return self

    @model_validator(mode="after")
    def _fans_out(self) -> RolloutConfig:
        check_fan_out(self.engine, self.ray)
        return self


def run_rollout(inputs: dict[str, Any], config: RolloutConfig, out: Path, meter: Meter) -> dict[str, Any]:
    """Stage: problems.jsonl -> rollouts.jsonl, `samples` chains each, with verdicts."""
    problems = read_problems(inputs["problems"] / "problems.jsonl")
    with staffed_engine(config.engine, inputs.get("model"), meter, config.ray) as (engine, crew):
        rollouts = roll_out(
            problems,
            engine,
            config.sampling.sampling(meter.seed),
            config.samples,
            graders.grade if config.grade else None,
            meter,
            chunk=config.chunk,
            prompt=config.prompt,
            system=config.system,
            allow_fewer=getattr(config.engine, "allow_fewer", False),
            until=config.until,
            crew=crew,
        )
    write_jsonl(out / "rollouts.jsonl", rollouts)
    waves = {"until": savings(rollouts, config.until)} if config.until else {}
    return {"problems": len(problems), "model": engine.name, **summary(rollouts), **waves}


def summary(rollouts: Sequence[Rollout]) -> dict[str, Any]:
    """Counts of chains by verdict, plus the mean completion tokens of those whose count is known."""
    verdicts = [r.verdict.correct for r in rollouts if r.verdict]
    known = [r.tokens for r in rollouts if r.tokens]
    return {
        "chains": len(rollouts),
        "correct": sum(v is True for v in verdicts),
        "wrong": sum(v is False for v in verdicts),
        "unusable_gold": sum(v is None for v in verdicts),
        "ungraded": len(rollouts) - len(verdicts),
        "truncated": sum(r.finish == "length" for r in rollouts),
        "tokens_mean": round(sum(known) / len(known), 2) if known else None,
    }


class Reference(StageConfig):
    """Where someone else's verdict stands: names of keys in `Rollout.meta`."""

    verdict: str
    doubtful: str | None = None


class GradeConfig(StageConfig):
    """`op: grade`. reference: keys of a recorded verdict in the chains' `meta`, compared in the metrics.

    Rows marked doubtful, or without a recorded verdict, are left out of the comparison. ray: where
    chunks are graded at once.
    """

    problems: Input
    chains: Input
    reference: Reference | None = None
    chunk: Annotated[int, Operational] = Field(512, ge=1)
    ray: Annotated[RayConfig | None, Operational] = None


def run_grade(inputs: dict[str, Any], config: GradeConfig, out: Path, meter: Meter) -> dict[str, Any]:
    """Stage: recorded chains of the given problems -> rollouts.jsonl with verdicts.

    Chains of a problem that an earlier stage removed go to removed.jsonl.
    """
    problems = {p.id: p for p in read_problems(inputs["problems"] / "problems.jsonl")}
    chains = list(read_jsonl(inputs["chains"] / "rollouts.jsonl", Rollout))
    kept = [c for c in chains if c.problem_id in problems]
    if not kept:
        raise InputError(f"grade: none of the {len(chains)} chains belongs to one of the {len(problems)} problems")
    folder = meter.scratch / f"verdicts-{digest(config.chunk)}"
    pairs = [(problems[c.problem_id], c) for c in kept]
    with open_crew(config.ray) as crew:
        graded = run_chunks(pairs, config.chunk, folder, _grade, Rollout, meter, "chains", crew=crew)
    write_jsonl(out / "rollouts.jsonl", graded)
    write_rows(
        out / "removed.jsonl",
        (
            {"id": f"{c.problem_id}#{c.index}", "reason": "its problem was removed by an earlier stage"}
            for c in chains
            if c.problem_id not in problems
        ),
    )
    metrics = {"problems": len(problems), **summary(graded)}
    if config.reference:
        metrics["reference"] = agreement(graded, problems, config.reference)
    funnel = [["recorded chains", len(chains)], ["of remaining problems", len(kept)], ["correct", metrics["correct"]]]
    return {**metrics, "funnel": funnel}


def _grade(pairs: Sequence[tuple[Problem, Rollout]]) -> list[Rollout]:
    return [replace(c, verdict=graders.grade(problem, c.text, c.finish == "length")) for problem, c in pairs]


def agreement(graded: Sequence[Rollout], problems: dict[str, Problem], reference: Reference) -> dict[str, Any]:
    """How often our verdict equals a recorded one: over all rows, and over rows with an integer gold.

    A None verdict of ours (unusable gold) counts as a disagreement. `differ` names up to 50 rows.
    """
    rows = equal = integer_rows = integer_equal = 0
    differ = []
    for chain in graded:
        expected = chain.meta.get(reference.verdict)
        if not isinstance(expected, bool) or (reference.doubtful and chain.meta.get(reference.doubtful)):
            continue
        same = chain.verdict is not None and chain.verdict.correct is expected
        integer = re.fullmatch(r"-?\d+", (problems[chain.problem_id].gold or "").strip()) is not None
        rows, equal = rows + 1, equal + same
        integer_rows, integer_equal = integer_rows + integer, integer_equal + (integer and same)
        if not same:
            differ.append(f"{chain.problem_id}#{chain.index}")
    return {
        "rows": rows,
        "equal": equal,
        "integer_rows": integer_rows,
        "integer_equal": integer_equal,
        "differ": differ[:50],
    }
