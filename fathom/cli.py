"""The command line: parse and call, nothing else. Every import of work happens inside a command.

Exit codes: 0 ok, 1 failed work, 2 wrong input with one clear line.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from fathom.errors import FathomError, InputError

app = typer.Typer(
    name="fathom",
    help="From problems and a base model to a better reasoning model, on a budget, with proof.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

RecipePath = Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe file.")]
ModelName = Annotated[
    str, typer.Argument(metavar="MODEL", help="A model directory, a hub name, or one shipped with Fathom.")
]
FinishedRun = Annotated[Path, typer.Argument(metavar="RUN", help="A run directory.")]
RunDir = Annotated[Path | None, typer.Option(metavar="DIR", help="Run directory; default runs/<recipe>.")]
NewRunDir = Annotated[Path, typer.Option("--out", metavar="DIR", help="Run directory to write.")]
StageFile = Annotated[
    Path | None, typer.Argument(metavar="CONFIG", help="YAML with what stands under a stage's name in a recipe.")
]
Sets = Annotated[
    list[str], typer.Option("--set", metavar="KEY=VALUE", help="Set a value, as in v06.epochs=2 (repeatable).")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for a program to read.")]
INTERRUPTED = 130  # also what typer makes of a KeyboardInterrupt inside a command
CURATE = ("dedup", "decontaminate", "solve_rate", "select", "pairs", "mix", "export")
Unsafe = Annotated[
    bool, typer.Option("--unsafe-exec", help="Run model-written programs without isolation, as if they were yours.")
]


def main() -> None:
    """Entry point: runs a command and turns errors into one line and an exit code."""
    _open_streams()
    try:
        status = app(standalone_mode=False)
        sys.stdout.flush()
    except FathomError as error:
        _fail(str(error), 2 if isinstance(error, InputError) else 1)
    except (typer.Abort, KeyboardInterrupt):
        status = INTERRUPTED
    except BrokenPipeError:
        _drop_output()
        sys.exit(1)
    except OSError as error:
        if error.filename is None:
            if error.errno != errno.ENOSPC:
                raise
            _drop_output()
        _fail(f"{error.filename or 'the output'}: {error.strerror}", 2)
    except Exception as error:
        _usage_error(error)
        raise
    if status == INTERRUPTED:
        _fail("interrupted; the same command resumes", 1)
    sys.exit(status if isinstance(status, int) else 0)


def _open_streams() -> None:
    """Let /dev/null stand for a standard stream that the caller has closed: the next file or socket would get its number."""
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        if getattr(sys, name) is None:
            null = os.open(os.devnull, os.O_RDWR)
            if null != number:
                os.dup2(null, number)
                os.close(null)
            os.set_inheritable(number, True)
            setattr(sys, name, open(number, mode, closefd=False))


def _usage_error(error: Exception) -> None:
    """Exit with 2 when the command line itself is wrong (unknown option, missing argument)."""
    code = getattr(error, "exit_code", None)
    if type(error).__name__ == "NoArgsIsHelpError":
        print(error.format_message(), file=sys.stderr)
        sys.exit(2)
    if code is not None and hasattr(error, "format_message"):
        _fail(error.format_message(), 2)


def _drop_output() -> None:
    """Forget what stdout still holds and can't write; Python would complain of it at its end, and exit with 120."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _fail(message: str, code: int) -> None:
    print(f"fathom: {message}", file=sys.stderr)
    sys.exit(code)


@app.command()
def run(
    recipe: RecipePath,
    out: RunDir = None,
    sets: Sets = [],  # noqa: B006 (typer reads it, nothing changes it)
    budget: Annotated[
        float | None, typer.Option(metavar="USD", help="Hard stop in dollars, instead of the recipe's.")
    ] = None,
    until: Annotated[
        str | None, typer.Option(metavar="STAGE", help="Run this stage and what it needs, no more.")
    ] = None,
    unsafe_exec: Unsafe = False,
) -> None:
    """Run or resume a recipe; finished stages are reused. Ends with the report and the model directory.

    Example: fathom run recipes/fathom-r1-tiny.yaml --set seed=1 --out runs/seed1
    """
    from fathom import commands

    commands.run(recipe, out, sets, budget, until, unsafe_exec)


