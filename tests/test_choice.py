"""Multiple choice: letters where they are announced, options by their text, seeded shuffles."""

import pytest

from fathom.graders import final_answer, grade
from fathom.graders.choice import chosen, shuffled
from fathom.records import Problem

OPTIONS = ["12 cm", "15 cm", r"$\frac{1}{2}$ cm", "a car"]

LETTERS = [
    ("The answer is (C).", "C"),
    ("The answer is C", "C"),
    ("the answer is **C**.", "C"),
    ("Answer: C", "C"),
    ("Answer: (B) 15 cm", "B"),
    ("the correct option is B.", "B"),
    ("The correct choice is therefore B because it fits", "B"),
    ("I choose (D)", "D"),
    (r"\boxed{C}", "C"),
    (r"\boxed{\text{C}}", "C"),
    (r"\boxed{(C)}", "C"),
    (r"\boxed{\text{(C)}}", "C"),
    (r"\boxed{\textbf{(B)}\ 15}", "B"),
    (r"\boxed{b}", None),
    (r"\boxed{(b)}", "B"),
    ("B) 15 cm", "B"),
    ("(B)", "B"),
    ("B", "B"),
    ("B.", "B"),
    ("A) wrong. Later: so the answer is (D).", "D"),
    ("<think>the answer is (A)</think> The answer is (B).", "B"),
    ("The answer is a matter of taste.", None),
    ("The answer is a", None),
    ("The answer is A triangle with two sides", None),
    ("the answer is I think unclear", None),
    ("The answer is (A) or (B).", None),
    ("The answer is (A), (B), and (C).", None),
    ("The answer is (A).\nHence, the answer is (A), indeed.", "A"),
    ("A car has four wheels.", None),
    ("", None),
    ("The answer is (Z).", None),
    ("The answer is 15 cm", "B"),
    (r"\boxed{0.5}", "C"),
    ("The answer is a car.", "D"),
    (r"\boxed{15 \text{ cm}}", "B"),
]


@pytest.mark.parametrize(("text", "letter"), LETTERS)
def test_chosen_letter(text, letter):
    assert chosen(text, OPTIONS)[0] == letter


@pytest.mark.parametrize("letter", ["\u212a", "\u0130", "\u0131"])
def test_letters_of_other_alphabets_choose_nothing(letter):
    assert chosen(f"The answer is ({letter})", OPTIONS)[0] is None
    assert chosen(rf"\boxed{{{letter}}}")[0] is None


def test_an_option_text_that_fits_two_options_chooses_none():
    assert chosen(r"\boxed{1/2}", ["0.5", r"\frac{1}{2}", "3"]) == (None, "several")


def test_grade_compares_letters_and_takes_an_option_text_as_gold():
    assert grade(Problem("1", "", "C", "choice", options=OPTIONS), "The answer is (C).").correct is True
    assert grade(Problem("1", "", "C", "choice", options=OPTIONS), "The answer is (B).").correct is False
    assert grade(Problem("1", "", "15 cm", "choice", options=OPTIONS), "The answer is (B).").correct is True
    assert (
        grade(Problem("1", "", "C", "choice", options=OPTIONS), "The answer is (C).", truncated=True).correct is False
    )


@pytest.mark.parametrize("gold", [None, "", "E", "nothing like it"])
def test_a_gold_that_is_no_option_is_an_error_of_the_data(gold):
    assert grade(Problem("1", "", gold, "choice", options=OPTIONS), "The answer is (C).").correct is None


def test_final_answer_of_a_choice_is_its_letter():
    assert final_answer("so the answer is (B)", "choice") == "B"


def test_shuffle_depends_on_seed_and_problem_alone():
    options, letter = shuffled("right", ["w1", "w2", "w3"], seed=0, key="p1")
    assert (options, letter) == shuffled("right", ["w1", "w2", "w3"], seed=0, key="p1")
    assert options["ABCD".index(letter)] == "right" and sorted(options) == ["right", "w1", "w2", "w3"]
    letters = [shuffled("right", ["w1", "w2", "w3"], seed, f"p{n}")[1] for seed in range(4) for n in range(100)]
    assert all(70 <= letters.count(letter) <= 130 for letter in "ABCD")
