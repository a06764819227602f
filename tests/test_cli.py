"""The command line: exit codes, one-line errors, an example per command, and frozen flags."""

from __future__ import annotations

import inspect
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import typer
from typer.main import get_command

from fathom.cli import app, main, sandbox
from fathom.commands import one_stage
from fathom.errors import InputError
from fathom.graders.code import LIMITS
from fathom.graders.sandbox import doctor as sandbox_doctor
from fathom.graders.sandbox.job import Limits
from fathom.records import Problem, Rollout, write_jsonl

ROOT = Path(__file__).parents[1]
COMMANDS = get_command(app).commands


def fathom(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "NO_COLOR": "1"}
    return subprocess.run(
        [sys.executable, "-m", "fathom", *arguments],
        cwd=cwd or ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


FROZEN = {
    "run": {"--out", "--set", "--budget", "--until", "--unsafe-exec"},
    "plan": {"--gpu", "--count", "--out", "--set", "--json"},
    "eval": {
        *("--benchmark", "--samples", "--max-tokens", "--from"),
        *("--out", "--set", "--json", "--unsafe-exec"),
    },
    "sft": {"--out", "--set"},
    "grpo": {"--out", "--set"},
    "prefer": {"--out", "--set"},
    "merge": {"--out", "--set"},
    "gguf": {"--out", "--set"},
    "curate": {"--out", "--set"},
    "rollout": {"--out", "--set"},
    "grade": {"--out", "--json", "--unsafe-exec"},
    "compare": {"--json"},
    "claim": {"--json"},
    "solve": {"--samples", "--max-tokens", "--set", "--json"},
    "chat": {"--set"},
    "serve": {"--set", "--ui"},
    "report": set(),
    "publish": {"--repo", "--set", "--json"},
    "why": {"--json"},
    "doctor": {"--json"},
    "sandbox": {"--stdin", "--seconds", "--memory-mb", "--unsafe-exec"},
}


def test_flags_are_frozen():
    """New knobs go into recipes and --set; whoever changes this table has changed the promise of the CLI."""
    flags = {
        name: {option for parameter in command.params for option in parameter.opts if option.startswith("--")}
        - {"--help"}
        for name, command in COMMANDS.items()
    }
    assert flags == FROZEN


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_shows_an_example(name):
    assert f"Example: fathom {name} " in f"{COMMANDS[name].help} "


def test_help_is_the_answer_to_no_arguments():
    finished = fathom("--help")
    assert finished.returncode == 0
    assert all(name in finished.stdout for name in COMMANDS)


RECIPE = str(Path(__file__).parent.parent / "recipes" / "fathom-r1-tiny.yaml")
WRONG = [
    (["rnu"], "No such command 'rnu'. Did you mean"),
    (["run"], "Missing argument 'RECIPE'"),
    (["run", "nowhere.yaml"], "nowhere.yaml: no such file"),
    (["run", "."], ".: is a directory, expected a YAML file"),
    (["run", "x.yaml", "--budget", "much"], "Invalid value for '--budget'"),
    (["plan", "nowhere.yaml"], "nowhere.yaml: no such file"),
    (["report", "nowhere"], "nowhere: no such run directory"),
    (["curate", "dedupe", "--out", "x"], "unknown stage 'dedupe'"),
    (["merge", "a-model", "--out", "x"], "models"),
    (["eval"], "eval: expected a MODEL or --from FILE"),
    (["eval", "a-model", "--from", "x.jsonl"], "eval: expected a MODEL or --from FILE"),
    (["eval", "a-model"], "eval: a MODEL needs --benchmark"),
    (["eval", "--from", "nowhere.jsonl"], "nowhere.jsonl: no such file"),
    (["eval", "--from", "x.jsonl", "--benchmark", "aime25"], "--benchmark aime25: no such file"),
    (["grade", "nowhere.jsonl"], "nowhere.jsonl: no such file"),
    (["grade", "."], ".: can't be read (Is a directory)"),
    (["compare", "here", "there"], "here: no rollouts.jsonl here"),
    (["claim", "all is well"], "claim"),
    (["solve", " "], "solve: the question is empty"),
    (["solve", "nowhere.jsonl"], "nowhere.jsonl: no such file"),
    (["solve", "."], ".: expected a question in words, or a file of them that ends in .jsonl"),
    (["solve", "\udcff?"], "solve: the question is not text in UTF-8"),
    (["solve", "1 + 1?", "~nobody-of-this-name/model"], "~nobody-of-this-name/model: there is no such user"),
    (["solve", "1 + 1?", "--set", "sampling.temperature=1e999"], "sampling.temperature: expected a finite number"),
    (
        ["solve", "1 + 1?", "--set", "engine.device=tpu"],
        "engine.device=tpu: engine.device: expected 'auto', 'cpu' or 'cuda'",
    ),
    (["solve", "1 + 1?", "nowhere"], "solve: nowhere: no such directory"),
    (["solve", "1 + 1?", "--set", "samples=0"], "--set samples=0: samples: expected greater than or equal to 1"),
    (["solve", "1 + 1?", "--set", "engine.kind=http"], "fathom solve: engine: Input tag 'http'"),
    (["prefer", "--out", "x", "--set", "pairs=5", "--set", "model=m"], "pairs: expected a valid string, got 5"),
    (
        ["grpo", "--out", "x", "--set", "model=m", "--set", "problems=p", "--set", "batches=1", "--set", "stages=3"],
        "unknown key 'stages'",
    ),
    (
        ["grpo", "--out", "x", "--set", "model=m", "--set", "problems=p", "--set", "batches=1", "--set", "models.a=3"],
        "unknown key 'models'; did you mean 'model'?",
    ),
    (["run", RECIPE, "--budget", "inf"], "--budget inf: expected a positive number of dollars"),
    (["plan", RECIPE, "--gpu", "h20"], "--gpu h20: the price file has no such device; did you mean 'h200'?"),
    (
        ["plan", RECIPE, "--set", "band.solve_rate={min: 0.9, max: 0.1}"],
        "band.solve_rate={min: 0.9, max: 0.1}: stage 'band'",
    ),
    (["plan", RECIPE, "--set", "band.solve_rate={min: 0.5, below: 0.5}"], "solve_rate: no number is >= 0.5 and < 0.5"),
    (["why", "a-row"], "why: name the RUN to look in: there is none in runs"),
    (["why", "a-row", "nowhere"], "nowhere: not a run directory"),
    (["sandbox", "nowhere.py"], "nowhere.py: No such file"),
]


@pytest.mark.parametrize(("arguments", "expected"), WRONG, ids=[" ".join(a) for a, _ in WRONG])
def test_wrong_input_is_one_line_and_exit_code_2(arguments, expected, tmp_path, monkeypatch, capfd):
    """The whole program but for the interpreter's start: `main` reads the arguments and exits."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["fathom", *arguments])
    with pytest.raises(SystemExit) as exit:
        main()
    told = capfd.readouterr()
    assert exit.value.code == 2, told.err
    assert expected in told.err
    assert told.err.startswith("fathom: ") and told.err.count("\n") == 1
    assert told.out == ""
    assert list(tmp_path.iterdir()) == []


def test_a_process_says_it_in_one_line_too(tmp_path):
    finished = fathom("run", "nowhere.yaml", cwd=tmp_path)
    assert (finished.returncode, finished.stdout) == (2, "")
    assert finished.stderr == "fathom: nowhere.yaml: no such file\n"


def test_main_lets_a_bug_show_its_traceback(monkeypatch):
    from fathom import cli

    def broken(**_):
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(cli, "app", broken)
    with pytest.raises(ZeroDivisionError):
        cli.main()


@pytest.mark.parametrize(("error", "code"), [("InputError", 2), ("WorkError", 1), ("BudgetStop", 1)])
def test_exit_codes(monkeypatch, capsys, error, code):
    from fathom import cli, errors

    def failing(**_):
        raise getattr(errors, error)("x.yaml:3: what is wrong")

    monkeypatch.setattr(cli, "app", failing)
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == code
    assert capsys.readouterr().err == "fathom: x.yaml:3: what is wrong\n"


@pytest.mark.parametrize("unbuffered", ["", "1"], ids=["buffered", "unbuffered"])
def test_a_full_disk_under_the_output_is_one_line(unbuffered):
    command = [sys.executable, "-m", "fathom", "plan", RECIPE]
    environment = os.environ | {"PYTHONUNBUFFERED": unbuffered}
    with open("/dev/full", "w") as full:
        finished = subprocess.run(
            command, stdout=full, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=environment, check=False
        )
    assert (finished.returncode, finished.stderr) == (2, "fathom: the output: No space left on device\n")


def test_ctrl_c_inside_a_command_is_told(monkeypatch, capsys):
    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("fathom.commands.plan", interrupted)
    monkeypatch.setattr(sys, "argv", ["fathom", "plan", RECIPE])
    with pytest.raises(SystemExit) as exit:
        main()
    assert (exit.value.code, capsys.readouterr().err) == (1, "fathom: interrupted; the same command resumes\n")


def test_ctrl_c_is_exit_code_1(monkeypatch, capsys):
    from fathom import cli

    def interrupted(**_):
        raise typer.Abort

    monkeypatch.setattr(cli, "app", interrupted)
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 1


DATA_RECIPE = """
recipe: data
stages:
  problems: {op: sources, sources: [{name: generated, count: 40, chains: 2}]}
  unique:   {op: dedup, problems: problems}
  checked:  {op: grade, problems: unique, chains: problems}
"""


def test_a_recipe_runs_resumes_and_plans(tmp_path):
    (tmp_path / "data.yaml").write_text(DATA_RECIPE)
    planned = json.loads(fathom("plan", "data.yaml", "--json", cwd=tmp_path).stdout)
    assert [(s["stage"], s["state"]) for s in planned["stages"]] == [
        (n, "to run") for n in ("problems", "unique", "checked")
    ]
    assert planned["stages"][0]["expected"]["rows"] == [40, 40, 40]

    finished = fathom("run", "data.yaml", cwd=tmp_path)
    assert finished.returncode == 0, finished.stderr
    run_dir = tmp_path / "runs" / "data"
    made = {p.relative_to(run_dir).as_posix() for p in run_dir.iterdir() if not p.name.startswith(".")}
    assert made >= {
        "artifacts",
        "ledger.sqlite",
        "plan.json",
        "recipe.yaml",
        "results.json",
        "report.md",
        "report.html",
    }

    def again() -> float:
        began = time.perf_counter()
        assert "nothing to do: all 3 stages are finished" in fathom("run", "data.yaml", cwd=tmp_path).stdout
        return time.perf_counter() - began

    assert any(again() < 3 for _ in range(3))
    assert "nothing to do" in fathom("plan", "data.yaml", cwd=tmp_path).stdout
    stale = fathom("plan", "data.yaml", "--set", "unique.similarity=0.9", cwd=tmp_path).stdout
    assert "similarity: 0.5 -> 0.9" in stale


def test_one_stage_by_hand_takes_paths(tmp_path):
    (tmp_path / "data.yaml").write_text(DATA_RECIPE)
    assert fathom("run", "data.yaml", "--until", "problems", "--out", "first", cwd=tmp_path).returncode == 0
    given = ["--set", "problems=first/artifacts/problems", "--out", "second"]
    finished = fathom("curate", "dedup", *given, "--set", "similarity=0.8", cwd=tmp_path)
    assert finished.returncode == 0, finished.stderr
    assert (tmp_path / "second/artifacts/dedup/problems.jsonl").is_file()
    assert "finished already" in fathom("curate", "dedup", *given, "--set", "similarity=0.8", cwd=tmp_path).stdout
    wrong = fathom("curate", "dedup", *given, "--set", "similarty=0.8", cwd=tmp_path)
    assert (wrong.returncode, "did you mean 'similarity'?" in wrong.stderr) == (2, True)


def test_what_is_given_by_hand_is_told_apart_and_called_by_the_right_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in ("a/b", "a-b", "ж"):
        Path(folder).mkdir(parents=True)
    Path("mine.jsonl").touch()
    body = {"problems": "a/b", "chains": "a-b"}
    stages = one_stage("pairs", "pairs", body, []).values["stages"]
    assert [stages[stages["pairs"][field]]["path"] for field in ("problems", "chains")] == ["a/b", "a-b"]
    stages = one_stage("pairs", "pairs", {"problems": "ж", "chains": "ж"}, []).values["stages"]
    assert (stages["pairs"]["problems"], stages["pairs"]["chains"]) == ("given-path", "given-path")
    with pytest.raises(
        InputError, match=r"^mine\.jsonl: problems: expected a file called problems\.jsonl, or a directory"
    ):
        one_stage("pairs", "pairs", {"problems": "mine.jsonl", "chains": "a-b"}, [])


def test_a_14b_plan_needs_no_network(tmp_path):
    recipe = ROOT / "recipes" / "fathom-r1-14b.yaml"
    began = time.perf_counter()
    finished = fathom("plan", str(recipe), "--gpu", "h200", "--count", "8", "--json", cwd=tmp_path)
    assert finished.returncode == 0, finished.stderr
    assert time.perf_counter() - began < 60
    stages = json.loads(finished.stdout)["stages"]
    trained = [s for s in stages if s["op"] == "sft"]
    assert len(trained) >= 2
    for stage in stages:
        low, expected, high = stage["expected"]["usd"]
        assert 0 < low < expected < high, stage["stage"]
    sampled = [s for s in stages if s["op"] in ("rollout", "evaluate")]
    assert all(0 < s["expected"]["peak_gib"] < 141 and s["expected"]["tokens"] for s in [*trained, *sampled])
    (rated,) = (s for s in stages if s["op"] == "annotate")
    assert "calls to o3-mini: $" in rated["expected"]["note"]


def test_doctor_says_what_can_run():
    finished = fathom("doctor", "--json")
    assert finished.returncode == 0, finished.stderr
    found = json.loads(finished.stdout)
    names = {finding["name"] for finding in found["findings"]}
    assert {"cores", "memory", "disk", "packages", "embedded models"} <= names
    assert {"sandbox: system-call filter", "sandbox: namespaces", "sandbox: trial program"} <= names
    assert all(finding["detail"] for finding in found["findings"])
    assert len(found["can"]) == 3


STORED = [
    {"id": "a", "gold": "1/2", "prediction": r"\boxed{0.5}", "correct": True},
    {"id": "b", "gold": "7", "prediction": r"\boxed{8}", "correct": True},
]


def test_stored_generations_are_graded_again(tmp_path):
    (tmp_path / "stored.jsonl").write_text("".join(json.dumps(row) + "\n" for row in STORED))
    told = fathom("grade", "stored.jsonl", "--out", "verdicts.jsonl", cwd=tmp_path)
    assert told.stdout.startswith("2 rows, 2 predictions: 1 correct, 1 wrong, 0 ungradable; accuracy 50.00%\n")
    verdicts = (tmp_path / "verdicts.jsonl").read_text().splitlines()
    assert [json.loads(line)["correct"] for line in verdicts] == [True, False]
    assert json.loads(fathom("grade", "stored.jsonl", "--json", cwd=tmp_path).stdout)["accuracy"] == 0.5

    told = fathom("eval", "--from", "stored.jsonl", "--out", "again", cwd=tmp_path)
    assert told.returncode == 0, told.stderr
    assert (
        "50.0%" in told.stdout and "1 of 2 stored verdicts agree" in told.stdout and "b #0: stored True" in told.stdout
    )
    (row,) = json.loads(fathom("eval", "--from", "stored.jsonl", "--json", cwd=tmp_path).stdout)["rows"]
    assert row == json.loads((tmp_path / "again/rows.json").read_text())[0]
    compared = fathom("compare", "again", "again", cwd=tmp_path).stdout
    assert "stored (recorded, 2 problems): unknown 50.0%, unknown 50.0%, +0.0 points" in compared
    assert json.loads(fathom("compare", "again", "again", "--json", cwd=tmp_path).stdout)["rows"][0]["p"] == 1


PROBE = "import os\nprint(os.path.exists('/proc/self'))\n"


def test_sandbox_has_the_code_graders_limits():
    given = {p.name: p.default for p in inspect.signature(sandbox).parameters.values()}
    assert Limits(given["seconds"], given["memory_mb"]) == LIMITS


@pytest.mark.skipif(not all(ok for _, ok, _ in sandbox_doctor()), reason="this machine can't isolate programs")
def test_unsafe_exec_reaches_the_programs_of_every_command_and_nothing_else_does(tmp_path):
    problem = Problem("p", "Print True.", None, "code", tests=[{"kind": "stdin", "input": "", "expected": "True"}])
    (tmp_path / "data").mkdir()
    write_jsonl(tmp_path / "data/problems.jsonl", [problem])
    write_jsonl(tmp_path / "data/rollouts.jsonl", [Rollout("p", 0, PROBE, 1, "stop", "m")])
    (tmp_path / "probe.py").write_text(PROBE)
    (tmp_path / "row.jsonl").write_text(json.dumps({"tests": problem.tests, "prediction": PROBE}) + "\n")
    (tmp_path / "code.yaml").write_text(
        "recipe: code\nstages:\n  data: {op: given, path: data}\n  checked: {op: grade, problems: data, chains: data}\n"
    )
    for unsafe in (False, True):
        flag = ["--unsafe-exec"] if unsafe else []
        found = json.loads(fathom("sandbox", "probe.py", *flag, cwd=tmp_path).stdout)
        assert (found["stdout"], found["sandbox"].startswith("none")) == (f"{unsafe}\n", unsafe)
        graded = fathom("grade", "row.jsonl", "--json", *flag, cwd=tmp_path)
        assert json.loads(graded.stdout)["correct"] == int(unsafe)
        out = f"run-{unsafe}"
        finished = fathom("run", "code.yaml", "--out", out, *flag, cwd=tmp_path)
        assert finished.returncode == 0, finished.stderr
        manifest = json.loads((tmp_path / out / "artifacts/checked/manifest.json").read_text())
        assert manifest["metrics"]["correct"] == int(unsafe)
        assert manifest["setup"] == (["fathom.graders.sandbox:allow_unsafe"] if unsafe else [])
        stored = ["--from", f"{out}/artifacts/checked/rollouts.jsonl", "--benchmark", "data/problems.jsonl"]
        again = fathom("eval", *stored, "--json", *flag, cwd=tmp_path)
        assert json.loads(again.stdout)["rows"][0]["pass1"] == int(unsafe), again.stderr


def test_a_model_is_measured_and_a_program_can_read_the_result(tmp_path):
    row = {"id": "x", "problem": "What is 2 + 3?", "answer": "5"}
    (tmp_path / "mine.jsonl").write_text(json.dumps(row) + "\n")
    sizes = ["--benchmark", "mine.jsonl", "--samples", "2", "--max-tokens", "8"]
    finished = fathom("eval", "embedded:fathom-tiny-base", *sizes, "--out", "run", "--json", cwd=tmp_path)
    assert finished.returncode == 0, finished.stderr
    results = json.loads(finished.stdout)
    assert results == json.loads((tmp_path / "run/results.json").read_text())
    (row,) = results["rows"]
    assert (row["benchmark"], row["problems"], row["samples"], row["max_tokens"]) == ("mine", 1, 2, 8)
    assert (tmp_path / "run/report.html").is_file()


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-"])
def test_a_closed_standard_stream_is_no_trouble(tmp_path, closed):
    """Its number would go to the next socket."""
    (tmp_path / "p.py").write_text("print(4)")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), *sys.path]))}
    command = f"exec {sys.executable} -m fathom sandbox p.py {closed}"
    done = subprocess.run(
        ["sh", "-c", command], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert closed == ">&-" or "OK" in done.stdout
