"""What each stage is expected to take: tokens, hours, peak memory and dollars, each with an interval.

One function per op, `estimate(config, inputs, setting) -> Estimate`, named in the table of ops. They
read configurations (and manifests of finished stages), never data or models, so planning a 14B
recipe needs no network. Every assumption that isn't physics stands here with its reason.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fathom import physics
from fathom.bands import Prior, expected_chains
from fathom.config import load_object, stage_inputs
from fathom.errors import InputError
from fathom.ledger import dollars
from fathom.physics import NONE, ModelShape, Range
from fathom.prices import Prices, load_prices
from fathom.recipe import models
from fathom.recipe.plan import Step
from fathom.recipe.schema import Recipe
from fathom.records import Usage
from fathom.sources.corpora import CORPORA
from fathom.train.memory import FLOPS, Room, plan_memory

CORPUS_CHAINS = {"openr1-math-220k": 2}
"""Recorded chains per problem where there is more than one, from the data-set card."""

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

TRAINING_CHAIN = Range(0.20, 0.35, 0.60)
"""Mean length of a training chain as a share of max_length. Correct R1 chains of OpenR1 are some 5-6K tokens of 16K."""

CORPUS_CHAIN = Range(0.20, 0.40, 0.65)
"""Mean length of a sampled chain on corpus problems as a share of max_tokens. Assumption, below the next."""

BENCHMARK_CHAIN = Range(0.30, 0.62, 0.80)
"""The same on benchmarks: Fathom-R1's tables have 10,083-12,717 of 16,384 (0.62-0.78) on AIME25 and HMMT25."""

ANSWER_TOKENS = Range(150, 800, 2500)
"""Completion tokens of one annotation by a reasoning API model. Assumption."""

CALL_SECONDS = Range(2, 8, 30)
"""One call to an API, of as many at once as the engine's `concurrency`. Assumption."""

BATCH_SECONDS = Range(600, 7200, 86400)
"""A batch of the Batch API, whatever its size. Its completion window is 24 hours; the rest an assumption."""

PROMPT_TOKENS = Range(100, 250, 500)
"""Prompt tokens of one problem with its template. Assumption."""

SOLVE_RATES = (Prior(0.2, 0.2), Prior(0.3, 0.3), Prior(1, 1))
"""How a model's solve rates may be spread: most problems nearly always or hardly ever solved, or all rates alike. Assumption."""

START_SECONDS = {"gpu": Range(60, 120, 300), "cpu": Range(1, 3, 8)}
"""Loading a model and starting its engine. Assumption for the GPU; measured on 2 CPU cores for tiny models."""

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

FREE_SHARE = 0.99
"""Of a GPU's memory, what a program finds free. 139.8 of 141 GiB on an H200."""

HOST_GIB = 96
"""Host memory that a training process may pin for its GPU. Assumption: rented machines have 128 GiB or more for each."""

COPY_BYTES_PER_SECOND = Range(2e8, 8e8, 2e9)
"""Reading and writing safetensors on local disks. Assumption."""


@dataclass(frozen=True)
class Setting:
    """Where a recipe would run. model: shapes by the names of its models table."""

    device: str
    count: int
    prices: Prices
    shapes: Mapping[str, ModelShape]

    @property
    def kind(self) -> str:
        return physics.kind_of(self.device)


@dataclass(frozen=True)
class Estimate:
    """Of one stage. seconds: wall-clock. rows: problems or examples it hands on; chains: per problem.

    api_usd: paid calls beside the devices' time; None when a model has no price. shape: of the model it writes.
    """

    seconds: Range
    rows: Range = NONE
    chains: float = 0
    tokens: Range | None = None
    peak_gib: float | None = None
    api_usd: Range | None = NONE
    shape: ModelShape | None = None
    note: str = ""


Inputs = Mapping[str, Estimate]
"""Estimates of the stages that a configuration names, by the name."""


# ------------------------------------------------------------------------------ data


def sources(config: Any, inputs: Inputs, setting: Setting) -> Estimate:
    rows, seconds, chains = NONE, LIGHT_SECONDS, 0
    for source in config.sources:
        rows += _source_rows(source)
        corpus = CORPORA.get(source.name)
        if corpus is not None:
            seconds += HUB_SECONDS if source.path is None else NONE
            chains = max(chains, CORPUS_CHAINS.get(source.name, 1 if corpus.chains else 0))
        else:
            told = getattr(source, "chains", 0)
            chains = max(chains, told if isinstance(told, int) else 1)
    return Estimate(seconds + rows.over(ROWS_PER_SECOND), rows, chains)


