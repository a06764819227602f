"""Run or resume a recipe: each stage in a process of its own, artifacts published whole, every attempt billed.

Generic: it knows stages, files, processes and money, and nothing of models or data.
"""

from __future__ import annotations

import platform
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol

import fathom
from fathom import store
from fathom.config import stage_inputs
from fathom.document import dump
from fathom.errors import BudgetStop, FathomError, InputError, WorkError
from fathom.ledger import HEARTBEAT, Ledger, dollars
from fathom.prices import Prices, load_prices
from fathom.recipe.plan import Step, make_plan, plan_stage, run_paths
from fathom.recipe.process import Ended, Worker
from fathom.recipe.schema import Recipe

Forecast = Mapping[str, Mapping[str, Any]]
"""By stage name: what is expected of it (plain JSON); "usd" is [low, expected, high] or None."""


class Listener(Protocol):
    """Who is told how the run goes (see `fathom/recipe/progress.py`)."""

    def plan(self, steps: Sequence[Step]) -> None: ...
    def reused(self, step: Step) -> None: ...
    def started(self, step: Step) -> None: ...
    def progress(self, step: Step, done: int, total: int, note: str) -> None: ...
    def show(self, step: Step, segments: Sequence[Sequence[str]]) -> None: ...
    def finished(self, step: Step, seconds: float, metrics: Mapping[str, Any]) -> None: ...
    def note(self, line: str) -> None: ...


@dataclass(frozen=True)
class Outcome:
    """ran / reused: names of stages. spent_usd: of the whole run directory, ever."""

    run_dir: Path
    ran: tuple[str, ...]
    reused: tuple[str, ...]
    spent_usd: float


def run_recipe(
    recipe: Recipe,
    run_dir: Path,
    listener: Listener,
    *,
    budget_usd: float | None = None,
    until: str | None = None,
    setup: Sequence[str] = (),
    forecast: Callable[[Sequence[Step]], Forecast] = lambda steps: {},
) -> Outcome:
    """Run what is not finished; finished stages are left as they are.

    budget_usd: overrides the recipe's. setup: "module:function" that each stage's process calls first;
    it stands in the manifests, not in the keys. Raises InputError (wrong input, disk full, another run at
    work here), WorkError or BudgetStop; finished artifacts stay usable in every case.
    """
    budget = budget_usd if budget_usd is not None else recipe.file.budget.usd
    prices = load_prices(Path(recipe.file.prices) if recipe.file.prices else None)
    device = recipe.file.hardware.device
    if budget is not None and device not in prices.devices:
        raise InputError(f"{recipe.path}: a budget needs a price for the device {device!r} in the price file")
    with store.locked(run_dir):
        run = _Run(recipe, run_dir, listener, budget, prices, setup)
        try:
            return run.all(until, forecast)
        finally:
            run.close()


