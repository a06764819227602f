"""Rewrites of a problem by rule: other notation, other words, other numbers, other names.

What `curation.py` plants into real data. The tables here were written without a look at those of
`fathom/curate/text.py`; a language model would reword more freely than these rules do.
"""

from __future__ import annotations

import re
from random import Random

LEAD_INS = (
    "Consider the following situation.", "Here is a question from a recent practice test.", "Read carefully.",
    "Think about this problem step by step.", "A teacher wrote the following exercise on the board.",
    "Problem 7 (5 points).", "The next exercise comes from an old contest.", "Try to work this out without a calculator.",
    "Exercise 12.", "This one is a classic.",
)  # fmt: skip
SYNONYMS = dict(
    pair.split(":")
    for pair in """
    buys:purchases bought:purchased sells:vends gives:hands gave:handed gets:receives got:received makes:produces
    made:produced wants:wishes needs:requires each:every every:each total:altogether altogether:combined also:additionally
    then:afterwards but:however friends:buddies house:home big:large small:little begin:start starts:begins started:began
    finish:complete find:determine compute:calculate evaluate:compute calculate:work~out determine:find solve:work~out
    what:which~number suppose:assume assume:suppose let:allow such:so integer:whole~number integers:whole~numbers
    positive:strictly~positive distinct:different different:distinct remaining:leftover left:remaining spends:pays
    spent:paid costs:is~priced~at walks:strolls runs:jogs uses:employs has:owns had:owned kids:children children:kids
    week:7~days weeks:weeks day:day year:year old:of~age more:additional fewer:less only:just if:given~that
    segment:line~segment largest:biggest smallest:littlest sum:total~sum equals:is~equal~to obtained:gotten
    exactly:precisely contains:holds number:count numbers:values people:persons students:pupils school:academy
    """.split()
    for pair in [pair.replace("~", " ")]
)
UNITS = {
    "km": "kilometers", "cm": "centimeters", "mm": "millimeters", "kg": "kilograms", "lbs": "pounds", "oz": "ounces",
    "ft": "feet", "mph": "miles per hour", "hrs": "hours", "min": "minutes", "pounds": "lbs", "ounces": "oz",
    "feet": "ft", "kilometers": "km", "centimeters": "cm", "kilograms": "kg", "percent": "%",
}  # fmt: skip
SPELLED = "zero one two three four five six seven eight nine ten eleven twelve".split()
WOMEN = """Janet Maria Anna Emma Olivia Sophia Mia Lily Grace Julia Sarah Jessica Amy Lisa Laura Rachel Emily Kate Katie
Claire Marissa Jenna Tina Carla Brenda Betty Wendy Melanie Rebecca Stephanie Toula Candice Kylie Gretchen Judy Jen Jill
Jane Mary Martha Rosie Mandy Monica Nancy Peggy Sally Susan Tracy Violet Zoe Alice Beth Cindy Diana Eliza""".split()
MEN = """John James Josh Toby Tom Tim Mark Mike Michael Peter Paul Bob Bill Billy Jack Jim Jake Joe Sam Adam Alex Ben
Brian Carlos Charlie Chris Dan Daniel David Eric Frank George Greg Henry Ian Jason Jerry Jordan Kevin Kyle Larry Luke
Marcus Matt Max Nick Oliver Raymond Richard Robert Ryan Steve Terry Tyler Wayne Will Zack Andrew Anthony""".split()
PRONOUNS = {"she": "he", "he": "she", "her": "his", "his": "her", "hers": "his", "him": "her"}
SENTENCE_END = re.compile(r"(?<=[.?!])\s+(?=[A-Z$\\])")
MATH = re.compile(r"\$\$?.+?\$\$?|\\\[.+?\\\]|\\\(.+?\\\)", re.DOTALL)
NUMBER = re.compile(r"(?<![\w.])\d+(?:,\d{3})*(?:\.\d+)?|(?<=[a-zA-Z_^{])\d+")


