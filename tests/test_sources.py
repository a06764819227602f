"""Sources: local files in every format, hub layouts on disk, generated; duplicate ids; wrong input in one line."""

import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hub_snapshots import NUMINA, OPENR1, in_data

from fathom.errors import InputError
from fathom.ledger import Meter
from fathom.records import Problem, Rollout, read_jsonl
from fathom.sources.stage import SourcesConfig, run_sources

ROWS = [{"problem": f"What is {i} + 1?", "answer": str(i + 1), "uid": f"u{i}", "topic": "sums"} for i in range(4)]


def write(path, rows):
    text = "".join(json.dumps(r) + "\n" for r in rows)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return str(path)


def run(tmp_path, *sources):
    out = tmp_path / "out"
    out.mkdir(exist_ok=True)
    config = SourcesConfig.model_validate({"sources": list(sources)})
    metrics = run_sources({}, config, out, Meter.null(tmp_path / "scratch"))
    problems = list(read_jsonl(out / "problems.jsonl", Problem))
    removed = [json.loads(line) for line in (out / "removed.jsonl").read_text().splitlines()]
    return metrics, problems, list(read_jsonl(out / "rollouts.jsonl", Rollout)), removed


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz", "rows.json", "rows.parquet"])
def test_every_local_format_gives_the_same_problems(tmp_path, name):
    path = tmp_path / name
    if name.endswith(".parquet"):
        pq.write_table(pa.Table.from_pylist(ROWS), path)
    elif name.endswith(".json"):
        path.write_text(json.dumps(ROWS))
    else:
        write(path, ROWS)
    source = {"name": "local", "path": str(path), "label": "sums", "licence": "MIT", "columns": {"meta": ["topic"]}}
    metrics, problems, chains, removed = run(tmp_path, source)
    assert problems[3] == Problem(
        "sums-000004", "What is 3 + 1?", "4", source="sums", licence="MIT", meta={"topic": "sums"}
    )
    assert (metrics["by_source"], chains, removed) == ({"sums": 4}, [], [])


def test_a_directory_is_read_file_by_file_in_name_order(tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    write(data / "b.jsonl", ROWS[2:])
    pq.write_table(pa.Table.from_pylist(ROWS[:2]), data / "a.parquet")
    _, problems, _, _ = run(tmp_path, {"name": "local", "path": str(data), "columns": {"id": "uid"}})
    assert [p.id for p in problems] == ["u0", "u1", "u2", "u3"]


def test_chains_in_the_row_and_in_a_file_of_their_own(tmp_path):
    rows = [{**ROWS[0], "texts": ["a", "b"], "done": [True, False], "n": [5, 7]}]
    inside = {"text": "texts", "complete": "done", "tokens": "n", "written_by": "teacher"}
    _, _, chains, _ = run(
        tmp_path,
        {"name": "local", "path": write(tmp_path / "a.jsonl", rows), "columns": {"id": "uid"}, "chains": inside},
    )
    assert chains == [
        Rollout("u0", 0, "a", 5, "stop", "teacher"),
        Rollout("u0", 1, "b", 7, "length", "teacher"),
    ]
    stored = [
        {"of": "u1", "out": "x", "who": "m1", "ok": True},
        {"of": "zz", "out": "stranger", "who": "m1"},
        {"of": "u0", "out": "y", "who": "m2", "cut": True},
        {"of": "u1", "out": "z", "who": "m2"},
    ]
    outside = {"path": write(tmp_path / "c.jsonl", stored), "problem": "of", "text": "out", "model": "who",
               "truncated": "cut", "meta": ["ok"]}  # fmt: skip
    source = {"name": "local", "path": write(tmp_path / "p.jsonl", ROWS), "columns": {"id": "uid"}, "chains": outside}
    _, _, chains, _ = run(tmp_path, source)
    assert chains == [
        Rollout("u1", 0, "x", 0, "stop", "m1", meta={"ok": True}),
        Rollout("u0", 0, "y", 0, "length", "m2"),
        Rollout("u1", 1, "z", 0, "stop", "m2"),
    ]


@pytest.mark.parametrize(
    ("form", "row"),
    [
        ("messages", {"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "Why?"},
                                   {"role": "assistant", "content": "So.", "reasoning_content": "Hm."}]}),
        ("sharegpt", {"conversations": [{"from": "human", "value": "Why?"},
                                        {"from": "gpt", "value": "<think>\nHm.\n</think>\n\nSo."}]}),
    ],
)  # fmt: skip
def test_conversations_give_their_first_exchange(tmp_path, form, row):
    path = write(tmp_path / "c.jsonl", [row])
    source = {"name": "local", "path": path, "format": form, "columns": {"gold": None}}
    _, problems, chains, _ = run(tmp_path, source)
    assert [p.question for p in problems] == ["Why?"]
    assert [c.text for c in chains] == ["<think>\nHm.\n</think>\n\nSo."]


