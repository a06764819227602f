"""Generated programs: question, reading, formula and tests agree; training never meets a fresh problem."""

from __future__ import annotations

from random import Random

import pytest

from fathom.config import validate
from fathom.errors import InputError
from fathom.graders.code import grade_code
from fathom.sources.benchmarks import BenchmarkChoice
from fathom.sources.benchmarks import load as load_benchmark
from fathom.sources.chains import CAREFUL, Writer
from fathom.sources.families import FAMILIES, question
from fathom.sources.generated import GeneratedConfig, generate
from fathom.sources.programs import (
    OPEN_FAMILIES,
    Formula,
    ProgramCorpus,
    ProgramsConfig,
    Term,
    generate_programs,
    program,
    read_open,
)
from fathom.sources.reading import read

LEAKY = ProgramsConfig(count=40, duplicates=5, leaks=4, leak_from=ProgramCorpus(split="eval", count=30))


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_every_question_is_read_back_to_numbers_with_the_same_answer(name):
    family = FAMILIES[name]
    rng = Random(name)
    for level in range(1, 11):
        for wording in range(len(family.wordings)):
            numbers = family.draw(rng, level)
            found, back = read(question(family, numbers, wording))
            assert found is family
            assert family.solve(Writer(CAREFUL, Random(0)), back) == family.solve(Writer(CAREFUL, Random(0)), numbers)


@pytest.mark.parametrize("text", ["", "Prove that there are infinitely many primes.", "Read a number n.", "n + 3"])
def test_other_questions_are_not_read(text):
    assert read_open(text) is None


def run(source: str, given: str) -> str:
    """What a program prints; only for programs that this project wrote itself."""
    printed: list[str] = []
    exec(source, {"input": lambda: given.strip(), "print": lambda value: printed.append(str(value))})
    return "\n".join(printed)


@pytest.mark.parametrize("name", OPEN_FAMILIES)
def test_formula_and_solver_agree_at_every_level(name):
    for problem in generate_programs(ProgramCorpus(count=12, families=[name], levels=(1, 10))):
        _, expression = read_open(problem.question).formula(CAREFUL, Random(0))
        assert "n" in expression
        for test in problem.tests:
            assert run(program(expression), test["input"]) == test["expected"], problem.question


@pytest.mark.parametrize(
    ("solve", "expression"),
    [
        (lambda w, n: w.add(n, 3), "n + 3"),
        (lambda w, n: w.mul(w.add(n, 3), 4), "(n + 3) * 4"),
        (lambda w, n: w.sub(20, w.add(n, 3)), "20 - (n + 3)"),
        (lambda w, n: w.div(w.mul(n, 4), 2), "n * 4 // 2"),
        (lambda w, n: w.mod(w.div(n, 4), w.mul(n, 2)), "n // 4 % (n * 2)"),
        (lambda w, n: w.add(w.mul(6, 7), n), "42 + n"),
        (lambda w, n: w.greatest_divisor(n, 12), "gcd(n, 12)"),
    ],
)
def test_a_formula_takes_brackets_only_where_python_needs_them(solve, expression):
    assert str(solve(Formula(CAREFUL, Random(0)), Term("n", 0))) == expression


def test_a_hasty_reader_s_program_is_wrong_in_the_sandbox_and_a_careful_one_s_right():
    problems = generate_programs(ProgramCorpus(count=8))
    for problem in problems:
        opened = read_open(problem.question)
        right, wrong = (program(opened.formula(CAREFUL, Random(0), flip=flip)[1]) for flip in (None, 0))
        assert grade_code(problem, f"So.\n\n```python\n{right}\n```").correct is True
        if wrong != right:
            assert grade_code(problem, f"So.\n\n```python\n{wrong}\n```").correct is False


def test_the_same_configuration_gives_the_same_problems_and_another_seed_gives_others():
    once, again = (generate_programs(LEAKY, seed=1) for _ in range(2))
    assert once == again
    assert {p.question for p in once} != {p.question for p in generate_programs(LEAKY, seed=2)}


def test_training_and_fresh_problems_share_nothing_but_planted_leaks():
    fresh = {p.meta["identity"] for p in generate_programs(ProgramCorpus(split="eval", count=150))}
    for seed in range(3):
        rows = generate_programs(ProgramCorpus(count=300), seed)
        assert len({p.meta["identity"] for p in rows}) == 300
        assert not fresh & {p.meta["identity"] for p in rows}
    planted = [p for p in generate_programs(LEAKY) if "planted" in p.meta]
    assert sorted(p.meta["planted"].split()[0] for p in planted) == ["duplicate"] * 5 + ["leak"] * 4


def test_a_maths_corpus_and_a_program_corpus_of_one_split_share_no_question():
    maths, _ = generate(GeneratedConfig(count=200))
    assert not {p.question for p in maths} & {p.question for p in generate_programs(ProgramCorpus(count=200))}


def test_programs_are_a_benchmark():
    choice = validate(BenchmarkChoice, {"name": "fresh-code", "programs": {"split": "eval", "count": 5}})
    suite = load_benchmark(choice)
    assert [p.kind for p in suite.problems] == ["code"] * 5
    assert all(p.id.startswith("fresh-code/") for p in suite.problems)


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"count": 0}, "count"),
        ({"count": 3, "levels": [4, 2]}, "levels"),
        ({"count": 3, "families": ["fractions"]}, "families"),
    ],
)
def test_a_wrong_corpus_is_one_line_that_names_the_key(values, told):
    with pytest.raises(InputError, match=told):
        validate(ProgramsConfig, values)


def test_more_problems_than_there_are_is_an_error():
    with pytest.raises(InputError, match=r"only \d+ different problems"):
        generate_programs(ProgramCorpus(count=90, families=["gcd"], levels=(1, 1)))
