"""The plan: states with their reasons, keys, source closures, and predictions checked against published figures."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from pathlib import Path

import pytest
import toy_stages
from test_recorded_figures import recorded

from fathom import estimates, estimates_training, physics, store
from fathom.errors import InputError
from fathom.plan_table import plan_table
from fathom.prices import load_prices
from fathom.recipe.closure import _find, _read, closure
from fathom.recipe.plan import make_plan
from fathom.recipe.progress import PlainListener
from fathom.recipe.run import run_recipe
from fathom.recipe.schema import load_recipe
from fathom.stages import OPS
from fathom.train.config import SftConfig
from fathom.train.layout import split_packs, waited

ROOT = Path(__file__).parent.parent

GRAPH = """
recipe: toy
stages:
  numbers: {op: count, rows: 20}
  low:     {op: slow, rows: numbers, threshold: 2}
  all:     {op: join, parts: [low]}
"""


@pytest.fixture
def recipe_file(tmp_path):
    path = tmp_path / "toy.yaml"
    path.write_text(GRAPH)
    return path


def states(path, out, *sets):
    steps = make_plan(load_recipe(path, toy_stages.OPS, sets), out)
    return {step.stage.name: (step.state, step.reason) for step in steps}


def test_states_tell_why(recipe_file, tmp_path):
    out = tmp_path / "run"
    assert states(recipe_file, out) == dict.fromkeys(("numbers", "low", "all"), ("to run", ""))
    run_recipe(load_recipe(recipe_file, toy_stages.OPS), out, PlainListener())
    assert states(recipe_file, out) == dict.fromkeys(("numbers", "low", "all"), ("cached", ""))
    assert states(recipe_file, out, "low.threshold=5") == {
        "numbers": ("cached", ""),
        "low": ("stale", "threshold: 2.0 -> 5.0"),
        "all": ("stale", "input low changed"),
    }
    assert states(recipe_file, out, "seed=1")["numbers"] == ("stale", "seed: 0 -> 1")
    (out / "artifacts/numbers/rows.txt").write_text("")
    found = states(recipe_file, out)
    assert found["numbers"][0] == "stale"
    assert found["numbers"][1].startswith("damaged: rows.txt has 0 bytes")
    assert found["low"] == ("stale", "input numbers is made again")


def test_planning_writes_nothing(recipe_file, tmp_path):
    states(recipe_file, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_key_survives_another_order_of_keys_and_another_place(recipe_file, tmp_path):
    other = tmp_path / "sub" / "other.yaml"
    other.parent.mkdir()
    other.write_text("stages:\n  numbers: {rows: 20, op: count}\nrecipe: other-name\n")
    keys = [make_plan(load_recipe(p, toy_stages.OPS), tmp_path)[0].key for p in (recipe_file, other)]
    assert keys[0] == keys[1]


def test_a_models_files_enter_the_key(recipe_file, tmp_path):
    model = tmp_path / "base"
    model.mkdir()
    (model / "config.json").write_text("{}")
    (model / "model.safetensors").write_text("weights")
    sets = (f"models.base={model}", "all.model=base")

    def key():
        store.hash_path.cache_clear()
        return make_plan(load_recipe(recipe_file, toy_stages.OPS, sets), tmp_path / "run")[-1].key

    first = key()
    assert key() == first
    (model / "model.safetensors").write_text("weightS")
    assert key() != first


# ------------------------------------------------------------------------------ code that changed

PACKAGE = {
    "__init__.py": "",
    "stage.py": "from pathlib import Path\nfrom closurepkg import helper\n\n\ndef run(x):\n    from closurepkg.lazy import late\n    return helper.twice(late(x))\n",
    "helper.py": "from .deep.constant import FACTOR\n\n\ndef twice(x):\n    return FACTOR * x\n",
    "lazy.py": "def late(x):\n    return x\n",
    "deep/__init__.py": "",
    "deep/constant.py": "FACTOR = 2\n",
    "deep/prompt.txt": "Solve it.",
    "unrelated.py": "X = 1\n",
}


@pytest.fixture
def package(tmp_path, monkeypatch):
    for name, text in PACKAGE.items():
        path = tmp_path / "closurepkg" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    yield tmp_path / "closurepkg"
    _find.cache_clear()
    _read.cache_clear()


def fresh_closure():
    _find.cache_clear()
    _read.cache_clear()
    return closure("closurepkg.stage")


def test_closure_follows_imports_also_lazy_and_relative_ones(package):
    modules = ("", ".stage", ".helper", ".lazy", ".deep", ".deep.constant")
    assert set(fresh_closure()) == {f"closurepkg{module}" for module in modules}
    assert "closurepkg" not in sys.modules


SEEN = [
    ("deep/constant.py", "FACTOR = 3\n"),
    ("lazy.py", "def late(x):\n    return -x\n"),
    ("deep/prompt.txt", "Solve!"),
]
UNSEEN = [
    ("helper.py", '"""What it is."""\nfrom .deep.constant import FACTOR\n\ndef twice(x):  # doubles\n    """Twice."""\n    return (FACTOR * x)\n'),
    ("unrelated.py", "X = 2\n"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "text"), SEEN)
def test_closure_sees_what_matters(package, name, text):
    before = fresh_closure()
    (package / name).write_text(text)
    assert fresh_closure() != before


@pytest.mark.parametrize(("name", "text"), UNSEEN)
def test_closure_overlooks_comments_layout_and_strangers(package, name, text):
    before = fresh_closure()
    (package / name).write_text(text)
    assert fresh_closure() == before


def test_changed_code_is_told_and_reused_unless_strict(recipe_file, tmp_path):
    out = tmp_path / "run"
    run_recipe(load_recipe(recipe_file, toy_stages.OPS), out, PlainListener())
    path = out / "artifacts/low" / store.MANIFEST
    store.write_json(path, {**json.loads(path.read_text()), "source": "another version of the code"})
    assert states(recipe_file, out)["low"] == ("cached", "code changed since")
    assert states(recipe_file, out)["all"] == ("cached", "")
    strict = states(recipe_file, out, "strict=true")
    assert strict["low"] == ("stale", "code changed")
    assert strict["all"] == ("stale", "input low is made again")


# ------------------------------------------------------------------------------ predictions

R1_14B = physics.KNOWN_SHAPES["deepseek-ai/DeepSeek-R1-Distill-Qwen-14B"]
QWEN_32B = physics.KNOWN_SHAPES["Qwen/Qwen2.5-32B-Instruct"]


def test_shapes_give_the_published_sizes_and_flops():
    """Of facts/recipes: 14.77B and 32.8B parameters, 108.1 and 224.1 GFLOP per token at 16,384 tokens."""
    assert R1_14B.parameters == 14_770_033_664
    assert QWEN_32B.parameters == 32_763_876_352
    assert R1_14B.training_flops(16384) == pytest.approx(108.1e9, rel=1e-3)
    assert QWEN_32B.training_flops(16384) == pytest.approx(224.1e9, rel=1e-3)


@pytest.mark.parametrize(
    ("kind", "side", "workloads"),
    [("gpu", "fathom", ("one", "sixteen", "mix")), ("gpu, float8", "float8", ("one", "mix"))],
)
def test_training_shares_are_those_measured(kind, side, workloads):
    """Of 14.77B parameters on one H200, as `benchmarks/sft_gpu.py` wrote them."""
    measured = recorded("sft_gpu")[side]
    share = physics.TRAINING_SHARE[kind]
    for workload in workloads:
        assert share.low < measured[workload]["mfu"] < share.high
        assert measured[workload]["mfu"] == pytest.approx(share.mid, rel=0.06)
    speed = physics.training_speed(R1_14B, 16384, "h200", 1, float8=side == "float8")
    assert measured["one"]["useful_tokens_per_s"] == pytest.approx(speed.mid, rel=0.06)


@pytest.mark.parametrize(
    ("file", "side", "workload"),
    [("sft_gpu_32b", "fathom", "one"), ("sft_gpu_32b_half", "fathom", "mix"), ("sft_gpu_32b_half", "float8", "mix")],
)
def test_the_share_of_several_gpus_is_that_measured(monkeypatch, file, side, workload):
    """But for activations that were computed again, and for waiting."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    from sft_workload import CAP, workloads

    measured = recorded(file)[side][workload]
    lengths = workloads(CAP, (5, 1, 2), seed=0, gpus=2, rows=48, mean=4800)[workload].steps[-1]
    seconds = measured["seconds"][-1]
    assert sum(lengths) / seconds == pytest.approx(measured["useful_tokens_per_s"], rel=1e-3), "not the step measured"
    packs = split_packs(range(len(lengths)), lengths, CAP, 2)
    assert len(packs) == measured["packs"][-1]
    again = re.search(r"that adds ([\d.]+) s a pass", " ".join(measured["plan"]))
    recomputing = math.ceil(len(packs) / 2) * float(again[1] if again else 0) / seconds
    waiting = waited(packs, lengths, 2)
    text = (ROOT / "docs/training.md").read_text(encoding="utf-8")
    assert workload == "one" or f"waited for one another {waiting:.1%} of it" in text
    share = measured["mfu"] / (1 - recomputing) / (1 - waiting)
    kind = "gpus" if side == "fathom" else "gpus, float8"
    assert share == pytest.approx(physics.TRAINING_SHARE[kind].mid, rel=0.035)