def test_sky_t1_rows_have_their_sections_turned_into_think_tags(tmp_path):
    text = "<|begin_of_thought|>\nHm.\n<|end_of_thought|>\n\n<|begin_of_solution|>\nSo.\n<|end_of_solution|>"
    row = {
        "system": "Think.",
        "conversations": [{"from": "user", "value": "Why?"}, {"from": "assistant", "value": text}],
    }
    source = {"name": "local", "path": write(tmp_path / "c.jsonl", [row]), "format": "sharegpt", "columns": {"gold": None},
              "chains": {"text": "chain", "sections": True, "written_by": "QwQ"}}  # fmt: skip
    _, _, (chain,), _ = run(tmp_path, source)
    assert (chain.text, chain.model) == ("<think>\nHm.\n</think>\n\n\nSo.", "QwQ")


@pytest.mark.parametrize(
    ("rule", "texts", "golds"),
    [
        ("boxed", [r"\boxed{1}, then \boxed{\frac{1}{2}}", "no box", r"\boxed{"], [r"\frac{1}{2}"]),
        ("####", ["1 #### 2\n#### 1,003 ", "1003", "#### "], ["1,003"]),
    ],
)
def test_a_gold_inside_a_solution(tmp_path, rule, texts, golds):
    path = write(tmp_path / "s.jsonl", [{"problem": "q", "answer": text} for text in texts])
    metrics, problems, _, _ = run(tmp_path, {"name": "local", "path": path, "answer_in": rule})
    assert [p.gold for p in problems] == golds
    assert metrics["set_aside"] == {"no usable gold": 2}


def test_where_limit_and_unusable_golds(tmp_path):
    rows = [{"problem": f"q{i}", "answer": a, "kind": k} for i, (a, k) in enumerate(
        [("1", "a"), ("", "a"), ("2", "b"), ("proof", "a"), ("x+1", "a"), ("$3.5$", "a"), ("4", "a")]
    )]  # fmt: skip
    source = {"name": "local", "path": write(tmp_path / "r.jsonl", rows), "where": {"kind": ["a"]},
              "reject_golds": ["proof"], "numeric_gold": True}  # fmt: skip
    metrics, problems, _, removed = run(tmp_path, source)
    assert [p.gold for p in problems] == ["1", "$3.5$", "4"]
    assert [(r["id"], r["reason"], r["text"]) for r in removed] == [
        ("r-000002", "no usable gold", "''"),
        ("r-000004", "no usable gold", "'proof'"),
        ("r-000005", "gold is not a number", "'x+1'"),
    ]
    assert metrics["set_aside"] == {"no usable gold": 2, "gold is not a number": 1}
    assert metrics["funnel"] == [
        ["rows read", 7],
        ["wanted by the sources' filters", 6],
        ["left after: no usable gold", 4],
        ["left after: gold is not a number", 3],
        ["problems", 3],
    ]
    _, problems, _, _ = run(tmp_path, {**source, "limit": 2})
    assert [p.gold for p in problems] == ["1", "$3.5$"]


def test_choice_and_code_rows(tmp_path):
    choice = [{"problem": "Which?", "answer": "B", "choices": {"A": "cat", "B": "dog"}}]
    code = [{"problem": "Double it.", "cases": json.dumps([{"kind": "stdin", "input": "2", "expected": "4"}])}]
    _, problems, _, _ = run(
        tmp_path,
        {"name": "local", "path": write(tmp_path / "ch.jsonl", choice), "kind": "choice", "columns": {"options": "choices"}},
        {"name": "local", "path": write(tmp_path / "co.jsonl", code), "kind": "code",
         "columns": {"gold": None, "tests": "cases"}},
    )  # fmt: skip
    assert (problems[0].kind, problems[0].options, problems[0].gold) == ("choice", ["cat", "dog"], "B")
    assert problems[1].tests == [{"kind": "stdin", "input": "2", "expected": "4"}]


# ------------------------------------------------------------------------------ the hub, from a local snapshot


