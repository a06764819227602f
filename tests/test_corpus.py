"""Problems that stay on disk: what is read, what is copied, and that processes change nothing."""

import json
import time
from itertools import product

import pytest

from fathom import fanout
from fathom.curate import corpus
from fathom.curate.corpus import Corpus, map_chunks
from fathom.curate.decontaminate import HeldOut, Index, Rules, find_leaks
from fathom.curate.dedup import count_chains, find_repeats
from fathom.curate.ops.dedup import DedupConfig, run_dedup
from fathom.curate.sketch import BANDS, Ragged, Sketches, bands, sketch
from fathom.errors import InputError
from fathom.fanout import Processes
from fathom.ledger import Meter
from fathom.records import Problem, Rollout, Verdict, write_jsonl
from fathom.sources.generated import GeneratedConfig, GeneratedCorpus, generate

ROWS = [
    b'{"id": "a",  "question": "What is 1 + 1?", "gold": "2"}\n',
    b"\n",
    '{"id":"b","question":"Wie groß ist 2 · 3?","gold":"6"}\r\n'.encode(),
    b'{"gold":"1","question":"last line, no newline","id":"c"}',
]


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "problems.jsonl"
    path.write_bytes(b"".join(ROWS))
    return path


def test_rows_are_read_by_number(file):
    with Corpus(file) as problems:
        assert len(problems) == 3 and problems.ids == ["a", "b", "c"]
        assert [problems[row].gold for row in (2, 0, 1)] == ["1", "2", "6"]
        assert [p.id for p in problems] == problems.ids
        assert list(problems.chunks(2)) == [b"".join(ROWS[:3]), ROWS[3]]


def test_what_stays_is_copied_byte_for_byte(file, tmp_path):
    with Corpus(file) as problems:
        problems.copy_without({1}, tmp_path / "kept.jsonl")
    assert (tmp_path / "kept.jsonl").read_bytes() == ROWS[0] + ROWS[3] + b"\n"


@pytest.mark.parametrize(("lines", "said"), [
    ([ROWS[0], ROWS[0]], "problems.jsonl:2: problem id 'a' occurs a second time"),
    ([b"\n", b'{"id": "a"}\n'], "problems.jsonl:2: a Problem needs the key 'gold'"),
    ([b"\xff\n"], "problems.jsonl:1: not UTF-8"),
    ([b"{\n"], "problems.jsonl:1: not JSON"),
])  # fmt: skip
def test_a_wrong_row_is_named(tmp_path, lines, said):
    path = tmp_path / "problems.jsonl"
    path.write_bytes(b"".join(lines))
    with pytest.raises(InputError) as caught:
        Corpus(path)
    assert said in str(caught.value)


