r"""From the text of an answer to tokens; LaTeX, plain text and calculator notation alike.

Letters that form no known name are single symbols (`mn` is m times n), words are kept whole
(`10 weeks`), and `\text{...}` is always words. Linear in the length of the text.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from fathom.boxed import closing_brace
from fathom.graders.tree import NotMath


class Token(NamedTuple):
    """kind: num, sym, sub (a subscript's name), fn (function or big operator), op, text, env (matrix body), end."""

    kind: str
    value: str


FUNCTIONS = frozenset(
    "sin cos tan cot sec csc arcsin arccos arctan arccot sinh cosh tanh coth asin acos atan ln log lg exp sqrt cbrt "
    "frac binom gcd lcm max min floor ceil abs det Re Im arg deg sum prod int lim mod pmod bmod sgn sign".split()
)
_PLAIN_FUNCTIONS = frozenset(  # without a backslash; `min` and `sec` are units, `int` is a word
    "sin cos tan cot csc arcsin arccos arctan arccot sinh cosh tanh coth asin acos atan ln log lg exp sqrt cbrt gcd lcm max floor ceil "
    "abs deg mod sgn sign".split()
)
_ALIASES = {
    "asin": "arcsin", "acos": "arccos", "atan": "arctan", "dfrac": "frac", "tfrac": "frac", "cfrac": "frac", "dbinom": "binom",
    "tbinom": "binom", "lg": "log10", "pmod": "mod", "bmod": "mod", "sgn": "sign", "ceiling": "ceil", "factorial": "factorial",
}  # fmt: skip
_GREEK = frozenset(
    "alpha beta gamma delta epsilon varepsilon zeta eta theta vartheta iota kappa lambda mu nu xi pi rho varrho sigma tau upsilon phi varphi "
    "chi psi omega Gamma Delta Theta Lambda Xi Pi Sigma Upsilon Phi Psi Omega ell hbar nabla partial emptyset varnothing mho Re Im".split()
)
_OPERATORS = {
    "cdot": "*", "times": "*", "ast": "*", "div": "/", "le": "<=", "leq": "<=", "leqslant": "<=", "ge": ">=", "geq": ">=", "geqslant": ">=",
    "lt": "<", "gt": ">", "ne": "!=", "neq": "!=", "approx": "~", "simeq": "~", "sim": "~", "in": "in", "to": "to", "rightarrow": "to",
    "mapsto": "to", "cup": "cup", "cap": "cap", "setminus": "minus", "backslash": "minus", "pm": "pm", "mp": "mp", "mid": "|", "vert": "|",
    "lvert": "|", "rvert": "|", "lbrace": "\\{", "rbrace": "\\}", "langle": "<(", "rangle": ")>", "lfloor": "lfloor", "rfloor": "rfloor",
    "lceil": "lceil", "rceil": "rceil", "dots": "...", "ldots": "...", "cdots": "...", "colon": ":", "implies": "=>", "Rightarrow": "=>",
    "choose": "choose", "prime": "'", "circ": "circ", "overline": "overline", "mathbb": "mathbb", "{": "\\{", "}": "\\}", "|": "|",
    "dot": "dot", "ddot": "ddot", "land": "and", "wedge": "and", "lor": "or", "vee": "or", "equiv": "equiv", "degree": "circ", "over": "over",
}  # fmt: skip
SYMBOL_NAMES = {
    "infty": "oo",
    "infinity": "oo",
    "inf": "oo",
    "varepsilon": "epsilon",
    "varphi": "phi",
    "vartheta": "theta",
    "varnothing": "emptyset",
}
_SHORT_WORDS = frozenset(
    "and the for all odd one two six ten yes any not are was per day sec hrs cup off out its has way set men bus box pen no or is of".split()
)
_ORDINALS = frozenset({"st", "nd", "rd", "th"})

_SCAN = re.compile(
    r"(?P<space>\s+)"
    r"|(?P<text>\\text\s*\{)"
    r"|(?P<repeating>\d*\.\d*\\(?:overline|dot)\s*\{\d{1,50}\}|\d*\.\d*\\(?:overline|dot) ?\d(?!\d))"
    r"|\\begin\s*\{(?P<env>[a-z]*(?:matrix|array))\}(?:\{[^{}]*\})?"
    r"|\\(?P<cmd>[a-zA-Z]+)\*?|\\(?P<esc>[{}|%&_])"
    r"|(?P<num>(?:\d{1,3}(?:,\d{3})+(?![\d,])(?:\.\d+)?|\d+\.\d+|\d+\.(?![.\d])|\d+|\.\d+)(?:[eE][-+]?\d+(?![\w.]))?)"
    r"|(?P<word>[A-Za-z]+)"
    r"|(?P<op>\.\.\.|\*\*|<=|>=|!=|==|=>|->|[-+*/^_=<>!%|'\"(){}\[\],;:&~.?])"
    r"|(?P<other>[^\x00-\x7f]+|.)"
)

_FORMULA_TEXT = re.compile(r"[-+]?[\d.]|.*=|\(?[A-Za-z]\)?$|[A-Z](?:, ?[A-Z])+$")  # text that holds a formula


def tokens(text: str, thousands: bool = True) -> list[Token]:
    """Tokens of a normalized answer. thousands: outside brackets `1,234` is one number.

    Raises NotMath for characters or commands that no answer uses.
    """
    out: list[Token] = []
    position, depth = 0, 0
    while position < len(text):
        match = _SCAN.match(text, position)
        position = match.end()
        kind, value = match.lastgroup, match.group(match.lastgroup)
        if kind == "space":
            continue
        if kind == "text":
            position = _text_group(text, match.end() - 1, out)
        elif kind == "env":
            position = _environment(text, match.end(), value, out)
        elif kind == "repeating":
            fixed, period = value.split("\\", 1)
            out.append(Token("num", f"{fixed}({re.sub(r'[^0-9]', '', period)})"))
        elif kind in ("cmd", "esc"):
            depth += (value == "{") - (value == "}")
            out.append(_command(value))
        elif kind == "num":
            if "," in value and (depth or not thousands):
                value = value.split(",", 1)[0]
                position = match.start() + len(value)
            out.append(Token("num", value.replace(",", "")))
        elif kind == "word":
            ordinal = value in _ORDINALS and match.start() and text[match.start() - 1].isdigit()
            out.extend([Token("text", value)] if ordinal else _word(value))
        elif kind == "op" and value == "_" and not (out and out[-1].kind == "fn"):
            position = _subscript(text, position, out)
        elif kind == "op":
            depth += (value in "([") - (value in ")]")
            out.append(Token("op", {"**": "^", "==": "=", "->": "to"}.get(value, value)))
        else:
            out.append(Token("text", value))
    return out


def _text_group(text: str, brace: int, out: list[Token]) -> int:
    end = closing_brace(text, brace)
    if end is None:
        raise NotMath("unbalanced text group")
    content = text[brace + 1 : end].strip()
    follows_value = bool(out) and (out[-1].kind == "num" or out[-1].value in ("}", ")"))
    if content in FUNCTIONS and not follows_value:
        out.append(Token("fn", _ALIASES.get(content, content)))
    elif _FORMULA_TEXT.match(content) and not (follows_value and content.isalpha()):
        out.extend(tokens(content))
    else:
        out.extend(Token("op" if word in ",;" else "text", word) for word in re.findall(r"[,;]|[^\s,;]+", content))
    return end + 1


def _subscript(text: str, start: int, out: list[Token]) -> int:
    """A subscript is a name, whatever it holds: `_{\\text{max}}` and `_{max}` are one."""
    match = re.compile(r"\s*(?:(\{)|\\?[A-Za-z](?:(?<=\\.)[A-Za-z]+)?|\d+|.)").match(text, start)
    if match is None:
        raise NotMath("a subscript without a name")
    end, name = match.end(), match[0]
    if match[1]:
        closing = closing_brace(text, match.end() - 1)
        if closing is None:
            raise NotMath("unclosed subscript")
        end, name = closing + 1, text[match.end() : closing]
    out.append(Token("sub", re.sub(r"\\text|[\s{}\\]", "", name)))
    return end


def _environment(text: str, start: int, name: str, out: list[Token]) -> int:
    end = text.find(f"\\end{{{name}}}", start)
    if end < 0:
        raise NotMath("unclosed environment")
    out.append(Token("env", name + ":" + text[start:end]))
    return end + len(f"\\end{{{name}}}")


def _command(name: str) -> Token:
    name = _ALIASES.get(name, name)
    if name in FUNCTIONS or name in ("log10", "cbrt"):
        return Token("fn", name)
    if name in _OPERATORS:
        return Token("op", _OPERATORS[name])
    if name in SYMBOL_NAMES or name in _GREEK:
        return Token("sym", SYMBOL_NAMES.get(name, name))
    if name == "%":
        return Token("op", "%")
    if name in ("dollar", "pounds", "euro"):
        return Token("text", {"dollar": "$"}.get(name, name))
    if name in ("forall", "AA"):
        return Token("text", {"AA": "å"}.get(name, name))
    if name in ("angle", "triangle", "measuredangle"):
        return Token("op", "angle")
    if name in ("square", "Box", "cancel", "quad"):
        return Token("op", "?")
    raise NotMath(f"unknown command \\{name}")


def _word(run: str) -> list[Token]:
    lower = run.lower()
    if run in _PLAIN_FUNCTIONS or (lower in _PLAIN_FUNCTIONS and len(run) > 3):
        name = run if run in _PLAIN_FUNCTIONS else lower
        return [Token("fn", _ALIASES.get(name, name))]
    if run in _GREEK or lower in SYMBOL_NAMES:
        return [Token("sym", SYMBOL_NAMES.get(lower, run))]
    if lower in _SHORT_WORDS or _is_word(run):
        return [Token("text", run)]
    for name in ("sqrt", "arcsin", "arccos", "arctan", "sin", "cos", "tan", "ln", "log", "exp", "pi"):
        if run.startswith(name) and len(run) <= len(name) + 2:
            head = Token("sym", "pi") if name == "pi" else Token("fn", name)
            return [head, *_word(run[len(name) :])]
        if run.endswith(name) and len(run) <= len(name) + 2:
            return [*_word(run[: -len(name)]), *_word(name)]
    return [Token("sym", letter) for letter in run]


def _is_word(run: str) -> bool:
    """Four letters or more with a vowel, not all capitals, not in alphabetical order, are a word."""
    if len(run) == 3 and run.istitle():
        return True  # a name: Bob, Amy
    if len(run) < 4 or run.isupper():
        return False
    ordered = all(a < b for a, b in zip(run.lower(), run.lower()[1:], strict=False))
    return not ordered and re.search(r"[aeiouyAEIOUY]", run) is not None