def test_openr1_rows_become_problems_with_teacher_chains(tmp_path):
    path = in_data(tmp_path / "openr1", [OPENR1], [{**OPENR1, "uuid": "f1e3", "answer": "proof"}])
    metrics, (problem,), chains, removed = run(tmp_path, {"name": "openr1-math-220k", "path": path})
    assert (problem.id, problem.gold, problem.source, problem.licence) == ("f1e2", "2", "olympiads", "Apache-2.0")
    assert [(c.index, c.finish, c.model, c.meta["correctness_math_verify"]) for c in chains] == [
        (0, "stop", "deepseek-ai/DeepSeek-R1", True),
        (1, "length", "deepseek-ai/DeepSeek-R1", False),
    ]
    assert [(r["reason"], r["text"]) for r in removed] == [("no usable gold", "'proof'")]
    assert metrics["by_source"] == {"openr1-math-220k": 1}


def test_numinamath_with_the_published_filters(tmp_path):
    rows = [NUMINA, {**NUMINA, "source": "cn_k12"}, {**NUMINA, "answer": "x=1"}, {**NUMINA, "answer": "0.5"}]
    source = {"name": "numinamath-1.5", "path": in_data(tmp_path / "numina", rows), "numeric_gold": True,
              "where": {"source": ["olympiads", "aops_forum"], "question_type": ["math-word-problem"]}}  # fmt: skip
    _, problems, chains, _ = run(tmp_path, source)
    assert [(p.id, p.gold) for p in problems] == [("numinamath-1.5-000001", "3"), ("numinamath-1.5-000004", "0.5")]
    assert chains == []


def test_a_hub_snapshot_that_is_none(tmp_path):
    with pytest.raises(InputError, match="not a directory"):
        run(tmp_path, {"name": "numinamath-1.5", "path": str(tmp_path / "absent")})
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="empty"):
        run(tmp_path, {"name": "numinamath-1.5", "path": str(tmp_path / "empty")})


# ------------------------------------------------------------------------------ the stage


def test_generated_and_local_sources_together(tmp_path):
    generated = {"name": "generated", "count": 5, "chains": 2}
    metrics, problems, chains, _ = run(
        tmp_path, generated, {"name": "local", "path": write(tmp_path / "r.jsonl", ROWS)}
    )
    assert metrics["by_source"] == {"generated-train": 5, "r": 4}
    assert len(problems) == 9 and len(chains) == 10
    assert metrics["chains"] == 10


def test_a_duplicate_id_names_both_places(tmp_path):
    first, second = write(tmp_path / "a.jsonl", ROWS[:2]), write(tmp_path / "b.jsonl", [ROWS[3], ROWS[1]])
    columns = {"columns": {"id": "uid"}}
    with pytest.raises(InputError, match=r"b\.jsonl:2: id 'u1' occurs twice, first at .*a\.jsonl:2"):
        run(tmp_path, {"name": "local", "path": first, **columns}, {"name": "local", "path": second, **columns})


@pytest.mark.parametrize(
    ("content", "source", "message"),
    [
        (b'{"problem": "q"}\n', {}, r"r\.jsonl:1: no column 'answer' \(there are: problem\)"),
        (b'{"problem": "q", "answer": "1"}\n{"problem": "\xff"}\n', {}, r"r\.jsonl:2: not UTF-8"),
        (b'{"problem": "q", "answer": \n', {}, r"r\.jsonl:1: not JSON"),
        (b'[1]\n', {}, r"r\.jsonl:1: expected an object, got list"),
        (b'{"problem": 3, "answer": "1"}\n', {}, r"r\.jsonl:1: question is not text \(int\)"),
        (b'{"problem": "q", "answer": "1", "d": "hard"}\n', {"columns": {"difficulty": "d"}}, "difficulty is not a number \\('hard'\\)"),
        (b'{"problem": "q", "answer": ""}\n', {}, r"no problem left of 1 rows read \(1 wanted\) from r"),
        (b"", {}, "no problem left of 0 rows"),
        (b'{"problem": "q", "answer": "1", "t": ["a"], "n": [1, 2]}\n', {"chains": {"text": "t", "tokens": "n"}},
         "2 values in 'n' for 1 chains in 't'"),
        (b'{"problem": "q", "answer": "1", "messages": []}\n', {"format": "messages"}, "no user turn followed"),
    ],
)  # fmt: skip
def test_wrong_input_is_one_line_that_names_the_place(tmp_path, content, source, message):
    (tmp_path / "r.jsonl").write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        run(tmp_path, {"name": "local", "path": str(tmp_path / "r.jsonl"), **source})
    assert "\n" not in str(caught.value)


def test_missing_and_broken_files(tmp_path):
    for name in ("absent.jsonl", "absent.json", "absent.parquet"):
        with pytest.raises(InputError, match=f"{name}: no such file"):
            run(tmp_path, {"name": "local", "path": str(tmp_path / name)})
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(InputError, match="not a Parquet file"):
        run(tmp_path, {"name": "local", "path": str(tmp_path / "broken.parquet")})
