"""Rows that no source may stumble over: each is set aside with its reason and counted; none is lost, none is fatal."""

from __future__ import annotations

import datetime
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_sources import run, write

from fathom.errors import InputError
from fathom.sources.rows import MAX_GOLD, MAX_QUESTION

GOOD = {"problem": "1 + 1?", "answer": "2", "licence": "MIT", "level": 1, "texts": ["a"], "n": [1], "who": "m"}
COLUMNS = {"licence": "licence", "difficulty": "level", "meta": ["who"]}
CHAINS = {"text": "texts", "tokens": "n"}

MALFORMED = {
    "no answer": ({"answer": None}, "no usable gold"),
    "an empty answer": ({"answer": " "}, "no usable gold"),
    "a missing answer": ({"answer": ...}, "no column 'answer'"),
    "NaN for an answer": ({"answer": float("nan")}, "no usable gold"),
    "a giant answer": ({"answer": "7" * (MAX_GOLD + 1)}, "gold longer than 10,000 characters"),
    "a list of answers": ({"answer": ["2"]}, "gold is not text or a number"),
    "an object for an answer": ({"answer": {"value": 2}}, "gold is not text or a number"),
    "an empty problem": ({"problem": ""}, "no question"),
    "a blank problem": ({"problem": " \n\t"}, "no question"),
    "a null problem": ({"problem": None}, "no question"),
    "a missing problem": ({"problem": ...}, "no column 'problem'"),
    "a number for a problem": ({"problem": 12}, "question is not text"),
    "a list for a problem": ({"problem": ["1 + 1?"]}, "question is not text"),
    "a problem of 1 MB": ({"problem": "why? " * 200_000}, "question longer than 100,000 characters"),
    "a null byte in the problem": ({"problem": "1 +\0 1?"}, "null byte"),
    "a null byte in the answer": ({"answer": "2\0"}, "null byte"),
    "a null byte in a chain": ({"texts": ["a\0b"]}, "null byte"),
    "a null byte in what is kept beside": ({"who": {"by": ["x", "y\0"]}}, "null byte"),
    "half a surrogate pair": ({"problem": "1 + \ud83d?"}, "text is not Unicode"),
    "half a surrogate pair in a chain": ({"texts": ["\udc00"]}, "text is not Unicode"),
    "half a surrogate pair in a column's name": ({"answer": ..., "\udc00\n": 1}, "no column 'answer'"),
    "no licence": ({"licence": None}, "licence unknown"),
    "an empty licence": ({"licence": ""}, "licence unknown"),
    "an unknown licence": ({"licence": "Unknown"}, "licence unknown"),
    "words for a difficulty": ({"level": "hard"}, "difficulty is not a number"),
    "a difficulty without end": ({"level": float("inf")}, "difficulty is not a number"),
    "a difficulty of 400 digits": ({"level": 10**400}, "difficulty is not a number"),
    "a list for a difficulty": ({"level": [1]}, "difficulty is not a number"),
    "a number for a chain": ({"texts": [7]}, "chains are not text"),
    "an object for the chains": ({"texts": {"a": 1}}, "chains are not text"),
    "more token counts than chains": ({"n": [1, 2]}, "columns of chains don't fit each other"),
    "half a token": ({"n": [1.5]}, "token count is not a whole number"),
    "words for a token count": ({"n": ["many"]}, "token count is not a whole number"),
}


def changed(change):
    return {key: value for key, value in {**GOOD, **change}.items() if value is not ...}