def test_no_such_file(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        Corpus(tmp_path / "problems.jsonl")


def ids(problems: list[Problem]) -> list[str]:
    return [p.id for p in problems]


def test_processes_change_nothing(tmp_path, monkeypatch):
    """The same repeats and the same leaks from memory, from a file, and from a file in two processes."""
    monkeypatch.setattr(corpus, "CHUNK", 60)
    evaluation = GeneratedCorpus(split="eval", count=50)
    rows, _ = generate(GeneratedConfig(count=300, duplicates=40, leaks=20, leak_from=evaluation))
    held_out = [HeldOut("eval", generate(GeneratedConfig(**evaluation.model_dump()))[0], Rules())]
    write_jsonl(tmp_path / "problems.jsonl", rows)
    chains = {rows[5].id: (2, 2), rows[7].id: (0, 3)}
    told: list[tuple[int, int]] = []
    with Corpus(tmp_path / "problems.jsonl") as problems:
        wanted = find_repeats(rows, chains, 0.5), find_leaks(rows, held_out)
        assert len(wanted[0]) > 10 and len(wanted[1]) > 20
        assert wanted == (find_repeats(problems, chains, 0.5), find_leaks(problems, held_out))
        monkeypatch.setattr(fanout, "WORTH_PROCESSES", 1)
        progress = lambda done, total: told.append((done, total))  # noqa: E731
        assert wanted[0] == find_repeats(problems, chains, 0.5, Processes(2), progress)
        assert wanted[1] == find_leaks(problems, held_out, Processes(2))
        assert [i for part in map_chunks(ids, problems, Processes(2)) for i in part] == ids(rows)
    assert told == [(done, 360) for done in (60, 120, 180, 240, 300, 360)]


# ------------------------------------------------------------------------------ sketches


def test_a_sketch_holds_what_is_compared():
    rows = [
        Problem("a", "Add 5 and 12 apples to 5 pears", "22"),
        Problem("b", "?", None),
        Problem("c", "So $x + 5$", "x"),
    ]
    joined = Sketches.joined([sketch(rows[:1]), sketch(rows[1:])])
    whole = sketch(rows)
    for i in range(3):
        assert joined.content(i) == whole.content(i)
    first = whole.content(0)
    assert (len(first.words), len(first.symbols), len(first.numbers)) == (3, 0, 3) and first.gold
    assert whole.content(1) == (frozenset(), frozenset(), (), None)
    assert len(whole.content(2).symbols) == 2
    assert whole.block[0] == sketch([Problem("d", "12 and 5 and 5", "$22$")]).block[0] != whole.block[1]


def test_bands_meet_as_often_as_similarity_says():
    """Jaccard similarity 0.5 shares a band nearly always, 0.05 hardly ever."""
    vocabulary = ["".join(letters) for letters in product("bcdfgklmnprstvz", "aeiou", "bdgklmnprst", "aeiou")]

    def met(shared: int) -> float:
        a = [sketch([Problem("a", " ".join(vocabulary[40 * i : 40 * i + 30]), "1")]) for i in range(60)]
        b = [
            sketch([Problem("b", " ".join(vocabulary[40 * i + 30 - shared : 40 * i + 60 - shared]), "1")])
            for i in range(60)
        ]
        assert a[0].bands.shape == (1, BANDS)
        return sum(bool(set(x.bands[0].tolist()) & set(y.bands[0].tolist())) for x, y in zip(a, b, strict=True)) / 60

    assert met(20) > 0.95
    assert met(3) < 0.3


def test_least_is_a_minhash():
    lists = Ragged.of([["1", "2", "3"], [], ["3", "2", "1"], ["4"]])
    for seed in range(5):
        least = lists.least(seed)
        assert least[0] == least[2] != least[3] and least[1] == 0
    assert len({int(lists.least(seed)[0]) for seed in range(20)}) == 20


@pytest.mark.parametrize("shape", ["word ", "{", "\\frac{", "\\text{", "^ ", " Ab'", "1,000", "a\0"])
def test_a_megabyte_in_one_problem_takes_seconds(shape):
    """Patterns with two ways through the same text would take hours."""
    before = time.process_time()
    megabyte = Problem("a", "\\frac^" + " " * 300_000 + shape * (700_000 // len(shape)), "1")
    assert sketch([megabyte]).bands.shape == (1, BANDS)
    Index([HeldOut("b", [Problem("b", "Is 2 + 2 even?", "4")], Rules())]).scan([megabyte])
    assert time.process_time() - before < 10


def test_bands_of_nothing():
    assert bands([]).shape == (0, BANDS)


# ------------------------------------------------------------------------------ which row stays


def chain(key: str, correct: bool | None) -> Rollout:
    return Rollout(key, 0, "x", 1, "stop", "m", verdict=None if correct is None else Verdict("1", correct, "math/1"))


def test_the_row_with_the_most_correct_chains_stays(tmp_path):
    said = [("few", True), ("few", True), *[("many", False)] * 5, ("many", True), ("none", None), ("none", None)]
    assert count_chains(chain(*c) for c in said) == {"few": (2, 2), "many": (1, 6), "none": (0, 2)}
    rows = [Problem(key, "What is 2 + 3?", "5") for key in ("first", "none", "many", "few")]
    write_jsonl(tmp_path / "problems.jsonl", rows)
    write_jsonl(tmp_path / "rollouts.jsonl", [chain(*c) for c in said])
    kept = {}
    for name, inputs in (("with", {"chains": tmp_path}), ("without", {"chains": tmp_path / "absent"})):
        out = tmp_path / name
        out.mkdir()
        config = DedupConfig(problems="p", chains="c")
        run_dedup({"problems": tmp_path, **inputs}, config, out, Meter.null(tmp_path))
        kept[name] = json.loads((out / "problems.jsonl").read_text())["id"]
        assert all(json.loads(row)["other"] == kept[name] for row in (out / "removed.jsonl").read_text().splitlines())
    assert kept == {"with": "few", "without": "first"}