@app.command()
def plan(
    recipe: RecipePath,
    gpu: Annotated[str | None, typer.Option(help="A device of the price file: h100, h200, a100, cpu.")] = None,
    count: Annotated[int | None, typer.Option(help="How many of them.", min=1)] = None,
    out: RunDir = None,
    sets: Sets = [],  # noqa: B006
    as_json: Json = False,
) -> None:
    """Say what a run would do: cached, stale or to run, with tokens, memory, hours and dollars.

    Example: fathom plan recipes/fathom-r1-14b.yaml --gpu h200 --count 8
    """
    from fathom import commands

    commands.plan(recipe, out, sets, gpu, count, as_json)


@app.command("eval")
def evaluate(
    model: Annotated[
        str | None, typer.Argument(metavar="MODEL", help="A model directory, or a hub name (org/name[@revision]).")
    ] = None,
    benchmark: Annotated[
        str | None, typer.Option(metavar="NAME[,NAME]", help="Known benchmarks, or .jsonl files of problems.")
    ] = None,
    stored: Annotated[
        Path | None,
        typer.Option(
            "--from", metavar="FILE", help="Instead of MODEL: stored generations, graded again without a GPU."
        ),
    ] = None,
    samples: Annotated[int, typer.Option(help="Chains per problem.", min=1)] = 64,
    max_tokens: Annotated[int, typer.Option(help="Token budget of a chain.", min=1)] = 16384,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Run directory; default runs/eval-<model>.")] = None,
    sets: Sets = [],  # noqa: B006
    as_json: Json = False,
    unsafe_exec: Unsafe = False,
) -> None:
    """Measure a model, or stored generations: pass@1, pass@k and cons@k with intervals.

    FILE is a rollouts.jsonl (its problems lie beside it, or are named by --benchmark), lighteval
    details, lm-eval samples, or rows with gold and prediction.

    Example: fathom eval runs/fathom-r1-tiny/model --benchmark aime25 --samples 16 --max-tokens 512
    """
    from fathom import commands

    if (model is None) == (stored is None):
        raise InputError("eval: expected a MODEL or --from FILE, one of the two")
    if stored:
        commands.regrade(stored, benchmark, out, as_json, unsafe_exec)
    elif benchmark is None:
        raise InputError("eval: a MODEL needs --benchmark")
    else:
        commands.evaluate(model, benchmark, samples, max_tokens, out, sets, as_json, unsafe_exec)


BY_HAND = {
    "sft": "Fine-tune a model on training rows; the model is OUT/model.\n\nExample: fathom sft v06.yaml --set examples=runs/r1/artifacts/band --out runs/v06",
    "grpo": "Train a model by reinforcement on problems with answers; the model is OUT/model.\n\nExample: fathom grpo rs.yaml --set problems=runs/r1/artifacts/seldom --out runs/rs",
    "prefer": "Train a model on pairs of a better and a worse answer (SimPO, DPO); the model is OUT/model.\n\nExample: fathom prefer flash.yaml --set pairs=runs/flash/artifacts/pairs --out runs/by-hand",
    "rollout": "Sample and grade chains for problems.\n\nExample: fathom rollout chains.yaml --set problems=problems.jsonl --set samples=4 --out runs/chains",
}
"""Stages that take their inputs as paths, and what `--help` says of each."""


def _by_hand(op: str) -> None:
    @app.command(op, help=BY_HAND[op])
    def command(out: NewRunDir, config: StageFile = None, sets: Sets = []) -> None:  # noqa: B006
        from fathom import commands

        commands.by_hand(op, config, out, sets)


