r"""One spelling for each answer: Unicode, LaTeX dress and markdown are taken off.

`normalize` keeps the meaning and changes only the writing: `\dfrac12` and `\frac{1}{2}`, `½`,
`2²` and `2^{2}`, `\left( ... \right)` and `( ... )`. It evaluates nothing and never fails;
`plain` goes further, to the bare characters that two identical answers share.
"""

from __future__ import annotations

import re
import unicodedata

from fathom.boxed import closing_brace

MAX_ANSWER = 2_000
"""Longer answers are compared as text only."""

_SUPERSCRIPT = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁽⁾ⁿⁱ", "0123456789+-()ni")
_SUBSCRIPT = str.maketrans("₀₁₂₃₄₅₆₇₈₉₊₋₍₎ₙᵢ", "0123456789+-()ni")
_GREEK = {
    "α": "alpha", "β": "beta", "γ": "gamma", "δ": "delta", "ε": "epsilon", "ζ": "zeta", "η": "eta",
    "θ": "theta", "κ": "kappa", "λ": "lambda", "μ": "mu", "ν": "nu", "ξ": "xi", "π": "pi", "ρ": "rho",
    "σ": "sigma", "τ": "tau", "φ": "phi", "ϕ": "phi", "χ": "chi", "ψ": "psi", "ω": "omega",
    "Γ": "Gamma", "Δ": "Delta", "Θ": "Theta", "Λ": "Lambda", "Π": "Pi", "Σ": "Sigma", "Φ": "Phi",
    "Ψ": "Psi", "Ω": "Omega",
}  # fmt: skip
_UNICODE = {
    "−": "-", "–": "-", "—": "-", "‐": "-", "‑": "-", "⁄": "/", "∕": "/", "÷": r"\div ", "×": r"\times ", "·": r"\cdot ", "⋅": r"\cdot ",
    "∗": "*", "≤": r"\le ", "⩽": r"\le ", "≥": r"\ge ", "⩾": r"\ge ", "≠": r"\ne ", "≈": r"\approx ", "∞": r"\infty ", "∪": r"\cup ",
    "∩": r"\cap ", "∈": r"\in ", "±": r"\pm ", "∓": r"\mp ", "°": r"^\circ ", "º": r"^\circ ", "√": r"\sqrt ", "∛": r"\cbrt ", "∖": r"\setminus ",
    "ℝ": r"\mathbb{R}", "ℤ": r"\mathbb{Z}", "⟨": r"\langle ", "⟩": r"\rangle ", "⌊": r"\lfloor ", "⌋": r"\rfloor ", "⌈": r"\lceil ",
    "⌉": r"\rceil ", "′": "'", "’": "'", "‘": "'", "“": '"', "”": '"', "…": r"\dots ", "→": r"\to ", "\u2061": "", "\u200b": "", "\u200d": "",
    "\u2060": "", "\ufeff": "", "\u2009": r"\,", "\u202f": r"\,", "\u00a0": " ", "\t": " ",
    **{letter: f"\\{name} " for letter, name in _GREEK.items()},
}  # fmt: skip
_UNICODE_TABLE = str.maketrans(_UNICODE)

_DELIMITER = re.compile(r"\$|\\[()\[\]]")
_SIZE = re.compile(r"\\(?:left|right|[bB]ig+[lrm]?|middle)(?![a-zA-Z])\s*\.?(?=[\\()\[\]{}|/<>]|\s|$)")
_DROP = re.compile(
    r"(?<!\\)\\(?:displaystyle|textstyle|scriptstyle|limits|nolimits|strut|rm|bf|it|cal|normalsize|large|Large|small|tiny|centering|quad|qquad|!|:|;|>|\s)"
    r"(?![a-zA-Z])"
    r"|\\(?:phantom|hphantom|vphantom|hspace\*?|vspace\*?|color|textcolor|label|tag)\s*\{[^{}]*\}"
)
_FONT = re.compile(
    r"\\(?:mathbf|mathit|mathsf|mathcal|mathscr|boldsymbol|bm|vec|hat|widehat|tilde|bar|mathop|ensuremath|underline|displaylines)(?![a-zA-Z])\s*"
)
_UPRIGHT = re.compile(
    r"\\(?:mathrm|mathop|operatorname\*?|textnormal|textrm|textbf|textit|textsf|mbox|hbox|mathtt|texttt|emph)(?![a-zA-Z])\s*(?=\{)"
)
_THIN = re.compile(r"(?<=\d)(?:\\[,! ]|\\;|~|\{,\}\s?|,\\!\s?|\\,)+(?=\d{3}(?!\d))")
_COMMA_BANG = re.compile(r"(?<=\d),\\!\s*(?=\d{3})")
_ZERO_WIDTH = re.compile(r"(?<!\\)\\[,!]|~")
_DOUBLED = re.compile(r"\\\\(?=[a-zA-Z])")
_SPACED_NUMBER = re.compile(r"-?\d{1,3}(?: \d{3})+")  # 118 000
_BOX = re.compile(r"\\(?:boxed|fbox)(?![a-zA-Z])\s*(?=\{)")
_BASE_SUFFIX = re.compile(
    r"(?<=[\dA-F)])\s*(?:\\text\s*\{)?\s*(?:\(|in\b)?\s*base[\s-]*\}?\s*(\d{1,2})\s*\)?\}?(?=\W*$)"
)
_BRACED_WORDS = re.compile(r"(?<=\d)\s*\{\s*(/ ?[A-Za-z]+|[A-Za-z][A-Za-z ]+)\}(?=\W|$)")
_ORDINAL = re.compile(r"(?<=\d)\s*\^\s*\{?\s*(?:\\text\s*\{\s*)?(st|nd|rd|th)\b\s*\}{0,2}")