class _Run:
    """State of one `run_recipe` call: the ledger, the worker, and the steps decided so far."""

    def __init__(
        self,
        recipe: Recipe,
        run_dir: Path,
        listener: Listener,
        budget: float | None,
        prices: Prices,
        setup: Sequence[str],
    ):
        self.recipe = recipe
        self.run_dir = run_dir
        self.artifacts, self.scratch = run_paths(run_dir)
        self.listener = listener
        self.budget = budget
        self.prices = prices
        self.setup = list(setup)
        self.worker = Worker()
        store.recover(self.artifacts)
        self.ledger = Ledger(run_dir / "ledger.sqlite")
        manifests = [store.read_manifest(path) for path in sorted(self.artifacts.glob("*"))]
        for stage in self.ledger.recover({(m["attempt"], m["key"]): m["seconds"] for m in manifests if m}):
            listener.note(f"{stage}: the last attempt was killed; what it saved is used")
        self.steps: dict[str, Step] = {}

    def close(self) -> None:
        self.worker.close()
        self.ledger.close()

    def all(self, until: str | None, forecast: Callable[[Sequence[Step]], Forecast]) -> Outcome:
        planned = make_plan(self.recipe, self.run_dir, until)
        expected = forecast(planned)
        keep_recipe(self.recipe, self.run_dir)
        if any(step.state != "cached" for step in planned):
            self._keep_plan(plan_json(self.recipe, planned, expected, self.budget))
        self.listener.plan(planned)
        ran, reused = [], []
        for number, step in enumerate(planned):
            step = plan_stage(step.stage, self.recipe, self.run_dir, self.steps)
            if step.state != "cached":
                left = [s.stage.name for s in planned[number:] if s.state != "cached"]
                step = self.one(step, expected.get(step.stage.name, {}), left)
                ran.append(step.stage.name)
            else:
                shutil.rmtree(self.scratch / step.stage.name, ignore_errors=True)  # a kill came before its own cleaning
                self.listener.reused(step)
                reused.append(step.stage.name)
            self.steps[step.stage.name] = step
        return Outcome(self.run_dir, tuple(ran), tuple(reused), self.ledger.spent())

    def _keep_plan(self, plan: dict[str, Any]) -> None:
        """Write plan.json; what was expected of a finished stage before it ran stays as it was."""
        path = self.run_dir / "plan.json"
        earlier = store.read_json(path)["stages"] if path.is_file() else []
        expected = {(stage["stage"], stage["key"]): stage["expected"] for stage in earlier}
        for stage in plan["stages"]:
            if stage["state"] == "cached":
                stage["expected"] = expected.get((stage["stage"], stage["key"]), stage["expected"])
        store.write_json(path, plan)

    def one(self, step: Step, expected: Mapping[str, Any], left: Sequence[str]) -> Step:
        """Run one stage and publish its artifact; returns its step as cached."""
        name = step.stage.name
        not_run = f"; not run: {', '.join(left)}"
        self._check_budget(name, expected, not_run)
        self._check_inputs(step)
        self.listener.started(step)
        began = time.monotonic()
        hardware = self.recipe.file.hardware
        attempt = self.ledger.begin(name, step.key, hardware.device, hardware.count, self.prices)
        state = "failed"
        try:
            out = store.start(self.artifacts, name, attempt)
            ended = self._work(step, attempt, out, began)
            seconds = time.monotonic() - began
            manifest = store.finish(out, self.artifacts / name, self._manifest(step, attempt, ended, seconds))
            state = "done"
        except BudgetStop as error:
            state = "stopped"
            raise BudgetStop(f"{error}{not_run}") from None
        except KeyboardInterrupt:
            state = "stopped"
            raise WorkError(f"{name}: interrupted; the same command resumes{not_run}") from None
        except FathomError as error:
            message = str(error)
            raise type(error)(message if name in message else f"{name}: {message}") from None
        finally:
            if state != "done":
                self.worker.close()
                store.discard(self.artifacts, name, attempt)
            self.ledger.end(attempt, state, time.monotonic() - began)
        shutil.rmtree(self.scratch / name, ignore_errors=True)
        self.listener.finished(step, seconds, ended.metrics)
        return Step(step.stage, step.key, step.parts, step.source, "cached", "", manifest)

    def _check_budget(self, name: str, expected: Mapping[str, Any], not_run: str) -> None:
        if self.budget is None:
            return
        spent = self.ledger.spent()
        at_least = (expected.get("usd") or [0.0])[0]
        if spent >= self.budget or spent + at_least > self.budget:
            raise BudgetStop(
                f"{name}: not started: {dollars(spent)} of the budget of {dollars(self.budget)} is spent"
                f" and this stage would cost at least {dollars(at_least)}{not_run}"
            )

    def _check_inputs(self, step: Step) -> None:
        for name in step.stage.inputs:
            broken = store.damage(self.artifacts / name, self.steps[name].manifest, thorough=True)
            if broken:
                raise WorkError(
                    f"{self.artifacts / name}: damaged: {broken}; restore it, or remove the directory and run again to have it made again"
                )

    def _work(self, step: Step, attempt: int, out: Path, began: float) -> Ended:
        stage, hardware = step.stage, self.recipe.file.hardware
        scratch = self.scratch / stage.name / step.key[:16]
        with store.disk_errors(scratch):
            scratch.mkdir(parents=True, exist_ok=True)
        price = self.prices.devices.get(hardware.device)
        job = {
            "stage": stage.name,
            "setup": self.setup,
            "target": stage.op.target,
            "config_class": stage.op.config,
            "config": stage.config.model_dump(mode="json"),
            "processes": hardware.count if stage.op.one_per_device else 1,
            "preload": stage.op.preload if any(kind == "model" for _, kind, _ in stage_inputs(stage.config)) else (),
            "artifacts": {name: str(self.artifacts / name) for name in stage.inputs},
            "models": {name: self.recipe.file.models[name] for name in stage.models},
            "out": str(out),
            "scratch": str(scratch),
            "log": str(self.run_dir / "logs" / f"{stage.name}.log"),
            "seed": self.recipe.file.seed,
            "ledger": str(self.ledger.path),
            "attempt": attempt,
            "began": began,
            "usd_per_second": price.usd_per_hour * hardware.count / 3600 if price else None,
            "budget_usd": self.budget,
            "prices": self.prices.model_dump(mode="json"),
        }
        return self.worker.run(
            job,
            on_progress=lambda done, total, note: self.listener.progress(step, done, total, note),
            on_show=lambda segments: self.listener.show(step, segments),
            on_tick=lambda: self.ledger.beat(attempt, time.monotonic() - began),
            interval=HEARTBEAT,
        )

    def _manifest(self, step: Step, attempt: int, ended: Ended, seconds: float) -> dict[str, Any]:
        hardware = self.recipe.file.hardware
        return {
            "stage": step.stage.name,
            "op": step.stage.op_name,
            "key": step.key,
            "parts": step.parts,
            "contents": {name: store.content(self.steps[name].manifest) for name in step.stage.inputs},
            "source": step.source,
            "config": step.stage.config.model_dump(mode="json"),
            "metrics": ended.metrics,
            "attempt": attempt,
            "seconds": round(seconds, 3),
            "cpu_seconds": ended.cpu_seconds,
            "peak_bytes": ended.peak_bytes,
            "device": hardware.device,
            "count": hardware.count,
            "setup": self.setup,
            "versions": versions(),
        }


def versions() -> dict[str, str]:
    """What the artifact was made with."""
    found = {"fathom": fathom.__version__, "python": platform.python_version()}
    for package in ("torch", "transformers", "pydantic"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def plan_json(recipe: Recipe, steps: Sequence[Step], expected: Forecast, budget: float | None) -> dict[str, Any]:
    """What `plan.json` holds: the plan as it was when the run started."""
    return {
        "recipe": recipe.file.recipe,
        "path": recipe.path,
        "sets": list(recipe.sets),
        "seed": recipe.file.seed,
        "budget_usd": budget,
        "hardware": recipe.file.hardware.model_dump(),
        "stages": [
            {
                "stage": step.stage.name,
                "op": step.stage.op_name,
                "inputs": [*step.stage.inputs, *step.stage.models],
                "key": step.key,
                "state": step.state,
                "reason": step.reason,
                "expected": expected.get(step.stage.name),
            }
            for step in steps
        ],
    }


def keep_recipe(recipe: Recipe, run_dir: Path) -> None:
    """Write the resolved recipe into the run directory, where it can be run again as it is."""
    text = dump(recipe.values)
    path = run_dir / "recipe.yaml"
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        store.write_text(path, text)
