"""Tests of code problems: their formats, and how outputs and values are compared with what is expected."""

from __future__ import annotations

import json
import time

import pytest

from fathom.errors import InputError
from fathom.graders.code_tests import output_matches, read_tests, value_matches
from fathom.graders.sandbox.inside.values import Opaque, decode, encode


@pytest.mark.parametrize(
    "expected, got, right",
    [
        ("3\n", "3", True),
        ("3", " 3 \n\n", True),
        ("1\n2\n", "1\r\n2\r\n", True),
        ("1 2", "1  2", True),
        ("1 2", "1\n2", False),
        ("1\n\n2", "1\n2", False),
        ("3", "3.0", True),
        ("3", "+3", True),
        ("0", "-0", True),
        ("3", "3.0000001", False),  # a whole number is met exactly
        ("1000000007", "1000000008", False),
        ("100000000000000000000001", "100000000000000000000000", False),
        ("0.75", "0.7500000176", True),
        ("0.75", "0.750002", False),
        ("1234567.0", "1234567.9", True),  # relative
        ("1e-9", "0", True),  # absolute
        ("3.0", "3", True),
        ("YES", "Yes", False),
        ("3", "３", False),  # full-width
        ("1000", "1_000", False),
        ("0.5", "NaN", False),
        ("NaN", "NaN", True),  # the same text
        ("1", "sNaN NaN Infinity 1e999999999", False),
        ("1e5", "1e999999999", False),
        ("1", "0x1", False),
        ("", "", True),
        ("1", "", False),
        ("abc", "abc\0", False),
        ("0." + "1" * 5000, "0." + "1" * 4999, True),
        ("9" * 100_000, "9" * 99_999 + "8", False),
    ],
)
def test_printed_output_is_compared_by_line(expected, got, right):
    assert (output_matches(expected, got) is None) == right


@pytest.mark.parametrize(
    "checker, expected, got, right",
    [
        ("tokens", "1 2\n3", "1\n2 3", True),
        ("tokens", "1 2\n3", "1\n2 4", False),
        ("any_order", "a\nb\nb", "b\na\nb", True),
        ("any_order", "a\nb\nb", "b\na\na", False),
        ("ignore_case", "YES", "yes", True),
        ("ignore_case", "YES", "no", False),
    ],
)
def test_a_checker_loosens_only_what_it_names(checker, expected, got, right):
    assert (output_matches(expected, got, checker) is None) == right


def test_only_a_list_of_one_may_be_a_wrapping():
    read = read_tests({"fn_name": "f", "inputs": [[1], [2]], "outputs": [[5], [0, 1]]}, None, "t")
    assert [test.accepted for test in read] == [([5], 5), ([0, 1],)]


@pytest.mark.parametrize("any_of", ["42", 5, [], None])
def test_accepted_answers_are_a_list(any_of):
    with pytest.raises(InputError, match="any_of: expected a list of at least one answer"):
        read_tests([{"kind": "stdin", "input": "", "any_of": any_of}], None, "t")


@pytest.mark.parametrize(
    "expected, got, right",
    [
        (3, 3, True),
        (3, 3.0, True),
        (1, True, True),
        (3, "3", False),
        (0.75, 0.7500000176, True),
        (10**400, 1.5, False),
        (10**400, 10**400 + 1, False),
        ([1, 2], (1, 2), True),
        ([[1.0], ["a"]], [(1.0000001,), ["a"]], True),
        ([1, 2], [1, 2, 3], False),
        ([1], {1}, False),
        ({"a": 1.0}, {"a": 1}, True),
        ({"a": 1}, {"b": 1}, False),
        (None, None, True),
        (None, 0, False),
        (float("nan"), float("nan"), False),
        (True, Opaque("Match", True), False),
        ("a", "a ", False),
    ],
)
def test_returned_values_are_compared_as_plain_values(expected, got, right):
    assert value_matches(expected, encode(got)) == right


@pytest.mark.parametrize(
    "got",
    [
        {"t": "set", "v": [[i * ((1 << 61) - 1), 1] for i in range(30_000)]},  # one hash for all
        {"t": "dict", "v": [[i * ((1 << 61) - 1), 1] for i in range(30_000)]},
        {"t": "dict", "v": [1]},
        {"t": "int", "v": "zz"},
        {"t": "nonsense", "v": []},
        {"t": "set"},
        {"a": 1},
        json.loads("[" * 900 + "]" * 900),
    ],
)
def test_a_hostile_value_is_wrong_at_once(got):
    start = time.perf_counter()
    for expected in (3, [1], {1: 2}, {1, 2}):
        assert not value_matches(expected, got)
        assert not value_matches(expected, got, "any_order")
    assert time.perf_counter() - start < 30