def notation(text: str, random: Random) -> str:
    """The same words and formulas, written otherwise: white space, delimiters, commands, signs, thousands."""
    text = re.sub(r"(?<!\$)\$([^$]+)\$(?!\$)", lambda m: rf"\( {m[1]} \)" if random.random() < 0.7 else m[0], text)
    text = re.sub(r"\\frac\b", r"\\dfrac", text)
    text = re.sub(r"\\leq?\b", "≤", re.sub(r"\\geq?\b", "≥", text))
    text = re.sub(r"\\cdot\b", r"\\times", text)
    text = re.sub(r"\^\\circ\b|\^\{\\circ\}", "°", text)
    text = re.sub(r"(?<![\d.])(\d{1,3})(\d{3})(?!\d)", r"\1,\2", text)
    text = re.sub(r"(?<!\\left)(?<!\\right)(?<!\\)\((?=[^()]*\)[^()]*\\\))", r"\\left(", text)
    text = text.replace("'", "’").replace('"', "”")
    return re.sub(r" ", lambda _: random.choice(("  ", " ", "\n", " ")), text) + " "


def reworded(text: str, random: Random) -> str:
    """Other words for the same problem: a lead-in, synonyms, units spelled out or shortened, sentences in another order."""
    parts = MATH.split(text)
    formulas = MATH.findall(text)
    parts = [_replace_words(part, random) for part in parts]
    text = "".join(a + b for a, b in zip(parts, [*formulas, ""], strict=True))
    sentences = SENTENCE_END.split(text.strip())
    if len(sentences) > 2:
        order = sentences[1:-1]
        random.shuffle(order)
        sentences = [sentences[0], *order, sentences[-1]]
    if random.random() < 0.7:
        sentences.insert(0, random.choice(LEAD_INS))
    return " ".join(sentences)


def _replace_words(part: str, random: Random) -> str:
    def other(match: re.Match) -> str:
        word = match[0]
        new = {**SYNONYMS, **UNITS}.get(word.lower())
        if new is None or random.random() < 0.3:
            return word
        return new[0].upper() + new[1:] if word[0].isupper() else new

    part = re.sub(r"(?<![\\\w])[a-zA-Z]+(?!\w)", other, part)
    part = re.sub(r"\$(\d+(?:,\d{3})*(?:\.\d+)?)", r"\1 dollars", part)
    part = re.sub(r"(?<=\d)\\?%", " percent", part)
    return re.sub(
        r"(?<![\w.,$])(1[0-2]|\d)(?![\w.,%])", lambda m: SPELLED[int(m[1])] if random.random() < 0.3 else m[1], part
    )


def renumbered(text: str, random: Random) -> str | None:
    """Every number changed, equal numbers alike, with as many digits; None where the text has none."""
    new: dict[str, str] = {}

    def other(match: re.Match) -> str:
        old = match[0]
        if old not in new:
            while (drawn := "".join(_digit(c, i, random) for i, c in enumerate(old))) == old:
                pass
            new[old] = drawn
        return new[old]

    changed = NUMBER.sub(other, text)
    return changed if changed != text else None


def _digit(char: str, position: int, random: Random) -> str:
    return str(random.randint(2 if position == 0 else 0, 9)) if char.isdigit() else char


def renamed(text: str, random: Random) -> str | None:
    """Other people (pronouns follow), or, where there are none, other letters for points and variables; else None."""
    people = [name for name in WOMEN + MEN if re.search(rf"\b{name}\b", text)]
    if people:
        fresh = random.sample([n for n in WOMEN + MEN if n not in people], len(people))
        new = dict(zip(people, fresh, strict=True))
        if len({name in WOMEN for name in people}) == 1 and (people[0] in WOMEN) != (fresh[0] in WOMEN):
            new |= PRONOUNS | {a.capitalize(): b.capitalize() for a, b in PRONOUNS.items()}
        return re.sub(r"\b[A-Za-z]+\b", lambda m: new.get(m[0], m[0]), text)
    changed = MATH.sub(lambda m: _other_letters(m[0]), text)
    return changed if changed != text else None


def _other_letters(formula: str) -> str:
    lower = str.maketrans("abcfghkmnpqrstuvwxyz", "pqrghfjnmabcuvwstyzx")
    upper = str.maketrans("ABCDEFGHIJKLMNOPQRSTUVWXYZ", "PQRSTUVWXYZABCDEFGHIJKLMNO")
    other = lambda m: m[0].translate(lower).translate(upper)  # noqa: E731
    protected = re.split(r"(\\[a-zA-Z]+(?:\{[a-zA-Z]+\})?|\[asy\].*?\[/asy\])", formula, flags=re.DOTALL)
    for i in range(0, len(protected), 2):
        protected[i] = re.sub(r"(?<![a-zA-Z])(?:[a-zA-Z]|[A-Z]{2,4})(?![a-zA-Z])", other, protected[i])
    return "".join(protected)
