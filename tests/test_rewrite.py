"""Rewriting: what counts as a rewrite, what is asked again, and what is set aside."""

from __future__ import annotations

import difflib
import json
import random

import pytest

import fathom.annotate.rewrite
from fathom.annotate.asking import Unfit
from fathom.annotate.rewrite import RewriteConfig, common, read_rewrite, read_sections, run_rewrite
from fathom.curate.examples import split_reasoning
from fathom.engines import Completion
from fathom.errors import InputError
from fathom.graders import grade
from fathom.ledger import Meter
from fathom.records import Problem, Rollout, read_jsonl, write_jsonl

SCRIPTED = {"kind": "scripted", "script": "echo"}
SUM = Problem("sum", "What is 17 + 25?", "42")
THINKING = "Let me add 17 and 25. Tens first: 10 + 20 = 30. Wait, then 7 + 5 = 12. So 30 + 12 = 42, and that is it."
ANSWER = "The sum is \\boxed{42}."
PROGRAM = "n = int(input())\nprint(n * 2)"
TESTS = [{"kind": "stdin", "input": f"{n}\n", "expected": f"{2 * n}\n"} for n in (4, 5)]
DOUBLE = Problem("double", "Print twice the number.", None, "code", tests=TESTS)
CODE_THINKING = "We read one number and print it twice as large. Multiply by two, nothing else is needed here."


def sections(thought, solution):
    return f"<|begin_of_thought|>\n\n{thought}\n\n<|end_of_thought|>\n\n<|begin_of_solution|>\n\n{solution}\n\n<|end_of_solution|>"


def block(program, tag="python"):
    return f"```{tag}\n{program}\n```"


def chain(problem, text, **fields):
    return Rollout(problem.id, 0, text, 50, "stop", "teacher", verdict=grade(problem, text), **fields)


MATH_CHAIN = chain(SUM, f"<think>{THINKING}</think>{ANSWER}")
CODE_CHAIN = chain(DOUBLE, f"<think>{CODE_THINKING}</think>So:\n{block(PROGRAM)}")


def read(text, original=MATH_CHAIN, problem=SUM, keep=0.8, finish="stop"):
    return read_rewrite(Completion("k", 0, text, 70, finish, 90), original, problem, keep)


# ------------------------------------------------------------------------------ what counts


@pytest.mark.parametrize(
    ("problem", "original", "thought", "solution"),
    [
        (SUM, MATH_CHAIN, THINKING, ANSWER),
        (SUM, MATH_CHAIN, THINKING, "First tens, then ones. The sum is $\\boxed{42.0}$."),
        (SUM, MATH_CHAIN, THINKING.replace("Wait, then", "Then"), ANSWER),
        (DOUBLE, CODE_CHAIN, CODE_THINKING, block(PROGRAM)),
        (DOUBLE, CODE_CHAIN, CODE_THINKING, "So:\n" + block(PROGRAM.replace("\n", "  \n\n"))),
    ],
)
def test_a_rewrite_that_counts(problem, original, thought, solution):
    done = read(sections(thought, solution), original, problem)
    assert done.verdict.correct is True and done.tokens == 70 and done.model == "teacher"
    assert 0.8 <= done.meta["rewrite"]["kept"] <= 1
    assert split_reasoning(done.text) == (f"\n{thought}\n", f"\n\n{solution}")
    assert grade(problem, done.text).correct is True


@pytest.mark.parametrize(
    ("problem", "original", "text", "reason"),
    [
        (SUM, MATH_CHAIN, THINKING + ANSWER, "the answer is not one thought and one solution section"),
        (SUM, MATH_CHAIN, sections(THINKING, ""), "the answer is not one thought and one solution section"),
        (SUM, MATH_CHAIN, sections(THINKING, ANSWER) * 2, "the answer is not one thought and one solution section"),
        (SUM, MATH_CHAIN, "Sure: " + sections(THINKING, ANSWER), "the answer is not one thought and one solution section"),
        (SUM, MATH_CHAIN, sections(THINKING, "\\boxed{43}"), "the final answer was changed"),
        (SUM, MATH_CHAIN, sections(THINKING + ANSWER, "See above."), "the final answer was changed"),
        (SUM, MATH_CHAIN, sections("We add tens and ones.", ANSWER), "too little of the text was kept"),
        (SUM, MATH_CHAIN, sections(" ".join(reversed(THINKING.split())), ANSWER), "too little of the text was kept"),
        (SUM, MATH_CHAIN, sections(f"{THINKING} {'Let us check that again by another way. ' * 4}", ANSWER), "too much of the thought is new"),
        (DOUBLE, CODE_CHAIN, sections(CODE_THINKING, f"{block(PROGRAM)}\nor\n{block(PROGRAM)}"), "the solution has not exactly one code block"),
        (DOUBLE, CODE_CHAIN, sections(CODE_THINKING, "multiply"), "the solution has not exactly one code block"),
        (DOUBLE, CODE_CHAIN, sections(CODE_THINKING, block(PROGRAM.replace("2", "3"))), "the final answer was changed"),
        # the block tagged as Python, which stands in the thought, is the one that would be graded
        (DOUBLE, CODE_CHAIN, sections(f"{CODE_THINKING}\n{block('print(8)')}", block(PROGRAM, "")), "the verdict was changed"),
    ],
)  # fmt: skip
def test_a_rewrite_that_does_not_count(problem, original, text, reason):
    with pytest.raises(Unfit) as caught:
        read(text, original, problem)
    assert caught.value.reason == reason