for _op in BY_HAND:
    _by_hand(_op)


@app.command()
def merge(
    models: Annotated[list[str], typer.Argument(help="Two or more model directories or hub names.")],
    out: NewRunDir,
    sets: Sets = [],  # noqa: B006
) -> None:
    """Average models linearly; the merged model is OUT/model.

    Example: fathom merge runs/v06/model runs/v04/model --set weights=[0.5,0.5] --out runs/merged
    """
    from fathom import commands

    commands.by_hand("merge", None, out, sets, {"models": models})


@app.command()
def gguf(model: ModelName, out: NewRunDir, sets: Sets = []) -> None:  # noqa: B006
    """Write a model as GGUF for llama.cpp and Ollama; the files are in OUT/artifacts/gguf.

    Example: fathom gguf runs/fathom-r1-tiny/model --set types=[q8_0,bf16] --out runs/gguf
    """
    from fathom import commands

    commands.by_hand("gguf", None, out, sets, {"model": model})


@app.command()
def curate(
    op: Annotated[str, typer.Argument(help=f"{', '.join(CURATE)}.")],
    out: NewRunDir,
    config: StageFile = None,
    sets: Sets = [],  # noqa: B006
) -> None:
    """Run one curation stage over problems.

    Example: fathom curate select band.yaml --set problems=runs/r1/artifacts/measured --out runs/band
    """
    from fathom import commands

    if op not in CURATE:
        raise InputError(f"curate: unknown stage {op!r}; known: {', '.join(CURATE)}")
    commands.by_hand(op, config, out, sets)


@app.command()
def grade(
    file: Annotated[Path, typer.Argument(help="JSON Lines with `gold` and `prediction` (or problem and text).")],
    out: Annotated[Path | None, typer.Option(help="Write every row with its verdict here.")] = None,
    as_json: Json = False,
    unsafe_exec: Unsafe = False,
) -> None:
    """Grade recorded answers, line by line.

    Example: fathom grade answers.jsonl --out verdicts.jsonl
    """
    from fathom.commands import allow_unsafe, show
    from fathom.graders.files import describe, grade_file

    allow_unsafe(unsafe_exec)
    show(grade_file(file, out), as_json, describe)


@app.command()
def compare(
    first: FinishedRun,
    second: Annotated[Path, typer.Argument(metavar="RUN", help="Another one, on the same problems.")],
    as_json: Json = False,
) -> None:
    """Test the difference of two runs, paired by problem.

    Example: fathom compare runs/seed0 runs/seed1
    """
    from fathom.commands import show
    from fathom.evaluate import describe
    from fathom.evaluate.compare import compare_runs

    show(compare_runs(first, second), as_json, describe.comparison)


@app.command()
def solve(
    question: Annotated[str, typer.Argument(metavar="QUESTION", help="A problem in words, or a .jsonl file of them.")],
    model: ModelName = "embedded:fathom-tiny-base",
    samples: Annotated[int, typer.Option(help="Chains that vote, at most.", min=1)] = 64,
    max_tokens: Annotated[int | None, typer.Option(help="Token budget of a chain.", min=1)] = None,
    sets: Sets = [],  # noqa: B006
    as_json: Json = False,
) -> None:
    """Answer by majority vote, and stop sampling when the rest of the votes can't change the answer.

    With --set error=0.01 it stops sooner, at a chance of 1% at most of missing the majority's answer.

    Example: fathom solve "What is 17 + 4 * 5?" --samples 16
    """
    from fathom import commands

    commands.solve(question, model, samples, max_tokens, sets, as_json)


@app.command()
def chat(
    model: ModelName = "embedded:fathom-tiny-base",
    sets: Sets = [],  # noqa: B006
) -> None:
    """Talk to a model on the terminal: answers stream, thinking is dimmed or folded, several chains may vote.

    Example: fathom chat runs/fathom-r1-tiny/model --set votes=16
    """
    from fathom import commands

    commands.chat(model, sets)