@pytest.mark.parametrize(("change", "reason"), MALFORMED.values(), ids=MALFORMED)
def test_a_malformed_row_is_set_aside(tmp_path, change, reason):
    rows = [{**GOOD, "problem": "first"}, changed(change), {**GOOD, "problem": "last"}]
    source = {"name": "local", "path": write(tmp_path / "r.jsonl", rows), "columns": COLUMNS, "chains": CHAINS}
    metrics, problems, chains, removed = run(tmp_path, source)
    assert [p.question for p in problems] == ["first", "last"]
    assert [c.problem_id for c in chains] == ["r-000001", "r-000003"]
    (row,) = removed
    assert (row["id"], row["reason"]) == ("r-000002", reason)
    assert row["where"].endswith("r.jsonl:2")
    assert len(row.get("text", "")) <= 500
    assert metrics["set_aside"] == {reason: 1}
    assert metrics["funnel"] == [["rows read", 3], [f"left after: {reason}", 2], ["problems", 2]]


def test_all_of_them_at_once_add_up(tmp_path):
    rows = [GOOD, *(changed(change) for change, _ in MALFORMED.values()), ["not", "an", "object"], 7, None]
    source = {"name": "local", "path": write(tmp_path / "r.jsonl", rows), "columns": COLUMNS, "chains": CHAINS}
    metrics, _, _, removed = run(tmp_path, source)
    assert metrics["problems"] == 1
    assert len(removed) == sum(metrics["set_aside"].values()) == len(rows) - 1
    counts = [count for _, count in metrics["funnel"]]
    assert counts == sorted(counts, reverse=True) and counts[-2:] == [1, 1]


def test_a_source_of_malformed_rows_alone_is_an_error_that_names_the_first(tmp_path):
    good = {"name": "local", "path": write(tmp_path / "good.jsonl", [GOOD])}
    for change, reason in MALFORMED.values():
        bad = {
            "name": "local",
            "path": write(tmp_path / "bad.jsonl", [changed(change)] * 2),
            "columns": COLUMNS,
            "chains": CHAINS,
        }
        with pytest.raises(InputError) as caught:
            run(tmp_path, good, bad)
        told = str(caught.value)
        assert told.startswith(f"{tmp_path}/bad.jsonl:1: {reason}"), told
        assert told.endswith("; no problem left of 2 rows read (2 wanted) from bad") and "\n" not in told


def test_a_wrong_column_is_told_before_the_end_of_a_long_file(tmp_path):
    path = tmp_path / "long.jsonl"
    path.write_text('{"problem": "q", "answer": "1"}\n' * 10_050)
    with pytest.raises(InputError, match=r"long.jsonl:1: no column 'anser' .*10000 rows read"):
        run(tmp_path, {"name": "local", "path": str(path), "columns": {"gold": "anser"}})
    with pytest.raises(InputError, match=r"no column 'topics'"):
        run(tmp_path, {"name": "local", "path": str(path), "where": {"topics": ["sums"]}})


@pytest.mark.parametrize(
    ("declared", "column", "allowed", "licences"),
    [
        ("", True, False, ["MIT"]),
        ("", True, True, ["MIT", "", "", "unknown"]),
        ("CC-BY-4.0", True, False, ["MIT", "CC-BY-4.0", "CC-BY-4.0"]),
        ("CC-BY-4.0", False, False, ["CC-BY-4.0"] * 4),
        ("", False, False, [""] * 4),
    ],
)
def test_the_licence_policy(tmp_path, declared, column, allowed, licences):
    """A row's own licence counts; where it states none, the source's; a row whose licence nobody knows goes, unless
    the recipe allows it. A file for which no licence is declared at all is its owner's to answer for."""
    rows = [{**GOOD, "licence": licence} for licence in ("MIT", "", None, "unknown")]
    source = {"name": "local", "path": write(tmp_path / "r.jsonl", rows), "licence": declared}
    source |= {"allow_unknown_licence": allowed, "columns": {"licence": "licence" if column else None}}
    metrics, problems, _, removed = run(tmp_path, source)
    assert [p.licence for p in problems] == licences
    assert {r["reason"] for r in removed} <= {"licence unknown"} and len(removed) == 4 - len(problems)
    assert metrics["licences"] == {licence: licences.count(licence) for licence in licences}


CODE = {"name": "local", "kind": "code", "columns": {"gold": None, "tests": "cases", "solutions": "programs"}}
PAIRS = {"inputs": ["1\n"], "outputs": ["2\n"]}

