"""A teacher, a labeller and a rewriter that are scripts: stand-ins for three paid models, on a laptop for nothing.

Each reads the text of its prompt and nothing else (no ids, no gold answers), and each goes wrong as
the model goes wrong that it stands for: the teacher slips or misreads, the labeller forgets the form
of its answer, the rewriter drops text, changes an answer or loses its sections. Their draws follow from the
request, so a question asked again with another seed may be answered better. They measure nothing
but the plumbing around them.
"""

from __future__ import annotations

import re
from random import Random

from fathom.engines import Request
from fathom.engines.scripted import Script
from fathom.sources.chains import CAREFUL, CAREFUL_VERBOSE, CARELESS_VERBOSE, OPENINGS, Writer
from fathom.sources.programs import Open, program, read_open
from fathom.sources.reading import read

TEACHER_SLIPS = 0.15
LABELLER_FAILS = 0.06
REWRITER_FAILS = 0.12
STUBBORN = 0.01
"""Share of chains that the rewriter fails however often it is asked."""

SECTIONS = (
    "<|begin_of_thought|>\n\n{thought}\n\n<|end_of_thought|>\n\n"
    "<|begin_of_solution|>\n\n{solution}\n\n<|end_of_solution|>"
)


def teach(request: Request, index: int, seed: int) -> str:
    """Thinks aloud, then answers: a boxed result or a program, after the last empty line. Often right."""
    rng = Random(f"teach/{seed}/{request.key}/{index}")
    question = request.messages[-1].content.partition("\n\n")[0]
    slips = rng.random() < TEACHER_SLIPS
    opened = read_open(question)
    if opened is not None:
        return write_program(opened, rng, slips)
    found = read(question)
    if found is None:
        return "I don't know how to begin."
    family, numbers = found
    writer = Writer(CARELESS_VERBOSE if slips else CAREFUL_VERBOSE, rng)
    thought, _, answer = writer.text(family.solve(writer, numbers)).partition("\n</think>\n\n")
    return f"{thought}\n\n{answer}"


def write_program(opened: Open, rng: Random, slips: bool = False) -> str:
    """A chain for a programming problem: the sums that can be done, the formula, the program."""
    writer, expression = opened.formula(CAREFUL, rng, flip=0 if slips else None)
    lines = [rng.choice(OPENINGS[CAREFUL_VERBOSE.name]), *writer.lines, f"So {expression}."]
    return "\n".join(lines) + f"\n\n```python\n{program(expression)}\n```"


def label(request: Request, index: int, seed: int) -> str:
    """A difficulty from 1 to 10 by what a reader counts: steps of a program, numbers of a sum."""
    rng = Random(f"label/{seed}/{request.key}/{index}")
    question = request.messages[-1].content.rpartition("Problem:\n")[2].partition("\n\n")[0]
    steps = len(re.findall(r"\d+", question)) + 2 * (read_open(question) is not None)
    level = min(10, max(1, steps + rng.randint(-1, 1)))
    if rng.random() < LABELLER_FAILS:
        return rng.choice(("Difficulty: rather hard", f"Difficulty: {level + 10}", ""))
    return f"This takes some {steps} steps.\nDifficulty: {level}"


def rewrite(request: Request, index: int, seed: int) -> str:
    """Copies a chain into a thought and a solution: what stands after the last empty line is the solution."""
    rng = Random(f"rewrite/{seed}/{request.key}/{index}")
    chain = request.messages[-1].content.rpartition("Reasoning to copy:\n")[2].strip()
    thought, _, solution = chain.rpartition("\n\n")
    if Random(f"stubborn/{request.key}").random() < STUBBORN or rng.random() < REWRITER_FAILS:
        return _spoiled(thought, solution, rng)
    return SECTIONS.format(thought=thought, solution=solution)


def _spoiled(thought: str, solution: str, rng: Random) -> str:
    lines = thought.splitlines()
    return rng.choice(
        (
            SECTIONS.format(thought="\n".join(lines[: len(lines) // 2]), solution=solution),
            SECTIONS.format(thought=thought, solution=re.sub(r"\d+", "7", solution)),
            f"{thought}\n\n{solution}",
        )
    )


SCRIPTS: dict[str, Script] = {"tiny-teacher": teach, "tiny-labeller": label, "tiny-rewriter": rewrite}
"""By the name that a recipe writes under `serve.script`."""
