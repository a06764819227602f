"""Stop strings and thinking: what comes out depends on the text alone, not on the pieces in which it came."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fathom.serve.split import Stops, Thinking

SMALL = st.text(alphabet="ab<think>/ \n", max_size=40)


def stopped(pieces: list[str], stops: list[str]) -> tuple[str, bool]:
    cut = Stops(stops)
    text = "".join(map(cut.feed, pieces))
    return (text, True) if cut.met else (text + cut.end(), False)


def split(pieces: list[str], opened: bool) -> tuple[str, str]:
    thinking = Thinking(opened)
    parts = [*map(thinking.feed, pieces[:-1]), thinking.last(pieces[-1] if pieces else "")]
    return "".join(part[0] for part in parts), "".join(part[1] for part in parts)


@pytest.mark.parametrize(
    ("text", "stops", "expected"),
    [
        ("one two three", ["two"], ("one ", True)),
        ("one two three", ["three", "two"], ("one ", True)),
        ("abc", ["abc", "b"], ("a", True)),
        ("abc", ["bc", "abc"], ("", True)),
        ("aaab", ["aab"], ("a", True)),
        ("ends with a beginning of st", ["stop"], ("ends with a beginning of st", False)),
        ("", ["x"], ("", False)),
        ("anything", [], ("anything", False)),
        ("zwölf · 12", ["·"], ("zwölf ", True)),
    ],
)
def test_a_text_ends_before_the_stop_string_that_is_complete_first(text, stops, expected):
    assert stopped([text], stops) == expected
    assert stopped(list(text), stops) == expected


@pytest.mark.parametrize(
    ("text", "opened", "expected"),
    [
        ("so 4</think>\n\nFour", True, ("so 4", "\n\nFour")),
        ("<think>so 4</think>Four", True, ("so 4", "Four")),
        ("<think>so 4</think>Four", False, ("so 4", "Four")),
        (" \n<think>so</think>Four", False, ("so", "Four")),
        ("Four", False, ("", "Four")),
        ("cut in its thin", True, ("cut in its thin", "")),
        ("cut in its tag</thi", True, ("cut in its tag</thi", "")),
        ("no thinking < 5 here", False, ("", "no thinking < 5 here")),
        ("a</think>b</think>c", True, ("a", "b</think>c")),
        ("a<think>b</think>c", True, ("a<think>b", "c")),
        ("<thin", False, ("", "<thin")),
        ("<thin", True, ("<thin", "")),
        ("", True, ("", "")),
    ],
)
def test_thinking_and_answer(text, opened, expected):
    assert split([text], opened) == expected
    assert split(list(text), opened) == expected


@given(
    st.lists(SMALL, max_size=6), st.lists(st.text(alphabet="ab<>", min_size=1, max_size=4), max_size=3), st.booleans()
)
def test_pieces_do_not_matter(pieces, stops, opened):
    whole = "".join(pieces)
    assert stopped(pieces, stops) == stopped([whole], stops)
    assert split(pieces, opened) == split([whole], opened)
    kept, met = stopped(pieces, stops)
    assert not any(stop in kept for stop in stops)
    assert whole.startswith(kept) and (met or kept == whole)


@given(SMALL)
def test_nothing_of_a_text_is_lost(text):
    reasoning, content = split(list(text), True)
    start = text.lstrip().removeprefix("<think>") if text.lstrip().startswith("<think>") else text
    assert start in (reasoning + "</think>" + content, reasoning)
