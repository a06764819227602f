"""The commands that run stages: a recipe, one stage by hand, an evaluation. Glue between recipe, stages and report.

Each is a function of plain values that prints what a person reads; `fathom/cli.py` only parses.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from functools import partial
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fathom.config import input_kind, load_object, map_values, suggest
from fathom.document import Document, apply_set, load_document
from fathom.errors import FathomError, InputError, WorkError
from fathom.prices import load_prices
from fathom.recipe.plan import make_plan
from fathom.recipe.progress import PlainListener, listener
from fathom.recipe.run import Outcome, plan_json, run_recipe
from fathom.recipe.schema import Recipe, RecipeFile, check_recipe, load_recipe
from fathom.stages import OPS
from fathom.store import read_json

if TYPE_CHECKING:
    from fathom.serve.keys import Keys

TOP = tuple(name for name in RecipeFile.model_fields if name not in ("stages", "models"))
"""What `--set` reaches beside the stage in a command of one stage, whose stages and models follow from its inputs."""

ROWS = {
    "problems": "problems.jsonl",
    "chains": "rollouts.jsonl",
    "examples": "examples.jsonl",
    "pairs": "pairs.jsonl",
}
"""The file that a stage reads of an input, by the field that names it."""

_ALLOW_UNSAFE = "fathom.graders.sandbox:allow_unsafe"


def run(
    recipe_path: Path,
    out: Path | None,
    sets: Sequence[str],
    budget: float | None,
    until: str | None,
    unsafe_exec: bool = False,
) -> None:
    """`fathom run`: the graph, then the report."""
    if budget is not None and not 0 < budget < inf:
        raise InputError(f"--budget {budget}: expected a positive number of dollars")
    recipe = load_recipe(recipe_path, OPS, sets)
    run_dir = out or Path("runs") / recipe.file.recipe
    outcome = _run(recipe, run_dir, listener(), budget, until, unsafe_exec)
    if outcome.ran or not (run_dir / "report.html").is_file():
        report(run_dir)
    else:
        print(f"nothing to do: all {len(outcome.reused)} stages are finished in {run_dir}")


def plan(
    recipe_path: Path, out: Path | None, sets: Sequence[str], gpu: str | None, count: int | None, as_json: bool
) -> None:
    """`fathom plan`: what a run would do and cost; starts and downloads nothing."""
    from fathom import estimates
    from fathom.plan_table import plan_table

    sets = [*sets, *([f"hardware.device={gpu}"] if gpu else []), *([f"hardware.count={count}"] if count else [])]
    recipe = load_recipe(recipe_path, OPS, sets)
    if gpu:
        known = load_prices(Path(recipe.file.prices) if recipe.file.prices else None).devices
        if gpu not in known:
            raise InputError(f"--gpu {gpu}: the price file has no such device{suggest(gpu, known)}")
    run_dir = out or Path("runs") / recipe.file.recipe
    steps = make_plan(recipe, run_dir)
    forecast = estimates.forecast(recipe, steps)
    if as_json:
        show(plan_json(recipe, steps, forecast, recipe.file.budget.usd))
    else:
        print(plan_table(recipe, steps, forecast))


def evaluate(
    model: str,
    benchmarks: str,
    samples: int,
    max_tokens: int,
    out: Path | None,
    sets: Sequence[str],
    as_json: bool = False,
    unsafe_exec: bool = False,
) -> None:
    """`fathom eval MODEL`: a one-stage recipe over the op `evaluate`, then its report.

    as_json: print results.json; what the run tells goes to stderr.
    """
    body = {
        "model": model,
        "benchmarks": [_benchmark(name.strip()) for name in benchmarks.split(",") if name.strip()],
        "samples": samples,
        "samplings": [{"max_tokens": max_tokens}],
        "engine": {"kind": "transformers"},
    }
    run_dir = out or Path("runs") / f"eval-{_slug(model)}"
    told = PlainListener(sys.stderr) if as_json else listener()
    outcome = _run(one_stage("evaluate", "eval", body, sets), run_dir, told, unsafe_exec=unsafe_exec)
    if as_json:
        from fathom.report import write

        write(run_dir)
        show(read_json(run_dir / "results.json"))
        return
    report(run_dir)
    if not outcome.ran:
        print(f"nothing to do: the evaluation is finished in {run_dir}")


def regrade(stored: Path, problems: str | None, out: Path | None, as_json: bool, unsafe_exec: bool = False) -> None:
    """`fathom eval --from FILE`: stored generations graded again, here and now.

    problems: a file of problems, for rollouts that don't lie beside theirs.
    """
    from fathom.evaluate import describe
    from fathom.evaluate.regrade import regrade

    if problems is not None and not Path(problems).is_file():
        raise InputError(f"--benchmark {problems}: no such file (with --from it names the problems.jsonl to grade by)")
    allow_unsafe(unsafe_exec)
    show(regrade(stored, Path(problems) if problems else None, out), as_json, describe.regraded)


def by_hand(
    op: str, config: Path | None, out: Path, sets: Sequence[str], body: Mapping[str, Any] | None = None
) -> None:
    """`fathom sft`, `fathom merge`, ...: one stage whose inputs are paths.

    config: a YAML file with what stands under the stage's name in a recipe. body: values from the command line.
    """
    values = dict(load_document(config).values) if config else {}
    if values.setdefault("op", op) != op:
        raise InputError(f"{config}: op: expected {op!r}, got {values['op']!r}")
    del values["op"]
    outcome = _run(one_stage(op, op, {**values, **(body or {})}, sets), out, listener())
    report(out)
    print(f"{'wrote' if outcome.ran else 'finished already:'} {out / 'artifacts' / op}")


def one_stage(op: str, name: str, body: Mapping[str, Any], sets: Sequence[str]) -> Recipe:
    """A recipe of one stage; paths in its input fields become stages (`op: given`) and models of their own."""
    document = Document(f"fathom {name}", {"recipe": name, "stages": {name: {"op": op, **body}}})
    for assignment in sets:
        apply_set(document, assignment, root=("stages", name), known=TOP)
    stages, models = document.values["stages"], document.values.setdefault("models", {})
    for field_name, field in OPS[op].config_class().model_fields.items():
        kind, value = input_kind(field), stages[name].get(field_name)
        if value is None:
            continue
        if kind == "model":
            models |= {spec: spec for spec in _texts(value)}
        elif kind == "data":
            stages[name][field_name] = map_values(value, lambda path, field=field_name: _given(path, field, stages))
    if op in ("sft", "grpo", "prefer", "merge"):
        document.values.setdefault("final", name)
    return check_recipe(document, OPS, sets)


def _given(path: Any, field: str, stages: dict[str, Any]) -> Any:
    """The name of a stage that takes a path in; what is no path is left for validation to name."""
    if not isinstance(path, str):
        return path
    wanted = ROWS.get(field)
    if wanted and Path(path).is_file() and Path(path).name != wanted:
        raise InputError(f"{path}: {field}: expected a file called {wanted}, or a directory that holds one")
    slug = _slug(path) or "path"
    names = (f"given-{slug}-{number}" if number else f"given-{slug}" for number in itertools.count())
    stage = {"op": "given", "path": path}
    name = next(name for name in names if stages.get(name, stage) == stage)
    stages[name] = stage
    return name


def _texts(value: Any) -> list[str]:
    found: list[str] = []
    map_values(value, found.append)
    return [text for text in found if isinstance(text, str)]


def _slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9]+", "-", text).strip("-")


def _benchmark(name: str) -> Any:
    """A known benchmark by its name, or a local file of problems."""
    return {"name": Path(name).stem, "path": name} if name.endswith((".jsonl", ".jsonl.gz")) else name


def _run(
    recipe: Recipe,
    run_dir: Path,
    told: PlainListener,
    budget: float | None = None,
    until: str | None = None,
    unsafe_exec: bool = False,
) -> Outcome:
    from fathom import estimates

    with closing(told):
        try:
            return run_recipe(
                recipe,
                run_dir,
                told,
                budget_usd=budget,
                until=until,
                setup=[_ALLOW_UNSAFE] if unsafe_exec else [],
                forecast=lambda steps: estimates.forecast(recipe, steps),
            )
        except FathomError:
            if (run_dir / "recipe.yaml").is_file() and any((run_dir / "artifacts").glob("[!.]*")):
                told.note(f"what is finished stays in {run_dir}; `fathom report {run_dir}` shows it")
            raise


def solve(
    question: str, model: str, samples: int, max_tokens: int | None, sets: Sequence[str], as_json: bool = False
) -> None:
    """`fathom solve`: the consensus of each question, printed as soon as it is settled."""
    from fathom.engines import open_engine
    from fathom.prompts.ask import ask
    from fathom.recipe.models import locate
    from fathom.serve import consensus, solving

    problems = solving.read_questions(question)
    directory = locate(model, "solve")
    config = solving.configure(directory, samples, max_tokens, sets)
    several = question.endswith(solving.FILES)
    done = []
    with closing(open_engine(config.engine, directory)) as engine, _chain_bar(len(problems) * config.samples) as told:
        draws = config.sampling.sampling(config.seed)
        asked = partial(ask, template=config.prompt, system=config.system)
        try:
            settled = consensus.solve(problems, engine, draws, config.samples, config.error, asked=asked, told=told)
            for result in settled:
                done.append(result)
                if as_json:
                    text = json.dumps(solving.to_json(result), ensure_ascii=False, indent=None if several else 1)
                else:
                    text = solving.describe_row(result) if several else solving.describe(result)
                print(text, flush=True)
        except KeyboardInterrupt:
            raise WorkError(f"interrupted; {len(done)} of {len(problems)} questions are answered") from None
    if several and not as_json:
        print(solving.describe_total(done))


def chat(model: str, sets: Sequence[str]) -> None:
    """`fathom chat`: a conversation on the terminal, or over a pipe."""
    from fathom.api import load
    from fathom.serve.terminal import Terminal, history_file

    with load(model, *sets) as opened:
        Terminal(opened.conversation(), history_file()).run()


def serve(model: str, sets: Sequence[str], ui: bool = False) -> None:
    """`fathom serve`: the OpenAI-compatible server of one model, until it is told to stop. ui: with the web page."""
    from fathom.recipe.models import locate
    from fathom.serve.serving import configure, server_keys

    directory = locate(model, "serve")
    on_the_hub = "/" in model and not Path(model).expanduser().exists()
    name = model.partition("@")[0] if on_the_hub else directory.resolve().name
    config = configure(directory, name, sets)
    keys = server_keys(config, os.environ)
    page = _page(keys) if ui else ()

    from fathom.serve.process import serve

    serve(config, directory, keys, *page)


def _page(keys: Keys) -> tuple[Callable[..., None], tuple[str, ...]]:
    """What mounts the web page, and the paths under which it looks after itself."""
    try:
        from fathom.serve.page import PATH, mount
    except ModuleNotFoundError as error:
        raise InputError(f"--ui: {error.name} is not installed (pip install 'fathom[ui]')") from None
    return partial(mount, keys=keys), (PATH,)


@contextmanager
def _chain_bar(most: int) -> Iterator[Callable[[int], None]]:
    """A bar of drawn chains on stderr while a person watches it; what is printed meanwhile goes above it."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    watched = console.is_terminal
    above = {"redirect_stdout": watched and sys.stdout.isatty(), "redirect_stderr": False}
    with Progress(console=console, disable=not watched, transient=True, **above) as bar:
        task = bar.add_task("chains, at most", total=most)
        yield lambda chains: bar.update(task, completed=chains)