PRICES = load_prices()


def sft_estimate(device="h200", count=1, row_tokens=None, **config):
    config = SftConfig(**{"model": "base", "examples": "rows", "batch_size": 32, "precision": "bfloat16"} | config)
    rows = estimates.Estimate(physics.NONE, rows=physics.Range.exactly(5000), row_tokens=row_tokens)
    setting = estimates.Setting(device, count, PRICES, {"base": R1_14B})
    return estimates_training.sft(config, {"rows": rows}, setting)


@pytest.mark.parametrize(
    ("count", "optimizer", "told"),
    [
        (1, {"states": "int8", "master": "stochastic"}, "int8 moments and stochastic masters: offloads 2. GiB a pass"),
        (8, {"states": "int8", "master": "split"}, "split masters: all activations kept"),
        (1, {}, "do not fit on 1 device of 140 GiB .* int8, master: stochastic"),
    ],
)
def test_the_plan_of_an_sft_stage_says_where_activations_go(count, optimizer, told):
    made = sft_estimate(count=count, optimizer=optimizer, pack_tokens=16384)
    assert re.search(told, made.note), made.note
    assert "assumed 1 pass over 5,000 rows of 5,734 [3,277 - 9,830] tokens" in made.note
    assert made.peak_gib is None if "do not fit" in told else made.peak_gib < 139