@app.command()
def serve(
    model: ModelName = "embedded:fathom-tiny-base",
    ui: Annotated[bool, typer.Option("--ui", help="With a web page to chat on, at /ui.")] = False,
    sets: Sets = [],  # noqa: B006
) -> None:
    """Serve a model over an OpenAI-compatible API, on this machine alone unless --set host=... and keys=... say otherwise.

    Example: fathom serve runs/fathom-r1-tiny/model --ui --set port=8001
    """
    from fathom import commands

    commands.serve(model, sets, ui)


@app.command()
def claim(
    text: Annotated[str, typer.Argument(metavar="CLAIM", help="A published number, in words.")],
    run: Annotated[Path | None, typer.Argument(metavar="RUN", help="A run whose chains are the evidence.")] = None,
    as_json: Json = False,
) -> None:
    """Say whether a published number is consistent with stored rollouts, or with published figures alone.

    Example: fathom claim "Sky-T1-32B-Preview AIME24 43.3" runs/sky-t1
    """
    from fathom.commands import show
    from fathom.evaluate import describe
    from fathom.evaluate.claims import check_claim

    show(check_claim(text, run), as_json, describe.claim)


@app.command()
def why(
    row: Annotated[str, typer.Argument(metavar="ROW", help="Id of a problem or of a training row.")],
    run: Annotated[Path | None, typer.Argument(metavar="RUN", help="A run; default the only one in runs.")] = None,
    as_json: Json = False,
) -> None:
    """Tell a row's whole way through a run: source, stages, verdicts, solve rate, why it was removed, what used it.

    Example: fathom why gen-train-fractions-d07-000079 runs/fathom-r1-tiny
    """
    from fathom.commands import show
    from fathom.report import why, why_text

    show(why.why(row, run), as_json, why_text.describe)


@app.command()
def report(run: FinishedRun) -> None:
    """Write report.md and report.html again, from files alone.

    Example: fathom report runs/fathom-r1-tiny
    """
    from fathom import commands

    commands.report(run)


@app.command()
def publish(
    run: FinishedRun,
    repo: Annotated[
        str | None, typer.Option(metavar="ORG/NAME", help="Send it there; without this, nothing leaves the machine.")
    ] = None,
    sets: Sets = [],  # noqa: B006
    as_json: Json = False,
) -> None:
    """Show what a run's model looks like on the Hugging Face hub, and with --repo and a token in HF_TOKEN send it.

    Example: fathom publish runs/fathom-r1-tiny --repo me/tiny-reasoner --set private=false
    """
    from fathom import commands

    commands.publish(run, repo, sets, as_json)


@app.command()
def doctor(as_json: Json = False) -> None:
    """Say what this machine can run, and what keeps it from the rest.

    Example: fathom doctor
    """
    from fathom.commands import show
    from fathom.doctor import describe, examine

    show(examine(), as_json, describe)


@app.command()
def sandbox(
    file: Annotated[Path, typer.Argument(metavar="FILE.py", help="The untrusted program.")],
    stdin: Annotated[Path | None, typer.Option(help="File that becomes its standard input.")] = None,
    seconds: Annotated[float, typer.Option(help="CPU time it may use.", min=0.1)] = 3.0,
    memory_mb: Annotated[int, typer.Option(help="Memory it may use.", min=16)] = 1024,
    unsafe_exec: Unsafe = False,
) -> None:
    """Run one untrusted program exactly as the code grader would; prints status, output and usage as JSON.

    Example: fathom sandbox solution.py --stdin input.txt --seconds 2
    """
    from fathom.commands import allow_unsafe, show
    from fathom.graders.sandbox import run_program

    allow_unsafe(unsafe_exec)
    show(run_program(file, stdin, seconds, memory_mb))
