"""The ladder on tables of (gold, answer, is it the same?), a row for each form that answers take."""

import re
import time
from pathlib import Path

import pytest

from fathom.graders.equivalence import decide, equivalent


def read_table(name: str) -> list[tuple[str, str, bool]]:
    """Lines of a file beside this one, "GOLD ≡ ANSWER" for the same answer and "GOLD ≢ ANSWER" for another; # begins a title."""
    lines = Path(__file__).with_name(name).read_text(encoding="utf-8").splitlines()
    rows = (re.split(" ([≡≢]) ", line) for line in lines if line and not line.startswith("# "))
    return [(gold, answer, sign == "≡") for gold, sign, answer in rows]


TABLE = read_table("same_values.txt") + read_table("same_forms.txt")


@pytest.mark.parametrize(("gold", "answer", "expected"), TABLE, ids=lambda value: str(value)[:40])
def test_same_answer(gold, answer, expected):
    decision = decide(gold, answer)
    assert decision.correct is expected, decision


@pytest.mark.parametrize("gold", sorted({gold for gold, _, _ in TABLE}))
def test_a_gold_is_itself_in_every_dress(gold):
    dressed = [f" {gold} ", f"{gold}.", rf"\boxed{{{gold}}}", gold.replace(r"\frac", r"\dfrac"), f"**{gold}**"]
    if "$" not in gold:
        dressed += [f"${gold}$", rf"\({gold}\)", f"$$ {gold} $$"]
    for answer in dressed:
        assert decide(gold, answer).correct is True, answer


def test_equivalence_is_symmetric():
    for gold, answer, _ in TABLE:
        assert equivalent(gold, answer) == equivalent(answer, gold), (gold, answer)


def test_equivalence_is_exact():
    assert not equivalent("2.0", "2.0000001")
    assert not equivalent(r"\sqrt{2}", "1.41421356")
    assert equivalent("0.5", r"\frac{1}{2}")


@pytest.mark.parametrize("gold", [None, "", "  ", "$$", r"\frac{1}{", r"\begin{pmatrix} 1"])
def test_a_gold_that_cannot_be_read_rewards_nobody(gold):
    assert decide(gold, "1").correct is None


@pytest.mark.parametrize(
    "answer", ["", " ", "()", "{}", "$", "\\", "^", "_", "\\frac", "|", "=", "5 =", "= ", "..", "~", "\\text{}"]
)
def test_an_empty_or_broken_answer_is_wrong(answer):
    assert decide("5", answer).correct is False


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        ("5", "5 or 6"),
        ("5", "5, 6"),
        ("5", r"\{5, 6\}"),
        ("5", r"7 \approx 5.2"),
        ("7", r"7 \approx 5"),
        ("5", "5 = 6"),
        ("5", "between 4 and 6"),
        ("5", "x < 6"),
        ("5", r"\pm 5"),
        ("Yes", "Yes, no"),
        ("No", "Yes, no"),
        ("Yes", "Yes and no"),
        (r"\text{all integers } n \ge 4", r"\text{all integers } n > 4"),
        ("not 5", "not -5"),
        ("(0,1)", "(0,1] or [0,1)"),
    ],
)
def test_an_answer_that_hedges_is_wrong(gold, answer):
    assert decide(gold, answer).correct is False


@pytest.mark.parametrize(
    "answer",
    [
        "A" * 600,
        "*".join("2" * 600),
        "1" + "!" * 600,
        "1" + " " * 5000 + "x",
        "5" + "~" * 3000 + " cm",
        r"\sum_{i=1}^{1000}\sum_{j=1}^{1000}\sum_{k=1}^{1000} \frac{1}{ijk+1}",
        "+".join([r"\sqrt[3]{8^{14999}}"] * 60),
    ],
    ids=lambda answer: answer[:12],
)
def test_what_a_chain_that_runs_wild_writes_is_wrong_at_once(answer):
    started = time.monotonic()
    assert decide("9", answer).correct is False
    assert time.monotonic() - started < 20  # they took from 8 s to years, or ended the run


@pytest.mark.parametrize(("gold", "answer"), [("100", r"\sum_{i=1}^{10}\sum_{j=1}^{10} 1"), ("8", r"\sqrt[3]{512}")])
def test_sums_of_sums_and_roots_of_sensible_size_are_computed(gold, answer):
    assert (decide(gold, answer).correct, decide(gold, answer).rung) == (True, "value")


def test_the_rung_says_who_decided():
    assert decide("east", r"\text{east}").rung == "text"
    assert decide("Yes", "true").rung == "words"
    assert decide("0.5", r"\frac12").rung == "value"
    assert decide("1, 2", r"\{2, 1\}").rung == "structure"
    assert decide(r"\frac12", r"\int_0^1 x\,dx").rung == "math-verify"