def test_what_no_stream_hides_is_in_the_hours():
    """On one GPU split masters leave so little that 15 GiB of each pass are computed again."""
    tight = sft_estimate(optimizer={"states": "int8", "master": "split"}, pack_tokens=16384)
    free = sft_estimate(optimizer={"states": "int8", "master": "stochastic"}, pack_tokens=16384)
    delay = float(re.search(r"that adds ([\d.]+) s a pass", tight.note).group(1))
    assert "that adds" not in free.note
    packs = 5000 * 5734 / 16384
    assert tight.seconds.mid - free.seconds.mid == pytest.approx(packs * delay, rel=0.1)


WAITED = recorded("even_packs")["waited"]


@pytest.mark.parametrize("found", WAITED, ids=lambda found: f"{found['rows']} rows on {found['gpus']}")
def test_the_plan_knows_how_long_gpus_wait_for_one_another(found):
    planned = estimates_training.waiting(found["rows"], found["mean"], 16384, 16384, found["gpus"])
    assert round(planned, 4) == found["even"]


def test_what_gpus_wait_for_is_in_the_hours():
    """Rows of like lengths on twice the GPUs take half of the time, unless there is no pack for some of them."""
    length = physics.Range(4000, 5000, 6000)

    def busy(count, **config):
        made = sft_estimate(count=count, row_tokens=length, pack_tokens=16384, **config)
        waits = re.search(r", which waits for the others (\d+)% of the time", made.note)
        return (made.seconds.mid - 120) * count, int(waits[1]) / 100 if waits else 0

    for setting in ({"batch_size": 96}, {"batch_tokens": 96 * 5000, "batch_size": None}):
        two, eight, many = (busy(count, **setting) for count in (2, 8, 128))
        assert two[1] == 0 and 0 < eight[1] < 0.03 and many[1] > 32 / 128
        for alike in (eight, many):
            assert alike[0] * (1 - alike[1]) == pytest.approx(two[0], rel=0.02)
    assert busy(8, batch_size=1, context=8)[1] == 0, "all of them work on the same pack"


def said(note, what):
    """The dollars that a note gives for a variant."""
    return float(re.search(rf"{re.escape(what)}: \$([\d.]+)", note).group(1))


