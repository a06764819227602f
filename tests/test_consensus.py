"""Early stopping: exact mode against the whole vote, fast mode against its bound, `fathom solve` end to end."""

from __future__ import annotations

import importlib
import json
import sys
from collections import Counter
from itertools import permutations
from math import comb
from pathlib import Path
from random import Random

import numpy as np
import pytest

import fathom
from fathom import graders
from fathom.cli import main
from fathom.engines import Completion, TransformersConfig, open_engine
from fathom.errors import InputError, WorkError
from fathom.evaluate.metrics import majority_credit
from fathom.ledger import Meter
from fathom.records import Problem, Sampling
from fathom.rollout import roll_out
from fathom.serve import solving
from fathom.serve.consensus import error_bound, further, least_lead, solve
from fathom.votes import Ballot, cluster_votes

TINY = Path(fathom.__file__).parent / "data" / "fathom-tiny-base"


class Known:
    """An engine whose chains are known: answers by problem id, None for a truncated chain. The last ends first."""

    name, device = "known", "cpu"

    def __init__(self, answers):
        self.answers, self.calls = answers, 0

    def generate(self, requests, sampling):
        self.calls += 1
        for request in reversed(requests):
            for index in reversed(range(request.first, request.first + request.samples)):
                answer = self.answers[request.key][index]
                text = "cut" if answer is None else f"so \\boxed{{{answer}}}"
                yield Completion(request.key, index, text, 10, "length" if answer is None else "stop")

    def close(self):
        pass


def ask(answers, samples, error=0.0):
    engine = Known(answers)
    problems = [Problem(key, "?", None) for key in answers]
    return list(solve(problems, engine, Sampling(), samples, error)), engine


def simulated(problems, samples, seed):
    """Problems of all kinds: unanimous, contested, tied, silent, with answers in several forms."""
    random = np.random.default_rng(seed)
    forms = np.array(["1/2", "0.5", "3", "4", "5", "6", None], dtype=object)
    for number in range(problems):
        chances = random.dirichlet(np.full(len(forms), random.choice([0.1, 0.5, 2.0])))
        yield f"s{number}", list(random.choice(forms, size=samples, p=chances))


def winners(counts):
    return {label for label, count in enumerate(counts) if count == max(counts)}


def whole_vote(answers):
    """(labels, words of the winners) of all k answers."""
    ballot = Ballot(graders.equivalent)
    labels = [ballot.cast(answer) for answer in answers]
    return labels, [ballot.founders[label] for label in sorted(winners(ballot.counts))]


@pytest.mark.parametrize("samples", [1, 2, 7, 64])
def test_exact_mode_is_cons_at_k(samples):
    drawn = 0
    answers = dict(simulated(300, samples, seed=samples))
    results, _ = ask(answers, samples)
    for result in results:
        labels, expected = whole_vote(answers[result.key])
        assert list(result.winners) == expected
        assert (result.answer is None) == (not expected)
        shared = 1 / len(expected) if "1/2" in expected or "0.5" in expected else 0.0
        right = [answer in ("1/2", "0.5") for answer in answers[result.key]]
        assert majority_credit(np.array(labels), np.array(right)) == pytest.approx(shared)
        assert result.error == 0
        assert list(result.answers) == answers[result.key][: len(result.chains)]
        drawn += len(result.chains)
    assert samples < 64 or drawn < 0.9 * 300 * samples


def test_waves_draw_what_one_chain_at_a_time_would():
    for error in (0.0, 0.05):
        lead = least_lead(16, error) if error else None
        for result in ask(dict(simulated(200, 16, seed=3)), 16, error)[0]:
            one, settled = Ballot(graders.equivalent), 0
            for settled, answer in enumerate(result.answers, 1):
                assert further(one.counts, settled - 1, 16, lead) > 0
                one.cast(answer)
            assert further(one.counts, settled, 16, lead) == 0


def test_a_vote_is_settled_exactly_when_no_rest_can_change_its_winners():
    """Every vote of up to 6 chains over two answers, a new one and silence."""

    def can_change(counts, left):
        now = winners(counts)
        stack = [(counts, left)]
        while stack:
            counts, left = stack.pop()
            if left == 0:
                if winners(counts) != now:
                    return True
                continue
            stack += [([c + (i == label) for i, c in enumerate(counts)], left - 1) for label in range(len(counts))]
            stack.append((counts, left - 1))
        return False

    for a in range(7):
        for b in range(a + 1):
            for left in range(7 - a - b):
                tied_at_the_end = left == 0
                settled = further([a, b], a + b, a + b + left) == 0
                assert settled == (tied_at_the_end or not can_change([a, b, 0], left)), (a, b, left)


