"""Chains in the form of Sky-T1: a thought section, nearly word for word, and a solution section.

The rewriter is any engine, and is not believed: an answer counts when both sections are there, the
final answer is the original's, nearly all its words stand in their order, nearly all of the thought
is the original's, and the grader says of the new text what it said of the old one. A chain that
never gets such an answer is set aside with the reason. It neither repairs nor selects chains.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from fathom import graders
from fathom.annotate.asking import Asked, Unfit, ask_until_valid
from fathom.chunks import digest, run_chunks, write_rows
from fathom.config import Input, ModelInput, Operational, StageConfig
from fathom.engines import Completion, Engine, EngineConfig, open_engine
from fathom.errors import InputError
from fathom.prompts import Prompt, render, template
from fathom.records import Message, Problem, Rollout, Sampling, read_jsonl, read_problems, to_json, write_jsonl

if TYPE_CHECKING:
    from fathom.ledger import Meter

FAILED = "rewrite_failed"
"""Key of `meta` under which a chain without a valid rewrite carries [reason, detail] until it is set aside."""

LAYOUT = "<|begin_of_thought|>\n\n{thought}\n\n<|end_of_thought|>\n\n<|begin_of_solution|>\n\n{solution}\n\n<|end_of_solution|>"
_SECTIONS = re.compile(
    r"\s*<\|begin_of_thought\|>(.+)<\|end_of_thought\|>\s*<\|begin_of_solution\|>(.+)<\|end_of_solution\|>\s*",
    re.DOTALL,
)
_TAG = re.compile(r"</?think>|<\|(?:begin|end)_of_(?:thought|solution)\|>")
_WORD = re.compile(r"\w+|[^\w\s]")
_FENCE = re.compile(r"^[ \t]*```", re.MULTILINE)


class RewriteConfig(StageConfig):
    """`op: rewrite`. template: a shipped one's name or `{file: mine.txt}`, with the fields $question and $chain.

    keep: share of the original's words (and signs) that must survive in their order, and share of
    the thought's that must come from the original. correct_only: leave out chains that were graded
    wrong, or not graded. The default temperature is the one Sky-T1 was rewritten at. chunk: chains
    per saved piece of work.
    """

    problems: Input
    chains: Input
    engine: EngineConfig
    model: ModelInput | None = None
    template: Prompt = "rewrite"
    keep: float = Field(0.9, gt=0, le=1)
    correct_only: bool = False
    temperature: float = Field(0.7, ge=0)
    max_tokens: int = Field(16384, ge=1)
    chunk: Annotated[int, Operational] = Field(256, ge=1)


def run_rewrite(inputs: dict[str, Any], config: RewriteConfig, out: Path, meter: Meter) -> dict[str, Any]:
    """Stage: rollouts.jsonl -> rollouts.jsonl rewritten, with verdicts; removed.jsonl has the rest and why.

    A rewritten chain keeps its model and sampling; `tokens` are the rewriter's count of its answer, and
    `meta.rewrite` is {by, prompt (hash of the template), kept (share of words), asks, usd where it is known}.
    """
    problems = {p.id: p for p in read_problems(inputs["problems"] / "problems.jsonl")}
    chains = list(read_jsonl(inputs["chains"] / "rollouts.jsonl", Rollout))
    key, count = Counter(map(_key, chains)).most_common(1)[0] if chains else ("", 0)
    if count > 1:
        raise InputError(f"rewrite: {count} chains are called {key}; rewrite those of one model at a time")
    removed = {_key(c): reason for c in chains if (reason := _why_not(c, problems, config)) is not None}
    wanted = [c for c in chains if _key(c) not in removed]
    if not wanted:
        raise InputError(f"rewrite: none of the {len(chains)} chains can be rewritten: {_first(removed)}")
    engine = open_engine(config.engine, inputs.get("model"), meter)
    sampling = Sampling(config.temperature, 1.0, config.max_tokens, meter.seed)
    name = digest(
        engine.name, to_json(sampling), template(config.template), config.keep, config.chunk, *map(to_json, wanted)
    )
    try:
        done = run_chunks(
            wanted,
            config.chunk,
            meter.scratch / f"rewrites-{name}",
            lambda part: rewrite(part, problems, engine, sampling, config, meter),
            Rollout,
            meter,
            note="chains",
        )
    finally:
        engine.close()
    kept = [c for c in done if FAILED not in c.meta]
    removed |= {_key(c): tuple(c.meta[FAILED]) for c in done if FAILED in c.meta}
    if not kept:
        raise InputError(f"rewrite: none of the {len(wanted)} chains got a valid rewrite: {_first(removed)}")
    write_jsonl(out / "rollouts.jsonl", kept)
    rows = ((_key(c), *removed[_key(c)]) for c in chains if _key(c) in removed)
    write_rows(out / "removed.jsonl", ({"id": key, "reason": why, "detail": detail} for key, why, detail in rows))
    return {
        "chains": len(kept),
        "correct": sum(c.verdict is not None and c.verdict.correct is True for c in kept),
        "rewriter": engine.name,
        "asked_again": sum(c.meta["rewrite"]["asks"] > 1 for c in kept),
        "kept_mean": round(sum(c.meta["rewrite"]["kept"] for c in kept) / len(kept), 4),
        "set_aside": dict(sorted(Counter(why for why, _ in removed.values()).items())),
        "funnel": [
            ["chains", len(chains)],
            ["that can be rewritten", len(wanted)],
            ["with a valid rewrite", len(kept)],
        ],
    }


def _key(chain: Rollout) -> str:
    return f"{chain.problem_id}#{chain.index}"


def _first(removed: dict[str, tuple[str, str]]) -> str:
    key, (reason, detail) = next(iter(removed.items()), ("", ("there is none", "")))
    return " ".join(filter(None, (f"{key}:" if key else "", reason, f"({detail})" if detail else "")))


def _why_not(chain: Rollout, problems: dict[str, Problem], config: RewriteConfig) -> tuple[str, str] | None:
    """(reason, detail) why a chain need not be asked about."""
    problem = problems.get(chain.problem_id)
    if problem is None:
        return "its problem was removed by an earlier stage", ""
    if config.correct_only and not (chain.verdict and chain.verdict.correct):
        return "it was not graded correct", ""
    if chain.finish == "length":
        return "it was cut at its token budget", ""
    if _final(problem, chain.text) is None:
        return "it has no final answer that could be kept", ""
    return None


def rewrite(
    chains: Sequence[Rollout],
    problems: dict[str, Problem],
    engine: Engine,
    sampling: Sampling,
    config: RewriteConfig,
    meter: Meter,
) -> list[Rollout]:
    """The chains rewritten, in order; one that never got a valid answer carries the reason in its meta."""
    chain_of = {_key(c): replace(c, verdict=c.verdict or graders.grade(problems[c.problem_id], c.text)) for c in chains}
    prompts = {key: _prompt(problems[c.problem_id], c, config.template) for key, c in chain_of.items()}

    def read(completion: Completion) -> Rollout:
        chain = chain_of[completion.key]
        return read_rewrite(completion, chain, problems[chain.problem_id], config.keep)

    asked = ask_until_valid(prompts, read, engine, sampling, meter)
    by = {"by": engine.name, "prompt": digest(template(config.template))}
    return [_with_lineage(chain, asked[key], by) for key, chain in chain_of.items()]


def _prompt(problem: Problem, chain: Rollout, name: Prompt) -> tuple[Message, ...]:
    return (Message("user", render(name, question=problem.question, chain=_TAG.sub("", chain.text).strip())),)


def _with_lineage(chain: Rollout, asked: Asked[Rollout], by: dict[str, str]) -> Rollout:
    if asked.value is None:
        return replace(chain, meta={**chain.meta, FAILED: [asked.unfit.reason, asked.unfit.detail]})
    told = {**by, **asked.value.meta["rewrite"], "asks": asked.asks}
    if asked.usd is not None:
        told["usd"] = asked.usd
    return replace(asked.value, meta={**chain.meta, "rewrite": told})


def read_rewrite(completion: Completion, chain: Rollout, problem: Problem, keep: float) -> Rollout:
    """The chain with the text of a rewriter's answer, its verdict, and `meta.rewrite.kept`.

    chain: with its verdict. Raises Unfit for an answer that breaks one of the rules of this module.
    """
    if completion.finish == "length":
        raise Unfit("the answer was cut at max_tokens")
    thought, solution = read_sections(completion.text)
    if problem.kind == "code" and (fences := len(_FENCE.findall(solution))) != 2:
        raise Unfit("the solution has not exactly one code block", f"{fences} lines of ```")
    before, after = _final(problem, chain.text), _final(problem, solution)
    if after != before and not (problem.kind == "math" and after is not None and graders.equivalent(before, after)):
        raise Unfit("the final answer was changed", f"from {_short(before)} to {_short(after)}")
    original, copied = _words(chain.text), _words(thought)
    kept = common(original, copied + _words(solution)) / len(original)
    if kept < keep:
        raise Unfit("too little of the text was kept", f"{kept:.3f} of its words, {keep:g} are wanted")
    if (own := common(original, copied) / len(copied)) < keep:
        raise Unfit("too much of the thought is new", f"{own:.3f} of its words are the original's, {keep:g} are wanted")
    text = LAYOUT.format(thought=thought, solution=solution)
    verdict = graders.grade(problem, text)
    if verdict.correct is not chain.verdict.correct:
        raise Unfit("the verdict was changed", f"from {chain.verdict.correct} to {verdict.correct}")
    return replace(
        chain, text=text, tokens=completion.tokens, verdict=verdict, meta={"rewrite": {"kept": round(kept, 4)}}
    )


def read_sections(text: str) -> tuple[str, str]:
    """(thought, solution) of an answer that is these two sections and nothing else, thinking of its own aside.

    Raises Unfit for any other.
    """
    if text.lstrip().startswith("<think>"):
        text = text.partition("</think>")[2]
    found = _SECTIONS.fullmatch(text)
    sections = [part.strip() for part in found.groups()] if found else []
    if not sections or not all(map(_words, sections)) or any(map(_TAG.search, sections)):
        raise Unfit("the answer is not one thought and one solution section", f"it begins {_short(text)}")
    return sections[0], sections[1]


def common(one: Sequence[str], other: Sequence[str]) -> int:
    """Length of the longest common subsequence: words of one that stand in the other, in the same order.

    By bit-parallel dynamic programming (Crochemore et al. 2001): len(other) additions of numbers of len(one) bits.
    """
    places: dict[str, int] = {}
    for place, word in enumerate(one):
        places[word] = places.get(word, 0) | 1 << place
    full = (1 << len(one)) - 1
    row = full
    for word in other:
        hits = row & places.get(word, 0)
        row = (row + hits | row - hits) & full
    return len(one) - row.bit_count()


def _words(text: str) -> list[str]:
    return _WORD.findall(_TAG.sub(" ", text))


def _final(problem: Problem, text: str) -> str | None:
    """What the text gives as its answer; for code the program without blank lines."""
    if problem.kind != "code":
        return graders.final_answer(text, problem.kind)
    from fathom.graders.code import extract_code  # the sandbox is loaded for code alone

    lines = extract_code(text).splitlines() if _FENCE.search(text) else []
    return "\n".join(line.rstrip() for line in lines if line.strip()) or None


def _short(text: str | None) -> str:
    return repr(" ".join(text.split())[:60]) if text is not None else "none"
