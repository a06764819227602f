"""Three stages that pay for every answer, and the endpoint they ask. Not a test: tests of crashes and faults import it.

Run as a program it is a warm parent: each line "FOLDER URL" on its input becomes a child process that
runs the stages there; it prints the child's id when the child starts, and its exit status when it ended.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sqlite3
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

from http_server import Answer, Handler, completion

import fathom.engines.http  # noqa: F401  (children are forked, and imports are what takes long)
from fathom.annotate.rewrite import LAYOUT, RewriteConfig, run_rewrite
from fathom.annotate.scale import AnnotateConfig, run_annotate
from fathom.chunks import draw
from fathom.graders import grade
from fathom.ledger import Ledger, Meter
from fathom.prices import DevicePrice, Prices, TokenPrice
from fathom.records import Problem, write_jsonl
from fathom.rollout import RolloutConfig, run_rollout

PRICE = TokenPrice(
    input=1.0, output=10.0, cached=0.5, batch_input=0.5, batch_output=5.0, as_of="2026-01-01", source="test"
)
FREE = DevicePrice(usd_per_hour=0, as_of="2026-01-01", source="test")
PRICES = Prices(devices={"cpu": FREE}, models={"m": PRICE})
PROBLEMS = [Problem(f"p{i}", f"What is {i} + {i}?", str(2 * i)) for i in range(40)]
OUTPUTS = {"rated": "problems.jsonl", "taught": "rollouts.jsonl", "rewritten": "rollouts.jsonl"}


def run_stages(folder: Path, url: str, **settings: Any) -> None:
    """Rate, solve and rewrite the problems, as a recipe would: what is finished stays, what was killed goes on."""
    ledger = Ledger(folder / "ledger.sqlite")
    ledger.recover({})
    write_jsonl(folder / "problems.jsonl", PROBLEMS)
    engine = {"kind": "http", "model": "m", "base_url": url, "concurrency": 4, **settings}
    stages = {
        "rated": (run_annotate, AnnotateConfig(problems="p", engine=engine, chunk=10), {"problems": folder}),
        "taught": (run_rollout, RolloutConfig(problems="p", engine=engine, samples=2, chunk=10), {"problems": folder}),
        "rewritten": (
            run_rewrite,
            RewriteConfig(problems="p", chains="taught", engine=engine, chunk=20),
            {"problems": folder, "chains": folder / "taught"},
        ),
    }
    for name, (run, config, inputs) in stages.items():
        if not (folder / name).exists():
            out = folder / f".tmp-{name}"
            shutil.rmtree(out, ignore_errors=True)
            out.mkdir()
            attempt = ledger.begin(name, "k", "cpu", 1, PRICES)
            meter = Meter(folder / f"scratch-{name}", 0, stage=name, ledger=ledger, attempt=attempt, prices=PRICES)
            run(inputs, config, out, meter)
            out.rename(folder / name)
            ledger.end(attempt, "done", 0.0)
    ledger.close()


def rows(folder: Path) -> dict[str, bytes]:
    """What the stages handed on, byte by byte."""
    return {name: (folder / name / file).read_bytes() for name, file in OUTPUTS.items()}


def calls_of(folder: Path) -> list[sqlite3.Row]:
    """The paid calls in the ledger; none before there is a ledger."""
    if not (folder / "ledger.sqlite").exists():
        return []
    with closing(sqlite3.connect(folder / "ledger.sqlite")) as db:
        db.row_factory = sqlite3.Row
        return db.execute("select * from calls").fetchall()


def answer_text(body: dict[str, Any]) -> str:
    """What the model says, by the content of the call alone; a fifth of its answers do not validate."""
    asked = body["messages"][-1]["content"]
    luck = draw(body["seed"])
    if "Difficulty: N" in asked:
        return "hard to say" if luck < 0.2 else f"Difficulty: {1 + int(luck * 10)}"
    if "begin_of_thought" in asked:
        thought, _, solution = asked.rpartition("Reasoning to copy:\n")[2].partition(" So it is ")
        return "I'd rather not." if luck < 0.2 else LAYOUT.format(thought=thought, solution=f"So it is {solution}")
    number = int(asked.split()[2])
    return f"<think>Twice {number}. Let me add {number} and {number} slowly.</think> So it is \\boxed{{{2 * number + (luck < 0.2)}}}."


class Truth:
    """What the endpoint saw, call by call (`content`: hash of the body), and what it charged.

    It knows `Idempotency-Key`: a call that comes again with the same key is answered again, and not charged again.
    """

    def __init__(self):
        self.lock = threading.Lock()
        self.arrived: list[tuple[str, str]] = []
        """(key, content) in order."""
        self.charged: Counter[str] = Counter()
        """By key: answers made."""

    def answering(self, seconds: float = 0.0, trouble: Callable[[], Answer | None] = lambda: None) -> Answer:
        """An answer to every call, after some seconds. trouble: what comes instead, if anything."""

        def answer(handler: Handler, body: dict[str, Any]) -> None:
            key = handler.headers["Idempotency-Key"]
            content = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
            with self.lock:
                self.arrived.append((key, content))
            if (other := trouble()) is not None:
                other(handler, body)
                return
            time.sleep(seconds)
            with self.lock:
                self.charged[key] = 1
            handler.reply(200, json.dumps(completion(answer_text(body))))

        return answer


def main() -> None:
    grade(PROBLEMS[0], "\\boxed{0}")
    for line in sys.stdin:
        folder, url = line.split()
        child = os.fork()
        if child == 0:
            run_stages(Path(folder), url)
            os._exit(0)
        print(child, flush=True)
        print(os.waitpid(child, 0)[1], flush=True)


if __name__ == "__main__":
    main()