def normalize(answer: str) -> str:
    """The answer in plain LaTeX without dress; never fails, at most a little longer."""
    text = answer
    if not text.isascii():
        text = _ascii(text)
    if text.isalnum():
        return text
    text = _unboxed(text.strip().strip("`"))
    if "\\begin" not in text:
        text = _DOUBLED.sub(r"\\", text)
    text = _dress(text)
    text = re.sub(r"\s+", " ", text).strip().rstrip(" .,;:")
    return text.replace(" ", "") if _SPACED_NUMBER.fullmatch(text) else text


def _unboxed(text: str) -> str:
    match = _BOX.match(text)
    return text[match.end() + 1 : -1] if match and closing_brace(text, match.end()) == len(text) - 1 else text


def _ascii(text: str) -> str:
    text = re.sub(r"[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁽⁾ⁿⁱ]+", lambda m: "^{" + m[0].translate(_SUPERSCRIPT) + "}", text)
    text = re.sub(r"[₀₁₂₃₄₅₆₇₈₉₊₋₍₎ₙᵢ]+", lambda m: "_{" + m[0].translate(_SUBSCRIPT) + "}", text)
    text = re.sub(r"\d*[¼-¾⅐-⅞]", _vulgar, text)
    text = text.translate(_UNICODE_TABLE)
    return "".join(_compatible(char) for char in text)


def _vulgar(match: re.Match[str]) -> str:
    whole, part = match[0][:-1], unicodedata.normalize("NFKC", match[0][-1])
    top, bottom = part.split("\u2044")
    return f"{whole}\\frac{{{top}}}{{{bottom}}}"


def _compatible(char: str) -> str:
    """Full-width forms become ASCII; Roman numerals and other look-alikes stay what they are."""
    return unicodedata.normalize("NFKC", char) if "\uff01" <= char <= "\uff5e" else char


def _dress(text: str) -> str:
    text = re.sub(r"\*\*(?=\S)([^*]+)(?<=\S)\*\*(?!\S)", r"\1", text)  # markdown bold, not a power
    text = text.replace("\\$", "\\dollar ")
    text = re.sub(r"(?<!\\)\\[ \n]", "~", text)
    text = _currency(text)
    text = _SIZE.sub("", text)
    text = _COMMA_BANG.sub("", text)
    text = _THIN.sub("", text)
    text = _DROP.sub(" ", text)
    text = _UPRIGHT.sub(r"\\text", text)
    text = _FONT.sub(" ", text)
    text = _ZERO_WIDTH.sub(" ", text)
    text = re.sub(r"\s{2,}", " ", text)  # the patterns that follow try every way to share a run of spaces
    text = re.sub(r"(?<=\d)\s*[xX]\s*(?=10\s*\^)", r"\\times ", text)
    text = _BOX.sub("", text)
    text = _BASE_SUFFIX.sub(r"_{\1}", text)
    text = _BRACED_WORDS.sub(r"\\text{ \1}", text)
    text = _ORDINAL.sub(r"\1", text)
    text = text.replace("\\%", "%").replace("\\&", " and ").replace("\\#", "#")
    return text


def _currency(text: str) -> str:
    """`$12` is money, `$12$` is mathematics: an odd dollar sign before a number is kept as a unit."""
    if text.count("$") % 2:
        text = re.sub(r"(?<![\d$])\$(?=\s*-?[\d.])", r"\\dollar ", text, count=1)
    return _DELIMITER.sub(" ", text)


_TEXT_GROUP = re.compile(r"\\text\s*\{([^{}\\]*)\}")
_SPACE = re.compile(r"(?<!\d)\s+|\s+(?!\d)")


def plain(normalized: str) -> str:
    """The characters that matter: no spaces (but between two digits), no text commands."""
    text = normalized.replace("\\dfrac", "\\frac").replace("\\tfrac", "\\frac")
    return _SPACE.sub("", _TEXT_GROUP.sub(r"\1", text))
