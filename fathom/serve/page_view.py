"""How an answer looks on the web page: chat messages, the chart of a vote, what it took. Pure functions of turns.

All that a model or a visitor wrote is escaped where it goes into HTML; in messages the page's Markdown sanitises it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from html import escape
from typing import Any

from fathom.bill import dollars
from fathom.boxed import closing_brace
from fathom.serve.chat import Turn
from fathom.serve.solving import agreement

EXAMPLES = [
    "What is the greatest common divisor of 84 and 36?",
    "Compute (17 * 27 + 62) mod 6.",
    "A sequence starts 11, 19, 27, 35 and goes on in equal steps. Find term number 14.",
    "Tom has 3 apples and buys 4 more. How many apples does he have?",
]

MOST_BARS = 8
"""Answers with a bar of their own; the rest share one."""

CSS = """
#title h2 {margin: 0; font-weight: 600}
#ballot, #took {padding: 0}
.votes {display: grid; grid-template-columns: minmax(2.5em, max-content) 1fr 2.2em; gap: 5px 8px; align-items: center;
        font-variant-numeric: tabular-nums; font-size: 0.92em}
.votes .answer {text-align: right; max-width: 9em; overflow: hidden; text-overflow: ellipsis; white-space: nowrap}
.votes .track {background: var(--background-fill-secondary); border-radius: 3px; height: 15px}
.votes .bar {background: var(--color-accent); opacity: 0.45; height: 15px; border-radius: 3px; transition: width .2s}
.votes .winner .bar {opacity: 1}
.votes .row {display: contents}
.votes .winner .answer, .votes .winner .count {font-weight: 600}
.votes .silent .answer {color: var(--body-text-color-subdued); font-style: italic}
.panel h4 {margin: 0 0 6px; font-size: 0.95em; font-weight: 600}
.panel p {margin: 6px 0 0; opacity: 0.7; font-size: 0.88em; line-height: 1.4}
.took {display: grid; grid-template-columns: 1fr auto; gap: 3px 8px; font-size: 0.92em; font-variant-numeric: tabular-nums}
.took span:nth-child(odd) {opacity: 0.7}
.took span:nth-child(even) {text-align: right}
#talk button[aria-label="Clear"] {display: none}
"""

_MATH = re.compile(r"\$\$.*?\$\$|\$[^$\n]+\$|\\\[.*?\\\]|\\\(.*?\\\)", re.DOTALL)


def typeset(answer: str) -> str:
    r"""The answer with bare boxes (`\boxed{...}` outside of mathematics) put between dollar signs."""
    done, position = [], 0
    for math in [*_MATH.finditer(answer), None]:
        done.append(_boxes_in_dollars(answer[position : math.start() if math else None]))
        if math:
            done.append(math.group())
            position = math.end()
    return "".join(done)


def _boxes_in_dollars(text: str) -> str:
    start = text.find(r"\boxed{")
    if start < 0:
        return text
    end = closing_brace(text, start + len(r"\boxed"))
    if end is None:
        return text
    return f"{text[:start]}${text[start : end + 1]}${_boxes_in_dollars(text[end + 1 :])}"


def messages(turns: Sequence[Turn], growing: bool = False) -> list[dict[str, Any]]:
    """What the chat shows. growing: whether the last turn's answer still comes."""
    return [m for turn in turns for m in _messages(turn, growing and turn is turns[-1])]


def _messages(turn: Turn, growing: bool) -> Iterator[dict[str, Any]]:
    yield {"role": "user", "content": turn.question}
    thinks = growing and not turn.answer
    if turn.thinking.strip():
        title = (
            f"Thinking · {turn.thinking_tokens:,} tokens"
            if turn.thinking_tokens
            else "The thinking of one of the chains that agree"
        )
        about = {"title": title, "status": "pending" if thinks else "done"}
        yield {"role": "assistant", "content": _plain(turn.thinking.strip()), "metadata": about}
    if turn.answer.strip():
        yield {"role": "assistant", "content": typeset(turn.answer.strip())}
    if not growing and turn.finish != "stop":
        why = "The token limit cut the answer here." if turn.finish == "length" else "Stopped; what came is kept."
        yield {"role": "assistant", "content": f"*{why}*"}


def _plain(text: str) -> str:
    """Thinking is no Markdown: its asterisks are products."""
    return text.replace("*", r"\*").replace("#", r"\#")


def chart(turn: Turn | None) -> str:
    """The answers of a vote as bars, the most frequent first; a hint where there was none."""
    if turn is None or not turn.chains or (turn.chains == 1 and turn.consensus is None):
        return _panel("Votes", "<p>With several votes, the answers that the chains give are counted here.</p>")
    counted = sorted(turn.votes.items(), key=lambda vote: -vote[1])
    rest = sum(count for _, count in counted[MOST_BARS:])
    silent = turn.chains - sum(turn.votes.values())
    most = max([count for _, count in counted] + [silent])
    shown = counted[:MOST_BARS]
    rows = [_row(answer, count, most, "winner" if answer == shown[0][0] else "") for answer, count in shown]
    rows += [_row(name, count, most, "silent") for name, count in (("others", rest), ("no answer", silent)) if count]
    told = agreement(turn.consensus) if turn.consensus else f"{turn.chains} chains so far"
    saved = turn.consensus.saved if turn.consensus else 0
    spared = f"<p>About {saved:,} tokens saved by stopping early.</p>" if saved else ""
    return _panel("Votes", f'<div class="votes">{"".join(rows)}</div><p>{escape(told)}</p>{spared}')


def _row(answer: str, count: int, most: int, kind: str) -> str:
    bar = f'<span class="track"><div class="bar" style="width:{count / most:.1%}"></div></span>'
    name = f'<span class="answer" title="{escape(answer)}">{escape(answer)}</span>'
    return f'<div class="row {kind}">{name}{bar}<span class="count">{count}</span></div>'


def figures(turns: Sequence[Turn]) -> str:
    """What the last answer took, and the whole conversation."""
    if not turns:
        return ""
    last, prices = turns[-1], [turn.usd for turn in turns]
    rows = {
        "tokens": f"{last.tokens:,}",
        "seconds": f"{last.seconds:.1f}",
        "tokens a second": f"{last.tokens / last.seconds:,.0f}" if last.seconds else "",
        "cost": "unpriced" if last.usd is None else dollars(last.usd),
        "whole conversation": "unpriced" if None in prices else dollars(sum(prices)),
    }
    cells = "".join(f"<span>{name}</span><span>{value}</span>" for name, value in rows.items())
    return _panel("This answer", f'<div class="took">{cells}</div>')


def _panel(title: str, body: str) -> str:
    return f'<div class="panel"><h4>{title}</h4>{body}</div>'
