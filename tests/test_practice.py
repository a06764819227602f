"""The scripts behind the tiny endpoints: mostly right, sometimes wrong in the ways that the pipeline must catch."""

from __future__ import annotations

from collections import Counter
from typing import get_args

import pytest

from fathom import graders
from fathom.annotate.asking import Unfit
from fathom.annotate.rewrite import read_rewrite
from fathom.annotate.scale import read_scale
from fathom.engines import Completion, Request
from fathom.engines.endpoint import ServeConfig
from fathom.prompts import render
from fathom.prompts.ask import ask
from fathom.records import Message, Problem, Rollout
from fathom.serve.practice import SCRIPTS, label, rewrite, teach
from fathom.sources.generated import GeneratedConfig, generate
from fathom.sources.programs import ProgramCorpus, generate_programs

MATHS = generate(GeneratedConfig(count=120))[0]
PROGRAMS = generate_programs(ProgramCorpus(count=30))


def taught(problem: Problem) -> Rollout:
    text = teach(Request("k", ask(problem)), 0, int(problem.id[-6:]))
    verdict = graders.grade(problem, text)
    return Rollout(problem.id, 0, text, len(text.split()), "stop", "tiny-teacher", verdict=verdict)


def rewritten(problem: Problem, chain: Rollout, seed: int) -> Rollout:
    prompt = render("rewrite", question=problem.question, chain=chain.text)
    text = rewrite(Request(problem.id, (Message("user", prompt),)), 0, seed)
    return read_rewrite(Completion("k", 0, text, len(text.split()), "stop"), chain, problem, keep=0.9)


def test_a_recipe_may_name_every_script_and_no_other():
    assert get_args(ServeConfig.model_fields["script"].annotation) == tuple(SCRIPTS)


@pytest.mark.parametrize("problems", [MATHS, PROGRAMS], ids=["maths", "programs"])
def test_the_teacher_is_mostly_right_and_sometimes_wrong(problems):
    verdicts = Counter(taught(problem).verdict.correct for problem in problems)
    assert set(verdicts) == {True, False}
    assert 0.02 < verdicts[False] / len(problems) < 0.35


def test_the_teacher_reads_the_question_and_nothing_else():
    (problem,) = generate(GeneratedConfig(count=1))[0]
    request = Request("k", ask(problem))
    assert teach(request, 0, 0) == teach(Request("k", ask(Problem("another id", problem.question, "no gold"))), 0, 0)
    assert "\\boxed" not in teach(Request("k", (Message("user", "Is P equal to NP?"),)), 0, 0)


def test_the_labeller_s_answers_are_on_the_scale_or_refused_and_another_seed_helps():
    read = Counter()
    for problem in MATHS + PROGRAMS:
        request = Request("k" + problem.id, ask(problem, "difficulty"))
        levels = [read_scale(label(request, 0, seed), 1, 10) for seed in range(4)]
        read.update(level is not None for level in levels)
        assert any(levels)
    assert 0 < read[False] < read[True] / 5


def test_harder_looking_problems_are_rated_higher():
    rated = {1: [], 10: []}
    for level, found in rated.items():
        for problem in generate(GeneratedConfig(count=30, levels=(level, level), families=["arithmetic", "trip"]))[0]:
            found += filter(None, [read_scale(label(Request(problem.id, ask(problem, "difficulty")), 0, 0), 1, 10)])
    assert sum(rated[1]) / len(rated[1]) + 1 < sum(rated[10]) / len(rated[10])


def test_the_rewriter_is_accepted_mostly_and_refused_for_what_it_spoils():
    refused, accepted = Counter(), 0
    for problem in (MATHS + PROGRAMS)[:130]:
        chain = taught(problem)
        for seed in range(2):
            try:
                chosen = rewritten(problem, chain, seed)
            except Unfit as unfit:
                refused[unfit.reason] += 1
            else:
                accepted += 1
                assert chosen.verdict.correct is chain.verdict.correct
    assert accepted > 4 * refused.total()
    assert len(refused) >= 3, refused
