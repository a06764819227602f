"""The certificate of a decontamination: its counts, hashes and texts, and what it withholds."""

import hashlib
import json

import pytest

from fathom.curate import certificate
from fathom.curate.ops.decontaminate import DecontaminateConfig, run_decontaminate
from fathom.ledger import Meter
from fathom.records import Problem, write_jsonl

LONG = (
    "A gardener named Rosa plants {} rows of tulips on Monday and {} rows of roses on Tuesday, and every row takes "
    "her half an hour. How many minutes does she work on both days together?"
)
PUBLIC = [("1", LONG.format(4, 7), "330"), ("2", "What is the greatest common divisor of 84 and 126?", "42")]
HIDDEN = [("1", LONG.format(9, 2), "330"), ("2", "A question that must not be seen in plain text: 3 or 4?", "3")]
TRAINING = [
    Problem("leak", PUBLIC[1][1].upper(), "42", source="web"),
    Problem("twin", LONG.format(3, 8).replace("Rosa", "Ida").replace(" her ", " his ").replace(" she ", " he "), "330"),
    Problem("secret", HIDDEN[1][1], "3"),
    Problem("clean", "How many primes are there below 20?", "8"),
]


@pytest.fixture
def folder(tmp_path):
    for name, rows in (("public", PUBLIC), ("gpqa-like", HIDDEN)):
        lines = [json.dumps({"id": key, "problem": question, "answer": gold}) + "\n" for key, question, gold in rows]
        (tmp_path / f"{name}.jsonl").write_text("".join(lines))
    write_jsonl(tmp_path / "problems.jsonl", TRAINING)
    return tmp_path


def run(folder, name="out", **rules):
    choices = [{"name": n, "path": str(folder / f"{n}.jsonl")} for n in ("public", "gpqa-like")]
    config = DecontaminateConfig.model_validate({"problems": "p", "benchmarks": choices, "rules": rules})
    out = folder / name
    out.mkdir()
    metrics = run_decontaminate({"problems": folder}, config, out, Meter.null(folder))
    return out, metrics, json.loads((out / "certificate.json").read_text())


def test_counts_rows_and_hashes(folder):
    out, metrics, told = run(folder, similarity=0.4)
    assert told["problems"] == {"read": 4, "removed": 3, "kept": 1} and metrics["problems"] == 1
    assert told["kept_sha256"] == hashlib.sha256((out / "problems.jsonl").read_bytes()).hexdigest()
    public, hidden = told["benchmarks"]
    assert (public["name"], public["problems"], public["removed"]) == ("public", 2, 2)
    assert public["rules"]["similarity"] == 0.4 and public["rules"]["long_grams"] is True
    assert public["by_rule"] == {"exact": 1, "twin": 1} and hidden["by_rule"] == {"exact": 1, "twin": 1}
    leak, twin = public["rows"]
    assert leak == {
        "id": "leak", "source": "web", "rule": "exact", "score": 1.0, "other": "public/2",
        "text": TRAINING[0].question, "other_text": PUBLIC[1][1],
    }  # fmt: skip
    assert (twin["rule"], twin["other"], twin["other_text"]) == ("twin", "public/1", PUBLIC[0][1])
    assert [row["id"] for row in hidden["rows"]] == ["twin", "secret"], (
        "a row that two benchmarks know stands under both"
    )
    assert set(told["constants"]) == set(certificate.CONSTANTS)


def test_texts_of_a_gated_benchmark_are_withheld(folder):
    out, _, told = run(folder)
    assert told["benchmarks"][1]["texts"] == "withheld"
    assert all(row["text"] is None and row["other_text"] is None for row in told["benchmarks"][1]["rows"])
    for name in ("certificate.json", "certificate.md"):
        written = (out / name).read_text()
        assert "must not be seen" not in written and LONG.format(9, 2) not in written
        assert PUBLIC[1][1] in written and "secret" in written


def test_the_hash_of_a_benchmark_is_of_its_rows(folder):
    first = [b["sha256"] for b in run(folder)[2]["benchmarks"]]
    again = [b["sha256"] for b in run(folder, "again", coverage=0.9)[2]["benchmarks"]]
    assert again == first
    path = folder / "public.jsonl"
    path.write_text(path.read_text().replace("330", "331"))
    changed = [b["sha256"] for b in run(folder, "changed")[2]["benchmarks"]]
    assert changed[0] != first[0] and changed[1] == first[1]


def test_the_same_run_writes_the_same_bytes(folder):
    names = ("certificate.json", "certificate.md", "removed.jsonl", "problems.jsonl")
    first, second = (run(folder, name)[0] for name in ("one", "two"))
    assert [(first / n).read_bytes() for n in names] == [(second / n).read_bytes() for n in names]


def test_long_lists_are_cut_for_the_reader_only(folder, monkeypatch):
    monkeypatch.setattr(certificate, "SHOWN", 1)
    out, _, told = run(folder)
    written = (out / "certificate.md").read_text()
    assert len(told["benchmarks"][0]["rows"]) == 2 and "1 more rows are in certificate.json" in written
    assert "**leak**" in written and PUBLIC[0][1] not in written