def test_the_plan_of_an_sft_stage_says_what_other_assumptions_cost():
    length = physics.Range(4000, 5000, 6000)
    made = sft_estimate(row_tokens=length, epochs=3)
    assert "assumed 3 passes over 5,000 rows of 5,000 [4,000 - 6,000] tokens, 6,4" in made.note
    per_second = PRICES.devices["h200"].usd_per_hour / 3600
    for what, changed in {
        "rows x1.5": {"row_tokens": length * 1.5},
        "one pass less": {"epochs": 2},
        "one pass more": {"epochs": 4},
        "float8": {"float8": True},
    }.items():
        other = sft_estimate(**{"row_tokens": length, "epochs": 3} | changed)
        assert said(made.note, what) == pytest.approx(other.seconds.mid * per_second, rel=0.01), what
    assert said(made.note, "rows x1.5") > 1.5 * made.seconds.mid * per_second, "attention grows faster than length"
    assert "one pass less" not in sft_estimate().note
    assert "float8" not in sft_estimate("a100", 8).note, "it has no such arithmetic"
    capped = sft_estimate(row_tokens=length, max_length=5500)
    assert "5,000 rows of 5,000 [4,000 - 5,500] tokens" in capped.note, "longer rows are set aside"


def recipe_forecast(name, *sets):
    recipe = load_recipe(ROOT / "recipes" / f"{name}.yaml", OPS, sets)
    steps = make_plan(recipe, ROOT / "runs" / "none")
    return recipe, steps, estimates.forecast(recipe, steps)


def test_fathom_r1s_training_costs_less_than_a_fifth_of_the_published_bill():
    """$499: 5K rows and 9.5K rows, three passes (not published), chains of R1 from OpenR1."""
    _, _, told = recipe_forecast("fathom-r1-14b")
    parts = [told[name] for name in ("v06", "v04")]
    assert [part["tokens"][1] for part in parts] == pytest.approx([5000 * 3 * 5900, 9500 * 3 * 5900], rel=1e-3)
    speed = 0.60 * 989e12 / R1_14B.training_flops(5900)
    waiting = next(found["even"] for found in WAITED if (found["rows"], found["gpus"]) == (32, 8))
    for part in parts:
        hours = part["tokens"][1] / speed / (1 - waiting) / 3600 + 8 * 120 / 3600
        assert part["hours"][1] * 8 == pytest.approx(hours, rel=1e-3)
        assert part["usd"][1] == pytest.approx(hours * 3.59, rel=1e-3)
        assert "assumed 3 passes over" in part["note"]
    assert sum(part["usd"][1] for part in parts) < 100


def test_sky_t1s_training_is_planned_from_its_published_rows_for_a_sixth_of_the_bill():
    """$450: 16K rows, three epochs; the chains of QwQ, whose length follows it through rewriting, grading and mixing."""
    _, _, told = recipe_forecast("sky-t1-32b")
    student = told["student"]
    assert student["tokens"][1] == pytest.approx(16_000 * 3 * 4800, rel=1e-3)
    assert "assumed 3 passes over 16,000 rows of 4,800 [4,100 - 5,700] tokens" in student["note"]
    assert student["usd"][1] < 75
    assert "bfloat16: $80" in student["note"], "and what it costs as published stands beside"
    assert student["usd"][1] == pytest.approx(8 * 3.59 * student["hours"][1], rel=1e-3)
    other = recipe_forecast("sky-t1-32b", "models.teacher=some/other-model")[2]["student"]
    assert "rows of 5,734 [3,277 - 9,830] tokens" in other["note"], "nothing is known of its chains"


def test_a_model_of_unknown_size_has_no_price(tmp_path):
    recipe, steps, told = recipe_forecast("sky-t1-32b", "models.base=some/other-model", "budget.usd=1000000")
    trained = next(told[s.stage.name] for s in steps if s.stage.op_name == "sft")
    assert trained["usd"] is None and trained["hours"] is None
    twice = "eval_base.samplings=[{temperature: 0.6, max_tokens: 100}, {temperature: 0, max_tokens: 100}]"
    assert recipe_forecast("fathom-r1-14b", "models.base=some/other-model", twice)[2]["eval_base"]["usd"] is None
    table = plan_table(recipe, steps, told)
    assert re.search(r"unknown .*unpriced", next(line for line in table.splitlines() if line.startswith("student ")))
    assert re.search(r"\d stages? unpriced; what has a price is within the budget", table)