TESTS = {
    "none": (None, "no tests"),
    "an empty text": ("", "no tests"),
    "an empty list": ("[]", "no tests"),
    "no pairs": (json.dumps({"inputs": [], "outputs": []}), "no tests"),
    "not JSON": ("assert f(1) == 2", "tests can't be read"),
    "cut off": ('{"inputs": ["1\\n"], "outp', "tests can't be read"),
    "an integer of 9,000 digits": (
        '{"fn_name": "f", "inputs": [[1]], "outputs": [' + "9" * 9000 + "]}",
        "tests can't be read",
    ),
    "lists 100,000 deep": ("[" * 100_000, "tests can't be read"),
    "a number": (7, "tests can't be read"),
    "a list of texts": (["1"], "tests can't be read"),
    "more inputs than outputs": ({"inputs": ["1", "2"], "outputs": ["1"]}, "tests can't be read"),
    "outputs in one text": ({"inputs": ["1"], "outputs": "1"}, "tests can't be read"),
    "a function's name that is a list": ({**PAIRS, "fn_name": ["f"]}, "tests can't be read"),
    "a null byte": ({"inputs": ["1\0"], "outputs": ["1"]}, "null byte"),
}


@pytest.mark.parametrize(("cases", "reason"), TESTS.values(), ids=TESTS)
def test_a_code_row_whose_tests_cannot_be_read(tmp_path, cases, reason):
    rows = [{"problem": "Double.", "cases": PAIRS, "programs": "print(2 * int(input()))"}]
    rows.append({**rows[0], "cases": cases})
    metrics, (problem,), _, removed = run(tmp_path, {**CODE, "path": write(tmp_path / "c.jsonl", rows)})
    assert problem.tests == [{"kind": "stdin", "input": "1\n", "expected": "2\n"}]
    assert problem.meta == {"solutions": ["print(2 * int(input()))"]}
    assert [r["reason"] for r in removed] == [reason]
    assert metrics["set_aside"] == {reason: 1}


def test_options_by_letter_keep_their_letters(tmp_path):
    rows = [
        {"problem": f"q{i}", "answer": "A", "o": o}
        for i, o in enumerate([{"B": "bee", "A": "ay"}, {"A": "a", "C": "c"}])
    ]
    source = {"name": "local", "path": write(tmp_path / "o.jsonl", rows), "kind": "choice", "columns": {"options": "o"}}
    _, (problem,), _, removed = run(tmp_path, source)
    assert problem.options == ["ay", "bee"]
    assert [r["reason"] for r in removed] == ["options are not called A, B, C and so on"]


def test_a_column_of_chains_that_no_row_has_is_refused(tmp_path):
    rows = [
        {"problem": "q", "answer": "1", "chain": "c", "usage": {"tokens": 7}},
        {"problem": "r", "answer": "1", "chain": "c"},
    ]
    path = write(tmp_path / "c.jsonl", rows)
    with pytest.raises(InputError, match=r"chains: no row has the column 'is_truncatd', 'usage\.tokns'"):
        run(
            tmp_path,
            {
                "name": "local",
                "path": path,
                "chains": {"text": "chain", "truncated": "is_truncatd", "tokens": "usage.tokns"},
            },
        )
    _, _, chains, _ = run(
        tmp_path, {"name": "local", "path": path, "chains": {"text": "chain", "tokens": "usage.tokens"}}
    )
    assert [chain.tokens for chain in chains] == [7, 0]
    rows = [{"problem": "q", "answer": "1", "gen": [], "n": []}, {"problem": "r", "answer": "1", "gen": None, "n": 0}]
    path = write(tmp_path / "n.jsonl", rows)
    assert run(tmp_path, {"name": "local", "path": path, "chains": {"text": "gen", "tokens": "n"}})[2] == []


