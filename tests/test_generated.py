"""The generated corpora: verifiable, seeded, ordered by level, held out by construction, with planted defects."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from random import Random

import pytest
from pydantic import ValidationError

from fathom.curate.ops.decontaminate import DecontaminateConfig, run_decontaminate
from fathom.curate.ops.dedup import DedupConfig, run_dedup
from fathom.errors import InputError
from fathom.graders import grade
from fathom.ledger import Meter
from fathom.records import Problem, read_jsonl, write_jsonl
from fathom.sources.chains import CAREFUL, CARELESS, STYLES, Writer
from fathom.sources.families import FAMILIES, question
from fathom.sources.generated import GeneratedConfig, GeneratedCorpus, generate, held_out, identity, write_chain
from fathom.sources.programs import ProgramsConfig

EVAL = GeneratedCorpus(split="eval", count=200)


def test_there_are_at_least_eight_families_and_all_are_drawn():
    problems, _ = generate(GeneratedConfig(count=400))
    assert len(FAMILIES) >= 8
    assert {p.meta["family"] for p in problems} == set(FAMILIES)


def test_the_same_config_and_seed_give_the_same_corpus_and_another_seed_another():
    config = GeneratedConfig(count=50, chains=3, duplicates=5, leaks=5, leak_from=EVAL)
    assert generate(config, 3) == generate(config, 3)
    assert {p.question for p in generate(config, 3)[0]} != {p.question for p in generate(config, 4)[0]}


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_chains_of_a_careful_writer_are_right_and_every_style_announces_an_answer(name):
    rng = Random(name)
    for level in range(1, 11):
        numbers = FAMILIES[name].draw(rng, level)
        gold = FAMILIES[name].solve(Writer(CAREFUL, rng), numbers)
        Fraction(gold)
        problem = Problem("p", question(FAMILIES[name], numbers, 0), gold)
        for style in STYLES.values():
            verdict = grade(problem, write_chain(name, numbers, style, rng))
            assert verdict.answer is not None
            assert verdict.correct or not style.careful


def test_every_written_equation_of_a_careful_chain_holds():
    rng = Random(7)
    for name, family in FAMILIES.items():
        for level in (2, 6, 10):
            chain = write_chain(name, family.draw(rng, level), STYLES["careful-verbose"], rng)
            for line in chain.split("</think>")[0].splitlines():
                sides = line.removesuffix(".").removesuffix(", yes").split("=")
                if len(sides) > 1 and "x" not in line:
                    values = {_value(side) for side in sides}
                    assert len(values) == 1, line


def _value(side: str) -> Fraction:
    """Value of an expression of whole numbers with + - * / %, read from left to right after products."""
    import ast
    import operator

    operators = {
        ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv, ast.Mod: operator.mod
    }  # fmt: skip

    def walk(node: ast.expr) -> Fraction:
        if isinstance(node, ast.BinOp):
            return operators[type(node.op)](walk(node.left), walk(node.right))
        if isinstance(node, ast.UnaryOp):
            return -walk(node.operand)
        return Fraction(node.value)

    return walk(ast.parse(side, mode="eval").body)


def test_a_higher_level_is_harder_for_a_careless_writer():
    rng, right = Random(0), {}
    for level in range(1, 11):
        solved = 0
        for _ in range(3000):
            family = FAMILIES[rng.choice(sorted(FAMILIES))]
            numbers = family.draw(rng, level)
            solved += family.solve(Writer(CARELESS, rng), numbers) == family.solve(Writer(CAREFUL, rng), numbers)
        right[level] = solved / 3000
    ordered = [right[level] for level in range(1, 11)]
    assert all(ordered[i] > ordered[i + 2] for i in range(8)), ordered
    assert ordered[0] - ordered[9] > 0.2


def test_training_and_evaluation_problems_are_disjoint_for_every_seed():
    for seed in range(5):
        train, _ = generate(GeneratedConfig(count=600), seed)
        fresh, _ = generate(GeneratedConfig(split="eval", count=300), seed + 100)
        assert not {_identity(p) for p in train} & {_identity(p) for p in fresh}
        assert all(held_out(_identity(p)) for p in fresh)


def _identity(problem: Problem) -> str:
    return identity(FAMILIES[problem.meta["family"]], problem.meta["numbers"])


def test_planted_duplicates_and_leaks_are_removed_and_nearly_nothing_else(tmp_path: Path):
    config = GeneratedConfig(count=400, duplicates=40, leaks=30, leak_from=EVAL)
    problems, _ = generate(config, 0)
    planted = {p.id: p.meta["planted"].split()[0] for p in problems if "planted" in p.meta}
    assert sorted(planted.values()).count("leak") == 30 and len(planted) == 70
    source, unique, clean = tmp_path / "source", tmp_path / "unique", tmp_path / "clean"
    for folder in (source, unique, clean):
        folder.mkdir()
    write_jsonl(source / "problems.jsonl", problems)
    meter = Meter.null(tmp_path)
    run_dedup({"problems": source}, DedupConfig(problems="s", similarity=0), unique, meter)
    rules = {"similarity": 0, "long_grams": False, "coverage": None, "template_tokens": None}
    fresh = {"name": "fresh", "generated": EVAL.model_dump()}
    decontaminate = DecontaminateConfig.model_validate({"problems": "s", "benchmarks": [fresh], "rules": rules})
    run_decontaminate({"problems": unique}, decontaminate, clean, meter)
    left = list(read_jsonl(clean / "problems.jsonl", Problem))
    originals_lost = 400 - sum("planted" not in p.meta for p in left)
    leaks_left = [p.id for p in left if planted.get(p.id) == "leak"]
    twins_left = {_identity(p) for p in left}
    assert not leaks_left
    assert len(twins_left) == len(left), "a duplicate is left"
    assert originals_lost <= 40 + 8, "a duplicate may replace its original; little else may go"


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"families": ["sudoku"]}, "unknown family 'sudoku'"),
        ({"levels": [0, 4]}, "levels [0, 4]"),
        ({"leaks": 1, "leak_from": {"count": 5, "families": ["lineer"]}}, "unknown family 'lineer'"),
        ({"leaks": 1, "leak_from": {"count": 5, "levels": [1, 20]}}, "levels [1, 20]"),
        ({"leaks": 3}, "leak_from"),
        ({"families": ["fractions"], "levels": [1, 1], "count": 5000}, "only"),
    ],
)
def test_impossible_corpora_are_refused_in_one_line(config, said):
    with pytest.raises(InputError) as error:
        generate(GeneratedConfig.model_validate({"count": 10, **config}))
    assert said in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "config",
    [{"families": []}, {"duplicates": -1}, {"chains": -2}, {"leaks": -1}],
    ids=lambda config: next(iter(config)),
)
def test_counts_below_nothing_and_empty_choices_are_no_configuration(config):
    for kind in (GeneratedConfig, ProgramsConfig):
        if next(iter(config)) in kind.model_fields:
            with pytest.raises(ValidationError):
                kind.model_validate({"count": 10, **config})