def test_what_calls_cost_is_told_of_all_samplings():
    called = "eval_base.engine={kind: http, model: gpt-4o-mini, base_url: 'https://api.openai.com/v1'}"
    one, two = (
        recipe_forecast(
            "fathom-r1-14b",
            called,
            "eval_base.model=null",
            f"eval_base.samplings=[{', '.join(['{max_tokens: 100}'] * n)}]",
        )[2]["eval_base"]
        for n in (1, 2)
    )
    paid = [float(re.search(r"\$([\d.]+) of it", found["note"])[1]) for found in (one, two)]
    assert paid[1] == pytest.approx(2 * paid[0], rel=0.05)


def test_eight_bits_on_a_gpu_that_has_none_are_refused_before_anything_runs():
    told = r"sky-t1-32b.yaml: stage 'student': float8: true, but a100 multiplies no eight-bit floats; set it to false"
    with pytest.raises(InputError, match=told):
        recipe_forecast("sky-t1-32b", "hardware.device=a100")
    without = recipe_forecast("sky-t1-32b", "hardware.device=a100", "student.float8=false")[2]["student"]
    assert "0.60 of its" in without["note"]


@pytest.mark.parametrize("columns", [80, 120])
def test_notes_are_as_wide_as_the_terminal_and_training_has_a_sum(monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    recipe, steps, told = recipe_forecast("fathom-r1-14b")
    lines = plan_table(recipe, steps, told).splitlines()
    notes = lines[len(steps) + 4 : -3]
    assert notes[0].startswith("rated: calls to o3-mini: $")
    assert max(map(len, notes)) <= columns
    assert sum(line.startswith(("v06: ", "v04: ")) for line in notes) == 2
    assert re.fullmatch(r"of it sft: 1\.\d h \[.*\], \$4\d \[.*\]", lines[-1]), lines[-1]


@pytest.mark.parametrize("name", ["fathom-r1-14b", "sky-t1-32b"])
def test_the_documents_quote_the_plan(monkeypatch, name):
    monkeypatch.setenv("COLUMNS", "120")
    text = (ROOT / "docs/training.md").read_text(encoding="utf-8")
    quoted = re.search(rf"`fathom plan recipes/{name}.yaml`.*?```\n(.*?)```", text, re.DOTALL).group(1).splitlines()
    assert quoted[-1].startswith("of it sft:")
    printed = plan_table(*recipe_forecast(name)).splitlines()
    assert [line for line in quoted if line not in printed] == []


OFFLINE = """
import socket, sys, time
def refuse(*args, **kwargs):
    raise AssertionError("a plan asked the network")
socket.socket.connect = socket.getaddrinfo = refuse
from fathom.cli import main
sys.argv = ["fathom", "plan", *sys.argv[1:]]
try:
    main()
finally:
    print("seconds", time.process_time())
"""


@pytest.mark.parametrize("name", ["fathom-r1-14b", "fathom-r1-14b-rs", "sky-t1-32b"])
def test_a_plan_of_large_models_is_quick_and_asks_nobody(name, tmp_path):
    recipe = str(ROOT / "recipes" / f"{name}.yaml")
    command = [sys.executable, "-c", OFFLINE, recipe, "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert "of it sft" in done.stdout
    assert float(done.stdout.split()[-1]) < 3


def test_ranges_divide_the_right_way_round():
    work, speed = physics.Range(10, 20, 30), physics.Range(1, 2, 10)
    assert work.over(speed) == physics.Range(1, 10, 30)
    assert (work + work * 2).at_most(50) == physics.Range(30, 50, 50)


def test_a_config_that_is_no_decoder(tmp_path):
    (tmp_path / "config.json").write_text('{"hidden_size": 4}')
    with pytest.raises(Exception, match=r"config\.json: not a decoder's configuration"):
        physics.shape_of(tmp_path)
    sizes = {"num_hidden_layers": 2, "hidden_size": 64, "intermediate_size": 64, "vocab_size": 9}
    (tmp_path / "config.json").write_text(json.dumps({**sizes, "num_attention_heads": 0}))
    with pytest.raises(InputError, match=r"heads: 0, expected a whole number from 1 up"):
        physics.shape_of(tmp_path)


def test_what_has_no_price_is_not_within_a_budget(monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    total = plan_table(*recipe_forecast("fathom-r1-tiny", "hardware.device=abacus")).splitlines()[-1]
    assert "stages unpriced; what has a price is within the budget of $0.50" in total
