"""Sequential solve rates beside a fixed number of chains: is the band that of 64 chains, and at what cost?

    python benchmarks/solve_rates.py [--work DIR]

Simulated problems draw their rate from a spread, tiny ones are training problems of fathom-r1-tiny.yaml,
sampled 64 times with two seeds by the embedded base (some ten minutes on one core; `--work` keeps the
chains, so that another call reads them back). Every case then runs the product's own loop, `roll_out`
with `until`, over those outcomes. Three measures of agreement with 64 chains, as shares of problems:

- not_ruled_out: the 64 chains don't rule the band out (`fathom.bands`); the sequential ones are the first of them;
- again: the same against 64 other chains of the same problem;
- equal: the 64 chains' own fraction lies in the very same band. `other_64` is how often another 64 chains do.

The recipe's case takes `until` from fathom-r1-14b.yaml as it stands; all others differ in the windows alone.

Results go to benchmarks/results/solve_rates.json.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

import fathom
from fathom import graders
from fathom.bands import REFERENCE, Count, Until, Window, count_solved, expected_chains, fit_prior, same_band
from fathom.engines import Completion, Request, TransformersConfig, open_engine
from fathom.ledger import Meter
from fathom.records import Problem, Sampling, Verdict, read_problems
from fathom.rollout import roll_out

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "solve_rates.json"
MOST = 24
"""Chains per problem at most, when they are drawn in waves."""
FIXED = (8, 16)
SIMULATED, TINY = 3000, 320
"""Problems of a case."""

WINDOWS = {
    "0.2 to 0.7": [Window(min=0.2, max=0.7)],
    "above 0, to 0.4": [Window(above=0, max=0.4)],
    "above 0, to 0.5": [Window(above=0, max=0.5)],
    "0.2 to 0.7 and above 0, to 0.4": [Window(min=0.2, max=0.7), Window(above=0, max=0.4)],
}
"""The two of fathom-r1-14b.yaml, a wider one, and the recipe's two at once."""

SPREADS: dict[str, Callable[[random.Random], float]] = {
    "polarised, Beta(0.2, 0.2)": lambda r: r.betavariate(0.2, 0.2),
    "polarised, Beta(0.3, 0.3)": lambda r: r.betavariate(0.3, 0.3),
    "mostly solved, Beta(0.6, 0.25)": lambda r: r.betavariate(0.6, 0.25),
    "mostly unsolved, Beta(0.25, 0.6)": lambda r: r.betavariate(0.25, 0.6),
    "a quarter never, a quarter nearly always": lambda r: r.choice(
        [0.0, r.uniform(0.98, 1), r.betavariate(0.6, 0.6), r.betavariate(0.6, 0.6)]
    ),
    "uniform": lambda r: r.random(),
}
"""Reasoners solve most problems nearly always or hardly ever; the fifth is no Beta distribution, the last has no poles."""


@dataclass(frozen=True)
class Chain:
    solved: bool
    tokens: int


@dataclass(frozen=True)
class Corpus:
    """By problem, `REFERENCE` chains, and how many of another `REFERENCE` were solved."""

    chains: Mapping[str, Sequence[Chain]]
    again: Mapping[str, int]

    def count(self, key: str, chains: int) -> Count:
        return Count(sum(c.solved for c in self.chains[key][:chains]), chains)


class Outcomes:
    """An engine that hands out known chains as a model would; `right` judges them."""

    name, device = "outcomes", "cpu"

    def __init__(self, corpus: Corpus):
        self.corpus = corpus

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[Completion]:
        for request in requests:
            for index in range(request.first, request.first + request.samples):
                chain = self.corpus.chains[request.key][index]
                yield Completion(request.key, index, "right" if chain.solved else "wrong", chain.tokens, "stop")

    def close(self) -> None:
        pass


def right(problem: Problem, text: str, truncated: bool) -> Verdict:
    return Verdict(text, text == "right", "outcomes/1")


def simulated(rate: Callable[[random.Random], float], seed: int = 0) -> Corpus:
    chains, again = {}, {}
    for number in range(SIMULATED):
        generator = random.Random(f"{seed}/{number}")
        p = rate(generator)
        chains[f"s{number}"] = [Chain(generator.random() < p, 1) for _ in range(REFERENCE)]
        again[f"s{number}"] = sum(generator.random() < p for _ in range(REFERENCE))
    return Corpus(chains, again)


