r"""Multiple choice: which option a completion chose, and options shuffled with a recorded seed.

A letter counts where it is announced (`\boxed{C}`, "the answer is (C)", "C) 12 cm"), never because it
occurs; the article "a" and the pronoun "I" are not options. An answer that gives an option's text
instead of its letter chooses that option when exactly one option says the same.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from fathom.boxed import last_box
from fathom.graders.equivalence import equivalent
from fathom.graders.extract import MAX_TEXT, final_answer
from fathom.records import Problem, Verdict

GRADER = "choice/1"
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"

_DRESS = r"(?:\*\*|\\\(|\\(?:text|textbf|textrm|mathrm|mathbf)\s*\{|\$|\s|\{|\\boxed\s*\{)*"
_LETTER = rf"{_DRESS}(?:\(\s*(?P<wrapped>[A-Za-z])\s*\)|(?P<plain>[A-Z])(?![A-Za-z0-9'’_^]|\s*(?:[-+/=^<]|\*(?!\*))))"
_FOLLOWING = r"(?!\s+(?!(?:because|since|as|which|for|and|or|is|with|due|given)\b)[a-z]+)"  # "A triangle" is no option
_ANNOUNCED = re.compile(
    r"(?:\b(?:answer|choice|option|solution)(?:\s+(?:letter|choice|option|here))?\s*(?:\*\*)?\s*(?:is|are|would\s+be|should\s+be|must\s+be|=|:|-)"
    r"(?:\s*(?:therefore|thus|clearly|option|choice|letter|the|definitely))*\s*:?|\b(?:choose|select|pick|option|choice)\b)\s*"
    + _LETTER
    + _FOLLOWING,
    re.IGNORECASE,
)
_CASED_LETTER = re.compile(_LETTER)
_LEADING = re.compile(
    rf"\s*(?:Answer\s*:?\s*)?{_DRESS}(?:\((?P<wrapped>[A-Za-z])\)|(?P<plain>[A-Z])(?:[).:]|\s*\}}*\s*$))"
)
_MORE = re.compile(r"[\s)}*$\\]*(?:,|and|or|/|&)\s*(?:option\s*)?" + _LETTER + r"(?=[\s).,}*$\\]|$)")


def grade_choice(problem: Problem, text: str, truncated: bool = False) -> Verdict:
    """Judge one completion of a multiple-choice problem (gold: a letter or an option's text)."""
    options = problem.options or []
    gold = gold_letter(problem.gold, options)
    if gold is None:
        return Verdict(None, None, GRADER, "gold", "the gold is neither a letter nor one of the options")
    if truncated:
        return Verdict(None, False, GRADER, "extract", "truncated before an answer")
    letter, rung = chosen(text, options)
    if letter is None:
        return Verdict(None, False, GRADER, rung, "no single option is announced")
    return Verdict(letter, letter == gold, GRADER, rung, f"chose {letter}")


def chosen(text: str, options: Sequence[str] = ()) -> tuple[str | None, str]:
    """(letter, rung) of the option that a completion announces; letter None when there is none.

    rung: "box", "phrase", "leading" or "option text", or "several" where two options are announced.
    """
    text = re.sub(r"\s+", " ", text[-MAX_TEXT:].rpartition("</think>")[2])
    count = len(options) or 26
    box = last_box(text)
    if box is not None:
        letter = _read(_LEADING.match(box), box, count)
        return (letter, "box") if letter else _by_text(box, options)
    announced = next(reversed(list(_ANNOUNCED.finditer(text))), None)
    for match, rung in ((announced and _cased(text, announced), "phrase"), (_LEADING.match(text), "leading")):
        letter = _read(match, text, count)
        if letter:
            return (None, "several") if _another(text, match, letter) else (letter, rung)
    answer = final_answer(text)
    return _by_text(answer, options) if answer else (None, "extract")


def shuffled(correct: str, wrong: Sequence[str], seed: int, key: str) -> tuple[list[str], str]:
    """(options, letter of the correct one) in an order that (seed, key) alone decides.

    key: the problem's id, so that every problem has its own order under one recorded seed.
    """
    import random  # slow to import, and only benchmarks shuffle

    options = [correct, *wrong]
    order = list(range(len(options)))
    random.Random(f"{seed}/{key}").shuffle(order)
    return [options[index] for index in order], LETTERS[order.index(0)]


def _cased(text: str, announced: re.Match[str]) -> re.Match[str] | None:
    """The letter itself, with its case: "the answer is a" announces nothing, "(a)" does."""
    group = "wrapped" if announced["wrapped"] else "plain"
    if group == "plain" and not announced["plain"].isupper():
        return None
    return announced


def _read(match: re.Match[str] | None, text: str, count: int) -> str | None:
    if match is None:
        return None
    letter = (match["wrapped"] or match["plain"]).upper()
    return letter if letter in LETTERS[:count] else None


def _another(text: str, match: re.Match[str], letter: str) -> bool:
    more = _MORE.match(text, match.end())
    return more is not None and (more["wrapped"] or more["plain"]).upper() != letter


def _by_text(answer: str, options: Sequence[str]) -> tuple[str | None, str]:
    same = [index for index, option in enumerate(options) if equivalent(option, answer)]
    return (LETTERS[same[0]], "option text") if len(same) == 1 else (None, "several" if same else "extract")


def gold_letter(gold: str | None, options: Sequence[str]) -> str | None:
    """The letter of a gold that is one, or an option's text; None where it is neither."""
    if gold is None:
        return None
    match = re.fullmatch(r"\s*\(?([A-Za-z])\)?\.?\s*", gold)
    if match:
        letter = match[1].upper()
        return letter if not options or LETTERS.index(letter) < len(options) else None
    return _by_text(gold, options)[0]