def test_sets_dictionaries_and_orders():
    assert value_matches({1: 0.5, "a": (1,)}, encode({"a": [1], 1: 0.5000001}))
    assert value_matches({1, 2}, encode(frozenset({2, 1})))
    assert not value_matches({1: 2}, encode({1: 3}))
    assert value_matches([[3, 4], [1, 2]], encode({(1, 2), (3, 4)}), "any_order")
    assert value_matches([[3, 4], [1, 2]], encode(([1, 2], (3, 4))), "any_order")
    assert not value_matches([[3, 4], [1, 2]], encode(([1, 2], (3, 4))))
    assert not value_matches([1, 1, 2], encode([1, 2, 2]), "any_order")
    assert value_matches("Yes", "yES", "ignore_case")


@pytest.mark.parametrize(
    "value",
    [None, True, 0, -5, 1.5, "é\0", [1, [2]], (1, ("a",)), {1, 2}, frozenset("ab"), {1: {"x": (2,)}, (1, 2): 3},
     b"\xff", 2j, 1 << 99_999, -(1 << 99_999), [], {}],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_plain_values_survive_the_pipe_with_their_types(value):
    back = decode(json.loads(json.dumps(encode(value))))
    assert back == value and type(back) is type(value)


def test_values_that_lie_are_read_through_their_base_class():
    class Liar(list):
        def __iter__(self):
            return iter([42])

        def __eq__(self, other):
            return True

    assert encode(Liar([1])) == [1]
    assert decode(encode(object())) == Opaque("object", True)
    with pytest.raises(TypeError, match="nested"):
        cycle = []
        cycle.append(cycle)
        encode(cycle)


@pytest.mark.parametrize(
    "raw, kinds",
    [
        ([{"kind": "stdin", "input": "1", "expected": "2"}], ["stdin"]),
        ({"inputs": ["1\n", "2\n"], "outputs": ["1\n", "2\n"]}, ["stdin", "stdin"]),
        ('{"inputs": [["1", "2"]], "outputs": [["3", "4"]]}', ["stdin"]),
        ({"fn_name": "f", "inputs": [[1, 2]], "outputs": [[3]]}, ["functional"]),
        ([{"testtype": "stdin", "input": "1", "output": "2"}], ["stdin"]),
        ([{"testtype": "functional", "input": "[1]\n2", "output": "3"}], ["functional"]),
        ("assert f(1) == 2", ["asserts"]),
    ],
)
def test_every_format_of_tests_is_read(raw, kinds):
    assert [test.kind for test in read_tests(raw)] == kinds


def test_the_formats_mean_what_their_benchmarks_say():
    (apps,) = read_tests({"fn_name": "f", "inputs": [[1, 2]], "outputs": [[3]]})
    assert (apps.args, apps.accepted, apps.entry) == ((1, 2), ([3], 3), "f")
    (lines,) = read_tests({"inputs": [["1", "2"]], "outputs": [["3", "4"]]})
    assert (lines.input, lines.accepted) == ("1\n2", ("3\n4",))
    (lcb,) = read_tests([{"testtype": "functional", "input": "[1]\n2", "output": "3"}], "g")
    assert (lcb.args, lcb.accepted, lcb.entry) == (([1], 2), (3,), "g")
    (asserts,) = read_tests("import math\nfor x in [1]:\n    assert math.isclose(area(x), len(twice(x)))")
    assert asserts.names == ("area", "twice")


@pytest.mark.parametrize(
    "raw, message",
    [
        ([], "tests: expected at least one"),
        ({"inputs": [], "outputs": []}, "tests: expected at least one"),
        ("[1", "tests: not JSON"),
        ([3], r"tests\[0\]: expected an object"),
        ([{"kind": "sql"}], r"tests\[0\]: kind"),
        ([{"kind": "stdin", "input": "1"}], r"tests\[0\]: .*'expected'"),
        ([{"kind": "stdin", "input": 1, "expected": "1"}], r"tests\[0\]: input: expected text, got int"),
        ([{"kind": "functional", "args": 1, "expected": "1"}], r"tests\[0\]: args"),
        ([{"kind": "stdin", "input": "", "expected": "", "checker": "fuzzy"}], r"tests\[0\]: checker"),
        ([{"kind": "stdin", "input": "", "expected": "", "seconds": -1}], r"tests\[0\]: seconds"),
        ([{"testtype": "functional", "input": "[", "output": "1"}], r"tests\[0\]: input and output"),
        ({"inputs": ["1"], "outputs": []}, r"tests\[0\]: inputs and outputs"),
        ("assert f(", r"tests\[0\]: code: not Python"),
    ],
)
def test_wrong_tests_are_named(raw, message):
    with pytest.raises(InputError, match=message):
        read_tests(raw)