def tiny(work: Path) -> Corpus:
    """Real chains of the embedded base, sampled as the tiny recipe samples them, with seeds 0 and 1."""
    recipe = ROOT / "recipes" / "fathom-r1-tiny.yaml"
    run = [sys.executable, "-m", "fathom", "run", str(recipe), "--until", "rated", "--out", str(work / "run")]
    subprocess.run(run, check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
    problems = read_problems(work / "run" / "artifacts" / "rated" / "problems.jsonl")[:TINY]
    engine = open_engine(TransformersConfig(), Path(fathom.__file__).parent / "data" / "fathom-tiny-base")
    seen: list[dict[str, list[Chain]]] = []
    for seed in (0, 1):
        sampling = Sampling(temperature=0.6, top_p=0.95, max_tokens=384, seed=seed)
        chains: dict[str, list[Chain]] = {}
        for r in roll_out(
            problems, engine, sampling, REFERENCE, graders.grade, Meter.null(work / f"d{seed}"), chunk=20
        ):
            chains.setdefault(r.problem_id, []).append(Chain(r.verdict.correct is True, r.tokens))
        seen.append(chains)
    engine.close()
    return Corpus(seen[0], {key: sum(c.solved for c in chains) for key, chains in seen[1].items()})


def agreement(corpus: Corpus, counts: Mapping[str, Count], windows: Sequence[Window]) -> dict[str, float]:
    """The three measures, for the counts that some way of sampling ended with."""
    total = {"not_ruled_out": 0, "again": 0, "equal": 0}
    for key, count in counts.items():
        whole, other = corpus.count(key, REFERENCE), Count(corpus.again[key], REFERENCE)
        total["not_ruled_out"] += same_band(count, whole, windows)
        total["again"] += same_band(count, other, windows)
        total["equal"] += all(w.holds(count.rate) == w.holds(whole.rate) for w in windows)
    return {name: round(n / len(counts), 4) for name, n in total.items()}


def case(corpus: Corpus, until: Until, scratch: Path) -> dict[str, Any]:
    """Waves, fixed numbers of chains, and another set of 64, on one corpus."""
    problems = [Problem(key, "?", None) for key in corpus.chains]
    drawn = roll_out(problems, Outcomes(corpus), Sampling(), MOST, right, Meter.null(scratch), until=until)
    counts = count_solved(drawn)
    planned = expected_chains(until, MOST, fit_prior(Counter(counts.values())))
    tokens = sum(r.tokens for r in drawn)
    taken = {k: sum(c.tokens for chains in corpus.chains.values() for c in chains[:k]) for k in FIXED}
    fixed = {k: {key: corpus.count(key, k) for key in corpus.chains} for k in FIXED}
    other = {key: Count(solved, REFERENCE) for key, solved in corpus.again.items()}
    best = agreement(corpus, other, until.windows)
    return {
        "sequential": {
            "chains_mean": round(len(drawn) / len(problems), 3),
            "planned": round(planned, 3),
            **agreement(corpus, counts, until.windows),
            "saved": {str(k): round(1 - tokens / taken[k], 4) for k in FIXED},
        },
        **{f"fixed_{k}": agreement(corpus, fixed[k], until.windows) for k in FIXED},
        "other_64": {name: best[name] for name in ("not_ruled_out", "equal")},
    }


def settings() -> dict[str, Until]:
    """By label: the default with each set of windows, and what the 14B recipe says."""
    recipe = yaml.safe_load((ROOT / "recipes" / "fathom-r1-14b.yaml").read_text())
    ours = Until.model_validate(recipe["stages"]["base_chains"]["until"])
    return {**{label: Until(windows=windows) for label, windows in WINDOWS.items()}, "fathom-r1-14b.yaml": ours}


def extremes(cases: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Over all corpora, for the selections that read one window."""
    alone = [
        by[label]["sequential"] for by in cases.values() for label, windows in WINDOWS.items() if len(windows) == 1
    ]
    chains = [found["chains_mean"] for found in alone]
    return {
        "cases": len(alone),
        "least_not_ruled_out": min(found["not_ruled_out"] for found in alone),
        "chains_mean": round(sum(chains) / len(chains), 3),
        "chains_most": max(chains),
        "with_at_most_8_chains": sum(n <= 8 for n in chains),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, help="keeps the tiny model's chains")
    given = parser.parse_args().work
    with tempfile.TemporaryDirectory() as temporary:
        corpora = {name: simulated(rate) for name, rate in SPREADS.items()}
        corpora["tiny model"] = tiny(given or Path(temporary))
        cases = {
            name: {label: case(corpus, until, Path(temporary) / name / label) for label, until in settings().items()}
            for name, corpus in corpora.items()
        }
    sampled = corpora["tiny model"]
    result = {
        "until": {label: until.model_dump(mode="json", exclude_none=True) for label, until in settings().items()},
        "samples": MOST,
        "problems": {"simulated": SIMULATED, "tiny": TINY},
        "tiny_solved_of_64": [sampled.count(key, REFERENCE).correct for key in sampled.chains],
        "one_window": extremes(cases),
        "cases": cases,
    }
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")
    print(result["one_window"])
    for name, by_label in cases.items():
        for label, figures in by_label.items():
            print(name, "|", label, *(f"\n  {way}: {values}" for way, values in figures.items()))


if __name__ == "__main__":
    main()