def report(run_dir: Path) -> None:
    """`fathom report`: results.json, report.md, report.html and model/ from the files of a run."""
    from fathom.report import print_summary, write

    if not run_dir.is_dir():
        raise InputError(f"{run_dir}: no such run directory")
    write(run_dir)
    print_summary(run_dir)


def publish(run_dir: Path, repo: str | None, sets: Sequence[str], as_json: bool = False) -> None:
    """`fathom publish`: the tree of what would be sent, what keeps it from going, and with `repo` the push."""
    from fathom.publish import publish
    from fathom.publish.tree import print_tree

    done = publish(run_dir, repo, sets, os.environ)
    if as_json:
        show(
            {
                "folder": str(done.folder),
                "files": dict(done.files),
                "findings": [vars(finding) for finding in done.findings],
                "commit": done.commit,
            }
        )
        return
    print_tree(str(done.folder), done.files)
    for finding in done.findings:
        print(f"not to be sent: {finding.file}: {finding.told}")
    print(
        f"sent: {done.commit}" if done.commit else "nothing was sent; --repo org/name and a token in HF_TOKEN send it"
    )


def allow_unsafe(asked: bool) -> None:
    """`--unsafe-exec` for what this process itself grades; stages hear of it through the runner."""
    if asked:
        load_object(_ALLOW_UNSAFE)()


def show(value: Any, as_json: bool = True, describe: Callable[[Any], str] = str) -> None:
    """Print a result: JSON for a program, its description for a person."""
    print(json.dumps(value, ensure_ascii=False, indent=1) if as_json else describe(value))
