"""What each stage is expected to take: tokens, hours, peak memory and dollars, each with an interval.

One function per op, `estimate(config, inputs, setting) -> Estimate`, named in the table of ops: here those of stages that
handle data, in `estimates_generation.py` those that sample chains, in `estimates_training.py` those that train or write models. They
read configurations and count the rows of local files, never weights or the hub, so planning a 14B
recipe needs no network. Every assumption that isn't physics stands in one of the three with its reason.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fathom import physics
from fathom.config import load_object, stage_inputs
from fathom.errors import InputError
from fathom.physics import NONE, ModelShape, Range
from fathom.prices import Prices, load_prices
from fathom.recipe import models
from fathom.recipe.plan import Step
from fathom.recipe.schema import Recipe
from fathom.sources.corpora import CORPORA

CORPUS_CHAINS = {"openr1-math-220k": 2}
"""Recorded chains per problem where there is more than one, from the data-set card."""

ROW_TOKENS = {
    "openr1-math-220k": Range(4000, 5900, 8500),
    "Qwen/QwQ-32B-Preview": Range(4100, 4800, 5700),
    "NovaSky-AI/Sky-T1-32B-Preview": Range(1400, 2300, 4500),
}
"""Mean tokens of a training row, prompt included, by the corpus that brings the chain or the model that writes it.

