"""Time and memory of deduplication and decontamination as the corpus grows; run through `curation.py --scale`.

The corpus is synthetic: sentences of the public problems, drawn at random and with numbers of their own,
joined to 100 words or more. One row in 50 repeats an earlier one, in the same or in other words; one in
1,000 is a benchmark problem, as it is or with other numbers. Each size runs in a process of its own.
"""

from __future__ import annotations

import json
import os
import re
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import plants

from fathom.records import Problem, to_json

WORDS = 100
REPEATS, LEAKS = 0.02, 0.001
GIB = 2**30


def corpus(count: int, sentences: list[list[str]], held_out: list[Problem], seed: int) -> Iterator[Problem]:
    """Problems whose id tells what was planted: "repeat-<row it repeats>" and "leak-<number>"."""
    random = Random(seed)
    memory: list[tuple[int, str, str]] = []
    for row in range(count):
        drawn = random.random()
        if drawn < REPEATS and memory:
            of, question, gold = random.choice(memory)
            again = question if random.random() < 0.3 else plants.reworded(question, random)
            yield Problem(f"repeat-{of}-{row}", again, gold)
        elif drawn < REPEATS + LEAKS:
            leaked = random.choice(held_out)
            text = leaked.question if random.random() < 0.5 else plants.renumbered(leaked.question, random)
            yield Problem(f"leak-{row}", text or leaked.question, leaked.gold)
        else:
            question, gold = compose(sentences, random), str(random.randint(1, 500))
            if random.random() < 0.05:
                memory.append((row, question, gold))
                del memory[:-1000]
            yield Problem(f"row-{row}", question, gold)


def compose(sentences: list[list[str]], random: Random) -> str:
    """Whole sentences until there are WORDS words. A sentence is its parts between numbers."""
    text: list[str] = []
    words = 0
    while words < WORDS:
        parts = random.choice(sentences)
        sentence = parts[0] + "".join(f"{random.randint(2, 300)}{part}" for part in parts[1:])
        text.append(sentence)
        words += sentence.count(" ") + 1
    return " ".join(text)


def sentence_parts(questions: list[str]) -> list[list[str]]:
    """Every sentence of the questions, split at its numbers."""
    found = {s.strip() for q in questions for s in plants.SENTENCE_END.split(q) if 4 <= s.count(" ") <= 40}
    return [re.split(r"\d+(?:[.,]\d+)*", sentence) for sentence in sorted(found)]


def measure(count: int, questions: list[str], held_out: list[Problem], workers: int) -> dict[str, Any]:
    """Write a corpus of `count` problems, run both ops over it in another process, and say what that took."""
    with tempfile.TemporaryDirectory(prefix="curation-") as folder:
        root = Path(folder)
        (root / "problems").mkdir()
        sentences = sentence_parts(questions)
        words = 0
        with open(root / "problems" / "problems.jsonl", "w", encoding="utf-8") as stream:
            for problem in corpus(count, sentences, held_out, seed=count):
                words += problem.question.count(" ") + 1
                stream.write(to_json(problem) + "\n")
        with open(root / "bench.jsonl", "w", encoding="utf-8") as stream:
            stream.writelines(
                json.dumps({"id": p.id, "problem": p.question, "answer": p.gold}) + "\n" for p in held_out
            )
        command = [sys.executable, __file__, folder, str(workers)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            watch = PeakMemory(process.pid)
            told, _ = process.communicate()
            peak = watch.stop()
        if process.returncode:
            raise SystemExit(f"scale: {count} problems failed")
        return {
            "problems": count,
            "words_mean": round(words / count, 1),
            "megabytes": round((root / "problems" / "problems.jsonl").stat().st_size / 1e6),
            "workers": workers,
            **json.loads(told.splitlines()[-1]),
            "peak_gib": round(peak / GIB, 3),
        }


class PeakMemory:
    """Greatest sum of the resident memory of a process and its children, sampled; shared pages count for each."""

    def __init__(self, pid: int):
        self.pid, self.peak = pid, 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def stop(self) -> int:
        self._done.set()
        self._thread.join()
        return self.peak

    def _watch(self) -> None:
        while not self._done.wait(0.2):
            self.peak = max(self.peak, sum(map(self._resident, [self.pid, *self._children(self.pid)])))

    def _children(self, pid: int) -> list[int]:
        found = []
        try:
            for task in Path(f"/proc/{pid}/task").iterdir():
                found += [int(child) for child in (task / "children").read_text().split()]
        except OSError:
            return found
        return found + [grandchild for child in found for grandchild in self._children(child)]

    @staticmethod
    def _resident(pid: int) -> int:
        try:
            return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        except (OSError, IndexError):
            return 0


def run_both(root: Path, workers: int) -> dict[str, Any]:
    """In a process of its own: dedup, then decontaminate its output. Seconds by the clock and of CPU."""
    from fathom.curate.ops.decontaminate import DecontaminateConfig, run_decontaminate
    from fathom.curate.ops.dedup import DedupConfig, run_dedup
    from fathom.ledger import Meter

    bench = {"name": "bench", "path": str(root / "bench.jsonl")}
    dedup = DedupConfig(problems="problems", workers=workers)
    decontaminate = DecontaminateConfig.model_validate({"problems": "u", "benchmarks": [bench], "workers": workers})
    told = {}
    for name, function, config, before in (
        ("dedup", run_dedup, dedup, "problems"),
        ("decontaminate", run_decontaminate, decontaminate, "dedup"),
    ):
        (root / name).mkdir()
        clock, cpu = time.perf_counter(), cpu_seconds()
        metrics = function({"problems": root / before}, config, root / name, Meter.null(root / "scratch"))
        told[name] = {
            "seconds": round(time.perf_counter() - clock, 1),
            "cpu_seconds": round(cpu_seconds() - cpu, 1),
            "by_rule": metrics["by_rule"],
        }
    return {**told, "planted": planted(root)}


def planted(root: Path) -> dict[str, dict[str, int]]:
    """How many planted rows there were and how many are gone at the end; and how many others went."""
    ids = {name: _ids(root / name / "problems.jsonl") for name in ("problems", "dedup", "decontaminate")}
    said = {}
    for kind, stage in (("repeat", "dedup"), ("leak", "decontaminate")):
        every = {key for key in ids["problems"] if key.startswith(kind)}
        said[kind] = {"planted": len(every), "removed": len(every - ids[stage])}
    others = {key for key in ids["problems"] if key.startswith("row")}
    lost = others - ids["decontaminate"]
    replaced = {f"row-{key.split('-')[1]}" for key in ids["dedup"] if key.startswith("repeat")}
    return {**said, "other": {"rows": len(others), "removed": len(lost - replaced)}}


def _ids(path: Path) -> set[str]:
    with open(path, encoding="utf-8") as stream:
        return {json.loads(line)["id"] for line in stream}


def cpu_seconds() -> float:
    """User and system time of this process and its finished children."""
    usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in usage)


if __name__ == "__main__":
    print(json.dumps(run_both(Path(sys.argv[1]), int(sys.argv[2]))))