def test_a_wrong_chain_stays_wrong():
    wrong = chain(SUM, f"<think>{THINKING}</think>The sum is \\boxed{{41}}.")
    done = read(sections(THINKING, "The sum is \\boxed{41}."), wrong)
    assert done.verdict.correct is False and done.verdict.answer == "41"
    with pytest.raises(Unfit) as caught:
        read(sections(THINKING, ANSWER), wrong)
    assert caught.value.reason == "the final answer was changed" and "'41' to '42'" in caught.value.detail


def test_a_cut_answer_does_not_count():
    with pytest.raises(Unfit) as caught:
        read(sections(THINKING, ANSWER), finish="length")
    assert caught.value.reason == "the answer was cut at max_tokens"


def test_a_rewriters_own_thinking_is_not_its_answer():
    assert read_sections(f"<think>I copy.</think>\n{sections('a', 'b')}\n") == ("a", "b")


def test_common_is_the_longest_common_subsequence():
    luck = random.Random(0)

    def plain(a, b):
        rows = [0] * (len(b) + 1)
        for x in a:
            rows, before = [0], rows
            for j, y in enumerate(b):
                rows.append(before[j] + 1 if x == y else max(rows[j], before[j + 1]))
        return rows[-1]

    for _ in range(200):
        a = luck.choices("abcd", k=luck.randrange(1, 90))
        b = luck.choices("abcde", k=luck.randrange(90))
        assert common(a, b) == plain(a, b)
    text = [str(luck.randrange(900)) for _ in range(20_000)]
    cut = [word for word in text if luck.random() < 0.95]
    assert common(text, cut) == len(cut)
    blocks = difflib.SequenceMatcher(a=text[:500], b=cut[:400], autojunk=False).get_matching_blocks()
    assert common(text[:500], cut[:400]) >= sum(match.size for match in blocks)


# ------------------------------------------------------------------------------ the stage


class Rewriter:
    """Answers from a table key -> answers by ask."""

    name, device = "rewriter", "api"

    def __init__(self, answers, usd=0.01):
        self.answers, self.usd, self.asked, self.prompts = answers, usd, [], {}

    def generate(self, requests, sampling):
        for r in requests:
            self.asked.append((r.key, r.first))
            self.prompts[r.key] = r.messages[-1].content
            yield Completion(r.key, r.first, self.answers[r.key][r.first], 70, "stop", 90, usd=self.usd)

    def close(self):
        pass


def run(tmp_path, monkeypatch, engine, chains, problems=(SUM, DOUBLE), **config):
    monkeypatch.setattr(fathom.annotate.rewrite, "open_engine", lambda config, model, meter: engine)
    out = tmp_path / "out"
    out.mkdir(exist_ok=True)
    write_jsonl(tmp_path / "problems.jsonl", problems)
    write_jsonl(tmp_path / "rollouts.jsonl", chains)
    config = RewriteConfig(problems="p", chains="c", engine=SCRIPTED, **config)
    metrics = run_rewrite({"problems": tmp_path, "chains": tmp_path}, config, out, Meter.null(tmp_path / "scratch"))
    removed = [json.loads(line) for line in (out / "removed.jsonl").read_text().splitlines()]
    return metrics, list(read_jsonl(out / "rollouts.jsonl", Rollout)), removed


GOOD = sections(THINKING, ANSWER)