def test_a_null_chain_counts(tmp_path):
    problems = write(tmp_path / "p.jsonl", [{"id": "p1", "problem": "q", "answer": "2"}])
    rows = [{"problem_id": "p1", "text": ["a", None, "b"]}, {"problem_id": "p1", "text": ["c"]}]
    chains = {"path": write(tmp_path / "chains.jsonl", rows), "text": "text", "problem": "problem_id"}
    _, _, found, _ = run(tmp_path, {"name": "local", "path": problems, "columns": {"id": "id"}, "chains": chains})
    assert [(chain.index, chain.text) for chain in found] == [(0, "a"), (2, "b"), (3, "c")]


def test_values_that_parquet_knows_and_json_does_not(tmp_path):
    rows = [{"problem": f"q{i}", "answer": "1", "at": at} for i, at in enumerate([None, datetime.datetime(2025, 1, 2)])]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "p.parquet")
    source = {"name": "local", "path": str(tmp_path / "p.parquet"), "columns": {"meta": ["at"]}}
    _, problems, _, removed = run(tmp_path, source)
    assert [(p.question, p.meta) for p in problems] == [("q0", {})]
    assert [(r["reason"], r["text"]) for r in removed] == [("a value is not plain JSON", "datetime in meta")]


def test_chains_of_a_file_of_their_own_are_set_aside_one_by_one(tmp_path):
    stored = [{"problem_id": "p-000001", "text": t} for t in ("good", 7, "nul\0", None)] + [{"text": "whose?"}, [1]]
    chains = {"path": write(tmp_path / "c.jsonl", stored), "text": "text"}
    source = {"name": "local", "path": write(tmp_path / "p.jsonl", [GOOD, GOOD]), "chains": chains}
    metrics, problems, found, removed = run(tmp_path, source)
    assert (len(problems), [c.text for c in found]) == (2, ["good"])
    assert [(r["id"], r["reason"]) for r in removed] == [
        ("p-chains-000002", "chains are not text"),
        ("p-chains-000003", "null byte"),
        ("p-chains-000005", "no column 'problem_id'"),
        ("p-chains-000006", "expected an object, got list"),
    ]
    assert sum(metrics["set_aside"].values()) == 4
    assert metrics["funnel"] == [["rows read", 2], ["problems", 2]]


def test_conversations_without_an_exchange(tmp_path):
    turns = [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "So."}]
    odd = [turns, turns[:1], [], None, "Why?", ["Why?"], [{"from": "human", "value": ["Why?"]}, turns[1]]]
    rows = [{"conversations": value} for value in odd]
    source = {
        "name": "local",
        "path": write(tmp_path / "s.jsonl", rows),
        "format": "sharegpt",
        "columns": {"gold": None},
    }
    metrics, problems, _, _ = run(tmp_path, source)
    assert [p.question for p in problems] == ["Why?"]
    assert metrics["set_aside"] == {
        "'conversations' is not a list of turns with 'from' and 'value'": 3,
        "no user turn followed by an assistant turn in 'conversations'": 2,
        "question is not text": 1,
    }


@pytest.mark.parametrize("line", ["[" * 100_000, '{"problem": "q", "answer": ' + "9" * 9000 + "}"])
def test_json_that_no_reader_can_hold_is_one_line(tmp_path, line):
    (tmp_path / "r.jsonl").write_text(json.dumps(GOOD) + "\n" + line + "\n")
    with pytest.raises(InputError, match=r"r\.jsonl:2: not JSON") as caught:
        run(tmp_path, {"name": "local", "path": str(tmp_path / "r.jsonl")})
    assert len(str(caught.value)) < 500


def test_the_limits_are_limits(tmp_path):
    rows = [{**GOOD, "problem": "q" * MAX_QUESTION, "answer": "1" * MAX_GOLD}]
    _, problems, _, _ = run(tmp_path, {"name": "local", "path": write(tmp_path / "r.jsonl", rows)})
    assert len(problems[0].question) == MAX_QUESTION and len(problems[0].gold) == MAX_GOLD