def missed(votes, samples, lead):
    """Share of all orders of these votes in which stopping at `lead` gives an answer that is not among the winners."""
    best = {answer for answer, n in Counter(votes).items() if n == max(Counter(votes).values())}
    wrong = total = 0
    for order in permutations(votes):
        counts = Counter()
        for answer in order:
            counts[answer] += 1
            (leader, first), (_, second) = (*counts.most_common(2), (None, 0))[:2]
            if first - second >= lead:
                break
        else:
            leader = next(iter(best))
        wrong += leader not in best
        total += 1
    return wrong / total


def partitions(total, most):
    if total == 0:
        yield ()
    for part in range(min(total, most), 0, -1):
        yield from ((part, *rest) for rest in partitions(total - part, part))


@pytest.mark.parametrize("lead", [1, 2, 3])
def test_the_error_bound_holds_for_every_possible_vote_of_seven_chains(lead):
    chances = [
        missed("".join(c * n for c, n in zip("abcdefg", sizes, strict=False)), 7, lead) for sizes in partitions(7, 7)
    ]
    assert max(chances) <= error_bound(7, lead) + 1e-12
    if lead > 1:  # a single rival is the worst case, for which the bound is exact
        assert max(chances) == pytest.approx(comb(7, 4 + lead) / comb(7, 4))


def test_leads():
    assert [least_lead(64, error) for error in (0.1, 0.05, 0.01, 0.001)] == [9, 10, 12, 15]
    bounds = [error_bound(64, lead) for lead in range(1, 65)]
    assert bounds == sorted(bounds, reverse=True)
    assert bounds[-1] == 0
    for wrong in (0, 1, -0.1):
        with pytest.raises(ValueError, match="between 0 and 1"):
            least_lead(64, wrong)


def test_fast_mode_misses_no_more_than_its_bound_where_it_is_hardest():
    """Votes that end 32 to 31, or nearly even among three, in random order."""
    random, error, trials = Random(0), 0.05, 1500
    for sizes in ((32, 31), (22, 21, 21)):
        whole = [answer for answer, n in zip("123", sizes, strict=False) for _ in range(n)]
        answers = {f"p{n}": random.sample(whole + [None] * (64 - len(whole)), 64) for n in range(trials)}
        results, _ = ask(answers, 64, error)
        share = sum(result.answer != "1" for result in results) / trials
        assert share <= error_bound(64, least_lead(64, error)) + 3 * (error / trials) ** 0.5
        assert any(result.error == error for result in results) and any(result.error == 0 for result in results)


def test_what_a_consensus_says():
    ((result, silent), engine) = ask({"x": ["7"] * 40 + ["8"] * 24, "y": [None] * 64}, 64)
    assert (result.answer, len(result.chains), result.tokens, result.saved) == ("7", 33, 330, 310)
    assert result.agreement == 1
    assert result.interval[0] > 0.89
    assert (silent.answer, silent.winners, silent.agreement, len(silent.chains)) == (None, (), 0, 64)
    assert engine.calls < 10
    (tie, fast), _ = ask({"t": ["1", "2"] * 32, "f": ["3"] * 64}, 64, error=0.01)
    assert (tie.winners, tie.error) == (("1", "2"), 0)
    assert (len(fast.chains), fast.error) == (12, 0.01)
    assert "a tie of 2: the first stands above" in solving.describe(tie)
    assert "about 520 saved: 52 more chains could change the answer with a chance of 1.0% at most" in solving.describe(
        fast
    )
    assert "31 more chains could not change the answer" in solving.describe(result)


def test_what_is_settled_is_told_before_the_rest_is_drawn():
    engine = Known({"easy": ["7"] * 64, "hard": ["1", "2"] * 32})
    problems = [Problem(key, "?", None) for key in engine.answers]
    settled = solve(problems, engine, Sampling(), 64)
    assert next(settled).answer == "7"
    asked = engine.calls
    assert next(settled).winners == ("1", "2") and engine.calls > asked


def test_a_choice_is_voted_by_its_letter_and_a_program_not_at_all():
    choice = Problem("c", "?", None, "choice", options=["red", "blue"])
    (result,) = solve([choice], Known({"c": ["B", "blue", "(B)"]}), Sampling(), 3)
    assert (result.answer, result.votes) == ("B", {"B": 2})
    with pytest.raises(InputError, match="'p': its answer is a program"):
        next(solve([Problem("p", "?", None, "code")], Known({}), Sampling(), 3))


def test_an_engine_that_skips_or_repeats_a_chain_is_found_out():
    class Wrong(Known):
        def generate(self, requests, sampling):
            chains = list(super().generate(requests, sampling))
            yield from [*chains[1:], chains[1]]

    with pytest.raises(WorkError, match="known: 2 chains were asked for, others came"):
        next(solve([Problem("x", "?", None)], Wrong({"x": ["1"] * 3}), Sampling(), 3))


def test_clusters_do_not_depend_on_when_answers_come():
    answers = ["1/2", "3", "0.5", None, "3.0"]
    ballot = Ballot(graders.equivalent)
    assert [ballot.cast(a) for a in answers] == cluster_votes(answers, graders.equivalent).tolist() == [0, 1, 0, -1, 1]
    assert (ballot.founders, ballot.counts) == (["1/2", "3"], [2, 2])