OpenR1: a correct chain of R1 has 16,254 characters (mean of 45,000; card of 96kevinli29/SFT-Math-45k), and Qwen's
tokenizer makes a token of 2.8 characters of such text (median of 118 chains of Sky-T1's students that were cut at 32,768
tokens). Low: easy problems, or the shortest of two chains. High: hard ones; the 14B base writes 10,878 on AIME25.
QwQ: Sky-T1's released file has 268 MB in 16.4K rows (its listing on the hub), 16.3 kB a row, at 3.4 [2.9 - 4.0] bytes of JSON
a token. NovaSky's own means for QwQ lie around it: 2,089 tokens on MATH500, 7,379 on AIME24, 3,255 - 10,450 on LiveCodeBench.
Sky-T1-32B-Preview: 2,124 on MATH500 and a prompt (Sky-T1-32B-Flash's card); low and high, the shortest or longest of several chains."""

USABLE_SHARE = {"apps": Range(0.75, 0.9, 1.0), "taco": Range(0.8, 0.95, 1.0), "still-2": Range(0.3, 0.8, 1.0)}
"""Rows that have readable tests (APPS, TACO), or a boxed answer. Assumption."""

NUMERIC_SHARE = Range(0.15, 0.30, 0.60)
"""Problems whose answer is a number. Assumption; many of the contest problems are proofs or ask for expressions.
Of NuminaMath-1.5, 131,063 rows (0.146) have a definite numerical answer (data-set card of nlile/NuminaMath-1.5-RL-Verifiable)."""

UNIQUE_SHARE = Range(0.50, 0.75, 1.0)
"""Problems left by dedup. Assumption: OpenR1 was drawn from NuminaMath-1.5; Fathom-R1 was left with about 100K of the two."""

CLEAN_SHARE = Range(0.97, 0.995, 1.0)
"""Problems left by decontamination against a few hundred benchmark problems. Assumption."""

WINDOW_SHARE = Range(0.04, 0.12, 0.35)
"""Problems left by a selection without a limit. Fathom-R1 kept 5% (V0.6) and 9.5% (V0.4) of 100K."""

ACCEPTED_SHARE = Range(0.25, 0.45, 0.90)
"""The same without any window: problems with a correct chain. Sky-T1 was left with 17K of some 47K."""

LIGHT_SECONDS = Range(0.1, 0.3, 2)
"""Starting and finishing a stage without a model. Measured on 2 busy CPU cores."""

ROWS_PER_SECOND = Range(300, 2000, 10000)
"""Problems per second of a curation stage on one core. Assumption."""

GRADED_PER_SECOND = Range(100, 1000, 10000)
"""Chains per second of the grader. Assumption."""

TESTS_PER_PROBLEM = Range(2, 15, 100)
"""Tests of a code problem. Assumption; APPS has 21 on average in its test split, TACO some 200 (papers of both)."""

TEST_SECONDS = Range(0.03, 0.08, 0.5)
"""One program on one test in the sandbox. Assumption around what the tests of this project take."""

TESTED_SHARE = Range(0.6, 0.85, 1.0)
"""Code problems whose tests pass on a reference solution. Assumption."""

HUB_SECONDS = Range(120, 600, 2400)
"""Streaming one corpus from the hub. Assumption."""


@dataclass(frozen=True)
class Setting:
    """Where a recipe would run. shapes, specs: what is known of its models table, by its names."""

    device: str
    count: int
    prices: Prices
    shapes: Mapping[str, ModelShape]
    specs: Mapping[str, str] = field(default_factory=dict)

    @property
    def kind(self) -> str:
        return physics.kind_of(self.device)

    def usd(self, seconds: Range, api: Range | None = NONE) -> Range | None:
        """Of the devices for so long and of paid calls beside; None when one of them has no price."""
        price = self.prices.devices.get(self.device)
        if price is None or api is None:
            return None
        return seconds * (price.usd_per_hour * self.count / 3600) + api


@dataclass(frozen=True)
class Estimate:
    """Of one stage. seconds: wall-clock; None where nothing can be said of it. rows: problems or examples it hands on; chains: per problem.

    row_tokens: of a training row made of one of its chains; None where nothing is known of them. api_usd: paid calls beside the devices' time; None when a model has no price. shape: of the model it writes.
    """

    seconds: Range | None
    rows: Range = NONE
    chains: float = 0
    tokens: Range | None = None
    peak_gib: float | None = None
    api_usd: Range | None = NONE
    shape: ModelShape | None = None
    row_tokens: Range | None = None
    note: str = ""


Inputs = Mapping[str, Estimate]
"""Estimates of the stages that a configuration names, by the name."""


# ------------------------------------------------------------------------------ data


def sources(config: Any, inputs: Inputs, setting: Setting) -> Estimate:
    rows, seconds, chains, row_tokens = NONE, LIGHT_SECONDS, 0, None
    for source in config.sources:
        rows += _source_rows(source)
        row_tokens = row_tokens or ROW_TOKENS.get(source.name)
        corpus = CORPORA.get(source.name)
        if corpus is not None:
            seconds += HUB_SECONDS if source.path is None else NONE
            chains = max(chains, CORPUS_CHAINS.get(source.name, 1 if corpus.chains else 0))
        else:
            told = getattr(source, "chains", 0)
            chains = max(chains, told if isinstance(told, int) else 1)
    return Estimate(seconds + rows.over(ROWS_PER_SECOND), rows, chains, row_tokens=row_tokens)


def _source_rows(source: Any) -> Range:
    if source.name in ("generated", "programs"):
        return Range.exactly(source.count + source.duplicates + source.leaks)
    limit = source.limit or float("inf")
    if source.name in CORPORA and source.path is None:
        total = CORPORA[source.name].rows_wanted(source.split, source.where)
        share = NUMERIC_SHARE if source.numeric_gold else USABLE_SHARE.get(source.name, Range.exactly(1))
        return (share * total).at_most(limit)
    return Range.exactly(min(file_rows(Path(source.path)), limit))


def file_rows(path: Path) -> int:
    """Rows of a plain text file; for a compressed or columnar one a guess from its size."""
    if path.suffix in (".jsonl", ".json", ".csv"):
        with open(path, "rb") as stream:
            return sum(1 for _ in stream)
    return max(1, sum(p.stat().st_size for p in ([path] if path.is_file() else path.rglob("*")) if p.is_file()) // 300)


def _read_once(rows: Range) -> Range:
    """Seconds of a stage that looks at each of some rows."""
    return LIGHT_SECONDS + rows.over(ROWS_PER_SECOND)


def _filter(share: Range) -> Callable[[Any, Inputs, Setting], Estimate]:
    def estimate(config: Any, inputs: Inputs, setting: Setting) -> Estimate:
        before = inputs[config.problems]
        return Estimate(_read_once(before.rows), before.rows * share, before.chains)

    return estimate


dedup = _filter(UNIQUE_SHARE)
decontaminate = _filter(CLEAN_SHARE)
solve_rate = _filter(Range.exactly(1))


def select(config: Any, inputs: Inputs, setting: Setting) -> Estimate:
    before = inputs[config.problems]
    share = WINDOW_SHARE if config.solve_rate or config.difficulty else ACCEPTED_SHARE
    kept = (before.rows * share).at_most(config.limit or float("inf"))
    return Estimate(_read_once(before.rows), kept, before.chains, row_tokens=inputs[config.chains].row_tokens)


def mix(config: Any, inputs: Inputs, setting: Setting) -> Estimate:
    parts = {name: inputs[stage].rows for name, stage in config.parts.items()}
    rows = sum((part.at_most(config.rows.get(name, float("inf"))) for name, part in parts.items()), NONE)
    row_tokens = next((inputs[stage].row_tokens for stage in config.parts.values()), None)
    return Estimate(_read_once(rows), rows.at_most(config.limit or float("inf")), 1, row_tokens=row_tokens)


def export(config: Any, inputs: Inputs, setting: Setting) -> Estimate:
    before = inputs[config.rows]
    return Estimate(_read_once(before.rows), before.rows, before.chains, row_tokens=before.row_tokens)


def tokenize(config: Any, inputs: Inputs, setting: Setting) -> Estimate:
    before = inputs[config.examples]
    seconds = Range(2, 4, 10) + before.rows.over(ROWS_PER_SECOND)
    return Estimate(seconds, before.rows, before.chains, row_tokens=before.row_tokens)


def grade(config: Any, inputs: Inputs, setting: Setting) -> Estimate:
    problems, given = inputs[config.problems], inputs[config.chains]
    chains = given.chains or 1
    seconds = Range(0.5, 2, 5) + (problems.rows * chains).over(GRADED_PER_SECOND)
    return Estimate(seconds, problems.rows, chains, row_tokens=given.row_tokens)


def check_tests(config: Any, inputs: Inputs, setting: Setting) -> Estimate:
    """As if all problems were code."""
    before = inputs[config.problems]
    seconds = before.rows * TESTS_PER_PROBLEM * TEST_SECONDS * (1 / config.workers)
    return Estimate(LIGHT_SECONDS + seconds, before.rows * TESTED_SHARE, before.chains)


def given(config: Any, inputs: Inputs, setting: Setting) -> Estimate:
    path = Path(config.path)
    rows = next((p for p in (path, path / "problems.jsonl", path / "examples.jsonl") if p.is_file()), None)
    return Estimate(Range(0.1, 0.3, 2), Range.exactly(file_rows(rows) if rows else 0), 1)


def shape_of(name: str | None, inputs: Inputs, setting: Setting) -> ModelShape | None:
    """Of the model that a configuration names: a stage's output or an entry of the models table."""
    if name is None:
        return None
    return inputs[name].shape if name in inputs else setting.shapes.get(name)


# ------------------------------------------------------------------------------ a whole recipe


def forecast(recipe: Recipe, steps: Sequence[Step]) -> dict[str, dict[str, Any]]:
    """Expected cost by stage name, as plain JSON with [low, expected, high]; empty for a device without a data sheet.

    Raises InputError, with the stage's name, for what is to run and the device can't do.
    """
    hardware = recipe.file.hardware
    if hardware.device not in physics.DEVICES:
        return {}
    prices = load_prices(Path(recipe.file.prices) if recipe.file.prices else None)
    specs = {name: spec.partition("@")[0] for name, spec in recipe.file.models.items()}
    setting = Setting(hardware.device, hardware.count, prices, _shapes(recipe), specs)
    estimates: dict[str, Estimate] = {}
    for step in steps:
        function = step.stage.op.estimate
        if function is not None:
            named = {name for _, _, name in stage_inputs(step.stage.config)}
            inputs = {name: estimates.get(name, Estimate(NONE)) for name in named if name not in setting.shapes}
            try:
                estimates[step.stage.name] = load_object(function)(step.stage.config, inputs, setting)
            except InputError as error:
                if step.state == "cached":
                    continue
                raise InputError(f"{recipe.path}: stage {step.stage.name!r}: {error}") from None
    return {name: _plain(estimate, setting) for name, estimate in estimates.items()}


def _shapes(recipe: Recipe) -> dict[str, ModelShape]:
    shapes = {}
    for name, spec in recipe.file.models.items():
        local = models.local_directory(spec, f"{recipe.path}: models.{name}")
        shape = physics.shape_of(local) if local else physics.KNOWN_SHAPES.get(spec.partition("@")[0])
        if shape is not None:
            shapes[name] = shape
    return shapes


def _plain(estimate: Estimate, setting: Setting) -> dict[str, Any]:
    seconds = estimate.seconds
    usd = None if seconds is None else setting.usd(seconds, estimate.api_usd)
    sheet = physics.DEVICES[setting.device]
    note = estimate.note
    if sheet.memory_gib and estimate.peak_gib and estimate.peak_gib > sheet.memory_gib:
        note = f"does not fit: {estimate.peak_gib:.0f} GiB per {setting.device} of {sheet.memory_gib:.0f} GiB; more devices or offloading"
    return {
        "tokens": estimate.tokens.as_list() if estimate.tokens else None,
        "hours": (seconds * (1 / 3600)).as_list() if seconds else None,
        "peak_gib": round(estimate.peak_gib, 1) if estimate.peak_gib else None,
        "usd": usd.as_list() if usd else None,
        "rows": estimate.rows.as_list() if estimate.rows.mid else None,
        "note": note,
    }