def test_every_chain_is_rewritten_or_set_aside_with_its_reason(tmp_path, monkeypatch):
    variants = [MATH_CHAIN, *(chain(SUM, MATH_CHAIN.text) for _ in range(2))]
    chains = [Rollout(**{**vars(c), "index": i}) for i, c in enumerate(variants)]
    chains += [
        Rollout("sum", 3, THINKING, 9, "length", "teacher"),
        Rollout("sum", 4, "I don't know, and nobody does, or so they say in the village. " * 9, 9, "stop", "teacher"),
        Rollout("gone", 0, ANSWER, 9, "stop", "teacher"),
        CODE_CHAIN,
    ]
    engine = Rewriter(
        {
            "sum#0": [GOOD],
            "sum#1": ["no", sections("short", ANSWER), GOOD],
            "sum#2": ["no", "no", sections("short", ANSWER)],
            "double#0": [sections(CODE_THINKING, "So:\n" + block(PROGRAM))],
        }
    )
    metrics, kept, removed = run(tmp_path, monkeypatch, engine, chains)
    assert [(c.problem_id, c.index, c.meta["rewrite"]["asks"]) for c in kept] == [
        ("sum", 0, 1),
        ("sum", 1, 3),
        ("double", 0, 1),
    ]
    assert kept[1].meta["rewrite"]["usd"] == pytest.approx(0.03) and kept[1].meta["rewrite"]["by"] == "rewriter"
    assert {row["id"]: row["reason"] for row in removed} == {
        "sum#2": "too little of the text was kept",
        "sum#3": "it was cut at its token budget",
        "sum#4": "it has no final answer that could be kept",
        "gone#0": "its problem was removed by an earlier stage",
    }
    assert metrics["funnel"] == [["chains", 7], ["that can be rewritten", 4], ["with a valid rewrite", 3]]
    assert sum(metrics["set_aside"].values()) == len(removed) and metrics["correct"] == 3
    assert sorted(engine.asked) == [
        ("double#0", 0),
        ("sum#0", 0),
        *[(f"sum#{i}", n) for i in (1, 2) for n in (0, 1, 2)],
    ]
    assert SUM.question in engine.prompts["sum#0"] and f"{THINKING}{ANSWER}" in engine.prompts["sum#0"]


def test_two_chains_of_one_name_are_refused_before_anything_is_asked(tmp_path, monkeypatch):
    with pytest.raises(InputError, match=r"rewrite: 2 chains are called .*#\d; rewrite those of one model at a time"):
        run(tmp_path, monkeypatch, None, [MATH_CHAIN, MATH_CHAIN])


def test_only_correct_chains_where_asked_for(tmp_path, monkeypatch):
    wrong = chain(SUM, f"{THINKING} \\boxed{{41}}")
    chains = [
        MATH_CHAIN,
        Rollout(**{**vars(wrong), "index": 1}),
        Rollout("sum", 2, MATH_CHAIN.text, 9, "stop", "teacher"),
    ]
    _, kept, removed = run(tmp_path, monkeypatch, Rewriter({"sum#0": [GOOD]}), chains, correct_only=True)
    assert [c.index for c in kept] == [0]
    assert [(row["id"], row["reason"]) for row in removed] == [
        (f"sum#{i}", "it was not graded correct") for i in (1, 2)
    ]


def test_without_prices_no_cost_is_told_and_a_rerun_has_the_same_bytes(tmp_path, monkeypatch):
    outputs = []
    for name in "ab":
        folder = tmp_path / name
        folder.mkdir()
        run(folder, monkeypatch, Rewriter({"sum#0": ["no", GOOD]}, usd=None), [MATH_CHAIN], keep=0.95)
        outputs.append((folder / "out" / "rollouts.jsonl").read_bytes())
    assert outputs[0] == outputs[1]
    told = json.loads(outputs[0])["meta"]["rewrite"]
    assert told.keys() == {"by", "prompt", "kept", "asks"} and told["kept"] == 1


@pytest.mark.parametrize(
    ("chains", "answers", "told"),
    [
        ([MATH_CHAIN], ["no"] * 3, r"none of the 1 chains got a valid rewrite: sum#0: the answer is not one thought"),
        ([Rollout("sum", 3, "a", 9, "length", "t")], [], r"none of the 1 chains can be rewritten: sum#3: it was cut"),
        ([], [], "none of the 0 chains can be rewritten: there is none"),
    ],
)
def test_nothing_left_is_one_line(tmp_path, monkeypatch, chains, answers, told):
    with pytest.raises(InputError, match=told):
        run(tmp_path, monkeypatch, Rewriter({"sum#0": answers}), chains)


def test_a_template_of_ones_own(tmp_path, monkeypatch):
    mine = tmp_path / "mine.txt"
    mine.write_text("Copy: $chain")
    engine = Rewriter({"sum#0": [GOOD]})
    run(tmp_path, monkeypatch, engine, [MATH_CHAIN], template={"file": str(mine)})
    assert engine.prompts == {"sum#0": f"Copy: {THINKING}{ANSWER}"}