def test_the_tiny_models_chains_are_those_of_a_whole_vote(tmp_path):
    problem = Problem("apples", "Tom has 3 apples and buys 4 more. How many apples does he have?", "7")
    engine = open_engine(TransformersConfig(), TINY)
    sampling = Sampling(max_tokens=200)
    whole = roll_out([problem], engine, sampling, 8, graders.grade, Meter.null(tmp_path))
    (result,) = solve([problem], engine, sampling, 8)
    engine.close()
    assert [c.text for c in result.chains] == [r.text for r in whole][: len(result.chains)]
    assert whole_vote([r.verdict.answer for r in whole])[1] == list(result.winners)


WRONG_ROWS = [
    ("{}", "x.jsonl:1: a Problem needs the key 'question'"),
    ('{"question": "?", "answer": 3}', "x.jsonl:1: unknown key 'answer' in a Problem"),
    ('{"question": " "}', "x.jsonl:1: the question is empty"),
    ('{"question": "?", "id": "2"}\n{"question": "?"}', "x.jsonl:2: problem id '2' occurs a second time"),
    ("[]", "x.jsonl:1: expected an object, got list"),
    ("", "x.jsonl: holds no question"),
]


@pytest.mark.parametrize(("text", "expected"), WRONG_ROWS)
def test_wrong_rows_are_named(text, expected, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("x.jsonl").write_text(text)
    with pytest.raises(InputError) as error:
        solving.read_questions("x.jsonl")
    assert str(error.value).startswith(expected)


def test_solve_answers_a_file_and_a_question(tmp_path, monkeypatch, capsys):
    def told(*arguments):
        monkeypatch.setattr(sys, "argv", ["fathom", "solve", *arguments, "--samples", "4", "--max-tokens", "120"])
        with pytest.raises(SystemExit) as exit:
            main()
        assert exit.value.code == 0
        return capsys.readouterr().out

    monkeypatch.chdir(tmp_path)
    rows = [{"question": "What is 2 + 3?"}, {"id": "mine", "question": "What is 4 + 4?", "gold": "8"}]
    Path("q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    first, second = map(json.loads, told("q.jsonl", "--json").splitlines())
    assert (first["id"], second["id"]) == ("1", "mine")
    for found in (first, second):
        assert found["drawn"] == len(found["chains"]) <= found["samples"] == 4
        assert found["tokens"] == sum(chain["tokens"] for chain in found["chains"])
        assert sum(found["votes"].values()) == sum(chain["answer"] is not None for chain in found["chains"])
    assert "chains agree" in told("What is 4 + 4?", "--set", "seed=1")


BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("consensus")


def test_the_stored_figures_are_exact_and_inside_the_bound():
    told = json.loads((BENCHMARKS / "results" / "consensus.json").read_text())
    assert told["simulated, 10,000 problems"]["problems"] == 10_000
    assert sum(case["problems"] for name, case in told.items() if name.startswith("recorded, ")) >= 1000
    for name, case in told.items():
        for mode in case["modes"]:
            noise = 3 * (mode["bound"] / case["problems"]) ** 0.5
            assert mode["missed"] <= mode["bound"] + noise, name
            assert mode["error"] or (mode["equal"], mode["missed"]) == (1, 0), name
            assert mode["error"] or mode["credit"]["stopped"] == mode["credit"]["whole"], name
    assert told["recorded, rs-merged-500x64"]["modes"][0]["tokens_saved"] >= 0.3


def test_a_part_of_the_benchmark_comes_out_again(benchmark):
    corpus = benchmark.simulated(np.random.default_rng(1), problems=200)
    exact, fast = (benchmark.measure(corpus, error) for error in (0.0, 0.05))
    assert (exact["equal"], exact["missed"]) == (1, 0)
    assert exact["credit"]["stopped"] == exact["credit"]["whole"]
    assert 0 < exact["tokens_saved"] < fast["tokens_saved"]
    assert fast["missed"] <= fast["bound"] + 0.01


def test_the_table_of_the_document_is_the_stored_one():
    told = json.loads((BENCHMARKS / "results" / "consensus.json").read_text())
    text = (BENCHMARKS.parent / "docs" / "solving.md").read_text(encoding="utf-8")
    for name, case in told.items():
        exact, one, five = case["modes"]
        shares = [f"{mode['tokens_saved']:.1%}" for mode in (exact, one, five)]
        missed = [f"{mode['missed']:.2%}" for mode in (one, five)]
        row = f"| {name} | {case['problems']:,} | {case['samples']} | {' | '.join([*shares, *missed])} |"
        assert row in text, row


def test_without_a_budget_chains_fit_into_the_models_positions():
    assert solving.default_max_tokens(TINY) == 1024