def _source_rows(source: Any) -> Range:
    if source.name in ("generated", "programs"):
        return Range.exactly(source.count + source.duplicates + source.leaks)
    limit = source.limit or float("inf")
    if source.name in CORPORA and source.path is None:
        total = CORPORA[source.name].rows_wanted(source.split, source.where)
        share = NUMERIC_SHARE if source.numeric_gold else USABLE_SHARE.get(source.name, Range.exactly(1))
        return (share * total).at_most(limit)
    return Range.exactly(min(_lines(Path(source.path)), limit))


def _lines(path: Path) -> int:
    """Rows of a plain text file; for a compressed or columnar one a guess from its size."""
    if path.suffix in (".jsonl", ".json", ".csv"):
        with open(path, "rb") as stream:
            return sum(1 for _ in stream)
    return max(1, sum(p.stat().st_size for p in ([path] if path.is_file() else path.rglob("*")) if p.is_file()) // 300)


def _filter(share: Range) -> Callable[[Any, Inputs, Setting], Estimate]:
    def estimate(config: Any, inputs: Inputs, setting: Setting) -> Estimate:
        before = inputs[config.problems]
        return Estimate(LIGHT_SECONDS + before.rows.over(ROWS_PER_SECOND), before.rows * share, before.chains)

    return estimate


dedup = _filter(UNIQUE_SHARE)
decontaminate = _filter(CLEAN_SHARE)
solve_rate = _filter(Range.exactly(1))


def select(config: Any, inputs: Inputs, setting: Setting) -> Estimate:
    before = inputs[config.problems]
    share = WINDOW_SHARE if config.solve_rate or config.difficulty else ACCEPTED_SHARE
    kept = (before.rows * share).at_most(config.limit or float("inf"))
    return Estimate(LIGHT_SECONDS + before.rows.over(ROWS_PER_SECOND), kept, before.chains)


def mix(config: Any, inputs: Inputs, setting: Setting) -> Estimate:
    parts = {name: inputs[stage].rows for name, stage in config.parts.items()}
    rows = sum((part.at_most(config.rows.get(name, float("inf"))) for name, part in parts.items()), NONE)
    return Estimate(LIGHT_SECONDS + rows.over(ROWS_PER_SECOND), rows.at_most(config.limit or float("inf")), 1)


def export(config: Any, inputs: Inputs, setting: Setting) -> Estimate:
    before = inputs[config.rows]
    return Estimate(LIGHT_SECONDS + before.rows.over(ROWS_PER_SECOND), before.rows, before.chains)


def tokenize(config: Any, inputs: Inputs, setting: Setting) -> Estimate:
    before = inputs[config.examples]
    return Estimate(Range(2, 4, 10) + before.rows.over(ROWS_PER_SECOND), before.rows, before.chains)


def grade(config: Any, inputs: Inputs, setting: Setting) -> Estimate:
    problems, chains = inputs[config.problems], inputs[config.chains].chains or 1
    return Estimate(Range(0.5, 2, 5) + (problems.rows * chains).over(GRADED_PER_SECOND), problems.rows, chains)


def check_tests(config: Any, inputs: Inputs, setting: Setting) -> Estimate:
    """As if all problems were code."""
    before = inputs[config.problems]
    seconds = before.rows * TESTS_PER_PROBLEM * TEST_SECONDS * (1 / config.workers)
    return Estimate(LIGHT_SECONDS + seconds, before.rows * TESTED_SHARE, before.chains)


def given(config: Any, inputs: Inputs, setting: Setting) -> Estimate:
    path = Path(config.path)
    rows = next((p for p in (path, path / "problems.jsonl", path / "examples.jsonl") if p.is_file()), None)
    return Estimate(Range(0.1, 0.3, 2), Range.exactly(_lines(rows) if rows else 0), 1)


# ------------------------------------------------------------------------------ generation


def annotate(config: Any, inputs: Inputs, setting: Setting) -> Estimate:
    before = inputs[config.problems]
    answers = ANSWER_TOKENS.at_most(config.max_tokens)
    made = _generate(config, inputs, setting, before.rows, answers, config.max_tokens)
    return Estimate(made.seconds, before.rows, before.chains, made.tokens, made.peak_gib, made.api_usd, note=made.note)


def rewrite(config: Any, inputs: Inputs, setting: Setting) -> Estimate:
    per_problem = inputs[config.chains].chains or 1
    chain = CORPUS_CHAIN * config.max_tokens
    chains = inputs[config.problems].rows * per_problem
    made = _generate(config, inputs, setting, chains, chain, config.max_tokens, prompt=PROMPT_TOKENS + chain)
    return replace(made, rows=inputs[config.problems].rows, chains=per_problem)


def rollout(config: Any, inputs: Inputs, setting: Setting) -> Estimate:
    before = inputs[config.problems]
    cap = config.sampling.max_tokens
    samples = Range.exactly(config.samples)
    if config.until:
        samples = Range(*sorted(expected_chains(config.until, config.samples, spread) for spread in SOLVE_RATES))
    made = _generate(config, inputs, setting, before.rows * samples, CORPUS_CHAIN * cap, cap)
    return Estimate(made.seconds, before.rows, samples.mid, made.tokens, made.peak_gib, made.api_usd, note=made.note)


def evaluate(config: Any, inputs: Inputs, setting: Setting) -> Estimate:
    problems = sum(_benchmark_rows(benchmark) for benchmark in config.benchmarks)
    total: Estimate | None = None
    for sampling in config.samplings:
        chains = Range.exactly(problems * (config.samples if sampling.temperature else 1))
        made = _generate(config, inputs, setting, chains, BENCHMARK_CHAIN * sampling.max_tokens, sampling.max_tokens)
        total = made if total is None else _both(total, made)
    return total


def _benchmark_rows(benchmark: Any) -> int:
    from fathom.sources.benchmarks import table

    if made := benchmark.generated or benchmark.programs:
        rows = made.count
    elif benchmark.path is not None:
        rows = _lines(Path(benchmark.path))
    else:
        entry = table().get(benchmark.name)
        rows = entry.problems if entry and entry.problems else 500
    return min(rows, benchmark.limit or rows)


def _generate(
    config: Any,
    inputs: Inputs,
    setting: Setting,
    chains: Range,
    length: Range,
    cap: int,
    prompt: Range = PROMPT_TOKENS,
) -> Estimate:
    """Chains of some mean length, after prompts of another, by the engine of a configuration."""
    kind = config.engine.kind
    tokens = chains * (length + prompt)
    if kind in ("scripted", "recorded"):
        return Estimate(Range(0.2, 1, 5) + chains.over(GRADED_PER_SECOND), note=f"{kind} engine: no model runs")
    if kind == "http" and config.engine.replay:
        return Estimate(Range(0.2, 1, 5) + chains.over(GRADED_PER_SECOND), note="recorded answers: no call is made")
    if kind == "http":
        name, batch = config.engine.model, config.engine.batch
        costs = [
            setting.prices.tokens_usd(name, Usage(round(n * before), round(n * answer)), batch)
            for n, before, answer in zip(_triple(chains), _triple(prompt), _triple(length.at_most(cap)), strict=True)
        ]
        api_usd = None if None in costs else Range(*costs)
        seconds = BATCH_SECONDS if batch else chains * CALL_SECONDS * (1 / config.engine.concurrency)
        told = "no price is known" if api_usd is None else f"{dollars(api_usd.mid)} of it for their tokens"
        return Estimate(
            seconds, tokens=tokens, api_usd=api_usd, note=f"{'batches' if batch else 'calls'} to {name}: {told}"
        )
    shape = _shape(config.model, inputs, setting)
    if shape is None:
        return Estimate(NONE, tokens=tokens, note="size of the model unknown before it is downloaded")
    context = length.mid / 2 + prompt.mid
    speed = physics.decoding_speed(shape, context, setting.device, setting.count, max(chains.mid, 1))
    peak = physics.decoding_memory(shape, context, setting.device, chains.mid)
    return Estimate(START_SECONDS[setting.kind] + (chains * length).over(speed), tokens=tokens, peak_gib=peak)


def _triple(value: Range) -> tuple[float, float, float]:
    return (value.low, value.mid, value.high)


def _both(first: Estimate, second: Estimate) -> Estimate:
    """One stage that does two pieces of work in turn."""
    return Estimate(
        first.seconds + second.seconds,
        tokens=first.tokens + second.tokens if first.tokens and second.tokens else None,
        peak_gib=max(first.peak_gib or 0, second.peak_gib or 0) or None,
        api_usd=first.api_usd + second.api_usd if first.api_usd and second.api_usd else None,
        note=first.note,
    )


# ------------------------------------------------------------------------------ models


def sft(config: Any, inputs: Inputs, setting: Setting) -> Estimate:
    shape = _shape(config.model, inputs, setting)
    length = TRAINING_CHAIN * config.max_length
    passes = config.epochs * config.iterations
    tokens = inputs[config.examples].rows * length * passes
    if shape is None:
        return Estimate(NONE, tokens=tokens, note="size of the model unknown before it is downloaded")
    seconds = START_SECONDS[setting.kind] + tokens.over(
        physics.training_speed(shape, length.mid, setting.device, setting.count)
    )
    if setting.kind == "cpu":
        peak = physics.cpu_training_memory(shape, max(config.pack_tokens, length.mid))
        return Estimate(seconds, tokens=tokens, peak_gib=peak, shape=shape)
    peak, notes = _training_memory(config, shape, length, setting)
    rows = (
        f"assumed {passes} x rows of {length.mid:.0f} [{length.low:.0f} - {length.high:.0f}] tokens: "
        f"1,000 more a row cost {100_000 / length.mid:+.0f}%, one pass more {100 / passes:+.0f}%"
    )
    return Estimate(seconds, tokens=tokens, peak_gib=peak, shape=shape, note="; ".join([rows, *notes]))


def _training_memory(config: Any, shape: ModelShape, length: Range, setting: Setting) -> tuple[float | None, list[str]]:
    """(peak GiB of each device, how activations are placed), or (None, why it can't be and what could)."""
    sheet = physics.DEVICES[setting.device]
    room = Room(
        sheet.memory_gib * physics.GIB * FREE_SHARE,
        HOST_GIB * physics.GIB,
        FLOPS * sheet.tflops / physics.DEVICES["h200"].tflops,
        sheet.link * 1e9,
    )
    pack = max(config.pack_tokens, config.max_length)
    step_tokens = config.batch_tokens or config.batch_size * length.mid
    packs = max(1, round(step_tokens / pack / setting.count))
    width = 4 if config.precision == "float32" else 2
    try:
        plan = plan_memory(shape, pack, config.optimizer, room, setting.count, packs, width)
    except InputError as refusal:
        return None, [str(refusal)]
    kept = plan.notes or ("all activations kept",)
    return plan.peak_bytes / physics.GIB, [f"{config.optimizer}", *kept]


def merge(config: Any, inputs: Inputs, setting: Setting) -> Estimate:
    shape = _shape(config.models[0], inputs, setting)
    if shape is None:
        return Estimate(NONE, note="size of the models unknown before they are downloaded")
    moved = Range.exactly(2.0 * shape.parameters * (len(config.models) + 1))
    largest = min(5e9, 2.0 * shape.parameters)
    return Estimate(
        Range(1, 2, 5) + moved.over(COPY_BYTES_PER_SECOND), peak_gib=0.5 + 2 * largest / physics.GIB, shape=shape
    )


def _shape(name: str | None, inputs: Inputs, setting: Setting) -> ModelShape | None:
    if name is None:
        return None
    return inputs[name].shape if name in inputs else setting.shapes.get(name)


# ------------------------------------------------------------------------------ a whole recipe


def forecast(recipe: Recipe, steps: Sequence[Step]) -> dict[str, dict[str, Any]]:
    """Expected cost by stage name, as plain JSON with [low, expected, high]; empty for a device without a data sheet."""
    hardware = recipe.file.hardware
    if hardware.device not in physics.DEVICES:
        return {}
    prices = load_prices(Path(recipe.file.prices) if recipe.file.prices else None)
    setting = Setting(hardware.device, hardware.count, prices, _shapes(recipe))
    estimates: dict[str, Estimate] = {}
    for step in steps:
        function = step.stage.op.estimate
        if function is not None:
            named = {name for _, _, name in stage_inputs(step.stage.config)}
            inputs = {name: estimates.get(name, Estimate(NONE)) for name in named if name not in setting.shapes}
            estimates[step.stage.name] = load_object(function)(step.stage.config, inputs, setting)
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
    price = setting.prices.devices.get(setting.device)
    usd = None
    if price is not None and estimate.api_usd is not None:
        usd = estimate.seconds * (price.usd_per_hour * setting.count / 3600) + estimate.api_usd
    sheet = physics.DEVICES[setting.device]
    note = estimate.note
    if sheet.memory_gib and estimate.peak_gib and estimate.peak_gib > sheet.memory_gib:
        note = f"does not fit: {estimate.peak_gib:.0f} GiB per {setting.device} of {sheet.memory_gib:.0f} GiB; more devices or offloading"
    return {
        "tokens": estimate.tokens.as_list() if estimate.tokens else None,
        "hours": (estimate.seconds * (1 / 3600)).as_list(),
        "peak_gib": round(estimate.peak_gib, 1) if estimate.peak_gib else None,
        "usd": usd.as_list() if usd else None,
        "rows": estimate.rows.as_list() if estimate.rows.mid else None,
        "note": note,
    }
