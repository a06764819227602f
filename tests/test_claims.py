"""Claims: what the text says, what published figures can carry, what stored runs say."""

import numpy as np
import pytest

from fathom.errors import InputError
from fathom.evaluate import describe
from fathom.evaluate.claim_text import parse_claim
from fathom.evaluate.claims import check_claim
from fathom.evaluate.compare import compare_runs, load_scores
from fathom.evaluate.power import (
    Noise,
    detectable_difference,
    measured_noise,
    problems_needed,
    samples_needed,
)
from fathom.evaluate.published import figures, find
from fathom.evaluate.scores import result_row
from fathom.records import Rollout, Sampling, Verdict, write_jsonl


def write_run(path, models, benchmark="aime25", samples=16, seed=0, temperature=0.6):
    """models: name -> solve rate of each problem; wrong chains of a problem share one wrong answer."""
    random = np.random.default_rng(seed)
    rollouts = [
        Rollout(
            problem_id=f"{benchmark}/{i}",
            index=j,
            text="",
            tokens=100,
            finish="stop",
            model=model,
            sampling=Sampling(temperature=temperature, max_tokens=1000),
            verdict=Verdict(answer="1" if right else "2", correct=bool(right), grader="test"),
            meta={"benchmark": benchmark},
        )
        for model, rates in models.items()
        for i, rate in enumerate(rates)
        for j, right in enumerate(random.random(samples) < rate)
    ]
    write_jsonl(path, rollouts)
    return path


RATES = np.random.default_rng(7).beta(0.8, 0.8, size=30)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Sky-T1-32B-Preview AIME24 43.3", {"model": "Sky-T1-32B-Preview", "benchmark": "aime24", "value": 0.433}),
        (
            "m on AIME 2025: 45.5% (k=64, T=0.6)",
            {"model": "m", "benchmark": "aime25", "samples": 64, "temperature": 0.6},
        ),
        ("org/m-7B MATH-500 0.864", {"model": "org/m-7B", "benchmark": "math500", "value": 0.864}),
        ("m hmmt25 cons@64 56.67", {"metric": "cons", "samples": 64, "value": 0.5667}),
        ("m gpqa avg@8 59.46", {"benchmark": "gpqa-diamond", "metric": "pass1", "samples": 8}),
        (
            "A AIME25 52.71 > Light-R1-14B 51.15",
            {"model": "A", "relation": ">", "other": "Light-R1-14B", "other_value": 0.5115},
        ),
        ("A AIME25 below B", {"relation": "<", "other": "B", "value": None, "other_value": None}),
        ("A AIME25 +7.2 over B", {"relation": ">", "difference": 0.072, "other": "B", "value": None}),
        ("A AIME25 -1.5 over B", {"relation": "<", "difference": -0.015, "other": "B"}),
        ("A LCB hard 17.9", {"benchmark": "livecodebench-hard", "value": 0.179}),
        ("merged toy 80 > base", {"benchmark": "toy", "model": "merged"}),
    ],
)
def test_parse_claim(text, expected):
    claim = parse_claim(text, known=("toy",))
    for name, value in expected.items():
        got = getattr(claim, name)
        assert got == pytest.approx(value) if isinstance(value, float) else got == value, name


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Sky-T1 43.3", "names no benchmark"),
        ("AIME24 43.3", "no model before"),
        ("Sky-T1 AIME24", "no figure after"),
        ("Sky-T1 AIME24 +3", "no figure after"),
    ],
)
def test_unreadable_claims_say_what_is_missing(text, message):
    with pytest.raises(InputError, match=message):
        parse_claim(text)


def test_every_published_row_is_there():
    assert len(figures()) == 96
    assert [f.value for f in find("fathom-r1-14b", "aime25", "pass1")] == [0.5271]
    assert [f.value for f in find("Light-R1-14B", "hmmt25", "pass1")] == [0.3375, 0.3411]
    assert [f.value for f in find("Sky-T1-32B-Preview", "aime24", "pass1")] == [0.433, 0.367, 0.333, 0.3]


def test_figures_that_their_own_sample_count_cannot_give_are_known():
    off = {(f.model, f.benchmark, f.metric) for f in figures() if not f.on_grid}
    # 0.4550 * 1920 = 873.6 right answers; 873 and 874 print as 45.47 and 45.52.
    assert ("DeepSeek-R1-Distill-Qwen-14B", "aime25", "pass1") in off
    # 52.71% is 1012 of 1920, 43.3% is 13 of 30.
    assert ("Fathom-R1-14B", "aime25", "pass1") not in off
    assert ("Sky-T1-32B-Preview", "aime24", "pass1") not in off
    assert len(off) == 5


def test_sky_t1_aime24_is_underpowered_by_hand():
    result = check_claim("Sky-T1-32B-Preview AIME24 43.3")
    assert result["verdict"] == "underpowered"
    # Wilson's 95% interval of 13 out of 30: 27.4% to 60.8%.
    assert result["claimed"]["ci_over_problems"] == pytest.approx([0.2738, 0.6080], abs=5e-4)
    # The users' runs pool to 10 of 30 over three runs; variance p(1-p)/n/k of each side.
    users = [0.367, 0.333, 0.3]
    within = sum(p * (1 - p) for p in users) / 3
    error = (0.433 * 0.567 / 30 + within / 90) ** 0.5
    assert result["difference"] == pytest.approx(0.433 - sum(users) / 3)
    assert result["ci"] == pytest.approx([0.0997 - 1.96 * error, 0.0997 + 1.96 * error], abs=1e-3)
    assert result["detectable"] == pytest.approx(2.8016 * error, rel=1e-3)


def test_fathom_against_light_r1_is_underpowered_and_says_what_it_takes():
    result = check_claim("Fathom-R1-14B AIME25 pass@1 52.71 > Light-R1-14B 51.15")
    assert result["verdict"] == "underpowered" and result["scope"] == "these problems"
    error = ((0.5271 * 0.4729 + 0.5115 * 0.4885) / 1920) ** 0.5
    assert result["these_problems"]["ci"] == pytest.approx([0.0156 - 1.96 * error, 0.0156 + 1.96 * error], abs=1e-4)
    needed = result["needed"]["samples_per_problem"]
    assert needed == pytest.approx((0.2493 + 0.2499) / 30 * (2.8016 / 0.0156) ** 2, rel=0.01)
    assert check_claim(f"A AIME25 52.71 > B 51.15 (k={2 * needed})")["verdict"] == "consistent"


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("Fathom-R1-14B AIME25 52.71 > DeepSeek-R1-Distill-Qwen-14B 45.50", "consistent"),
        ("DeepSeek-R1-Distill-Qwen-14B AIME25 > Fathom-R1-14B", "contradicted"),
        ("Fathom-R1-14B AIME25 60 > Light-R1-14B 51.15", "contradicted"),
        ("Fathom-R1-14B AIME25 +20 over DeepSeek-R1-Distill-Qwen-14B", "contradicted"),
        ("Fathom-R1-14B AIME25 cons@64 > DeepSeek-R1-Distill-Qwen-14B", "underpowered"),
        ("Sky-T1-32B-Preview AIME24 66.7", "contradicted"),
        ("Fathom-R1-14B AIME25 52.71", "consistent"),
    ],
)
def test_claims_from_published_figures_alone(text, verdict):
    assert check_claim(text)["verdict"] == verdict


def test_a_published_figure_off_its_grid_is_noted():
    result = check_claim("Fathom-R1-14B AIME25 > DeepSeek-R1-Distill-Qwen-14B 45.50")
    assert any("45.50% can't come from 30 problems x 64 samples" in note for note in result["notes"])


def test_unknown_model_needs_a_run():
    with pytest.raises(InputError, match="no published figure of nobody-7B"):
        check_claim("nobody-7B AIME25 50")


def test_a_run_carries_or_refutes_a_figure(tmp_path):
    run = write_run(tmp_path / "r.jsonl", {"mine": RATES}, samples=64)
    true = 100 * RATES.mean()
    assert check_claim(f"mine AIME25 {true:.2f} (k=64)", run)["verdict"] == "consistent"
    assert check_claim(f"mine AIME25 {true + 12:.2f} (k=64)", run)["verdict"] == "contradicted"
    assert check_claim(f"mine AIME25 {true + 5:.2f}", run)["verdict"] == "underpowered"  # one run, 30 problems
    with pytest.raises(InputError, match="the run has no model on hmmt25"):
        check_claim("mine HMMT25 20", run)


def test_a_run_says_how_many_problems_its_own_benchmark_has(tmp_path):
    run = write_run(tmp_path / "r.jsonl", {"mine": RATES}, benchmark="house", samples=64)
    result = check_claim(f"mine house {100 * RATES.mean():.2f} (k=64)", run)
    assert result["verdict"] == "consistent" and result["claimed"]["problems"] == 30


def test_a_run_of_two_models_is_judged_paired(tmp_path):
    run = write_run(tmp_path / "r.jsonl", {"base": RATES, "better": RATES + 0.15 * (1 - RATES)}, samples=64)
    result = check_claim("better AIME25 > base", run)
    assert result["verdict"] == "consistent" and result["scope"] == "problems like these"
    assert result["problems_like_these"]["how"] == "paired by problem"
    assert check_claim("base AIME25 > better", run)["verdict"] == "contradicted"
    assert check_claim("better AIME25 +30 over base", run)["verdict"] == "contradicted"
    assert check_claim("better AIME25 cons@64 > base", run)["verdict"] in ("consistent", "underpowered")


def test_rerunning_the_same_model_is_called_different_about_one_time_in_twenty(tmp_path):
    contradicted = 0
    for seed in range(60):
        run = write_run(tmp_path / f"{seed}.jsonl", {"mine": RATES}, samples=8, seed=seed)
        other = np.mean([np.random.default_rng(1000 + seed).binomial(8, RATES) / 8])
        contradicted += check_claim(f"mine AIME25 {100 * other:.4f}% (k=8)", run)["verdict"] == "contradicted"
    assert contradicted <= 7  # 3 expected; more than 7 of 60 has a chance of 1%


@pytest.mark.parametrize(("truth", "samples"), [(0.05, 1), (0.02, 1), (0.02, 4), (0.97, 1)])
def test_a_true_figure_near_the_ends_is_not_contradicted(tmp_path, truth, samples):
    """Chains that all agree are no proof of 0 or 100%."""
    verdicts = [
        check_claim(
            f"m AIME25 {100 * truth:g} k=64",
            write_run(tmp_path / f"{seed}.jsonl", {"m": np.full(30, truth)}, samples=samples, seed=seed),
        )["verdict"]
        for seed in range(100)
    ]
    assert verdicts.count("contradicted") <= 8
    ci = check_claim("X AIME25 100 > Y 0")["these_problems"]["ci"]
    assert ci[0] < 1 < ci[1]


def test_models_are_compared_where_they_were_sampled_alike(tmp_path):
    parts = [
        write_run(tmp_path / "a.jsonl", {"base": np.full(30, 0.9)}, "house", 1, temperature=0.0),
        write_run(tmp_path / "b.jsonl", {"base": RATES, "merged": RATES + 0.3 * (1 - RATES)}, "house", 64),
    ]
    run = tmp_path / "r.jsonl"
    run.write_text("".join(part.read_text() for part in parts))
    assert check_claim("merged house > base", run)["verdict"] == "consistent"
    with pytest.raises(InputError, match=r"the run has base as house \(T=0 .*house \(T=0\.6 .*; say which, with T="):
        check_claim("base house 40 k=8", run)
    assert check_claim("base house 90 k=8 T=0", run)["evidence"][0]["samples"] == 1
    with pytest.raises(InputError, match="merged on house is neither in the run nor published"):
        check_claim("base house > merged T=0", run)
    parts.append(write_run(tmp_path / "c.jsonl", {"merged": RATES, "base": RATES}, "house", 8, temperature=1.0))
    run.write_text("".join(part.read_text() for part in parts))
    with pytest.raises(InputError, match=r"merged as house \(T=0\.6 .*house \(T=1 .*say which, with T="):
        check_claim("merged house > base", run)
    assert check_claim("merged house > base T=.6", run)["verdict"] == "consistent"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("X AIME25 152.7", "152.7 is no percentage"),
        ("Fathom-R1-14B AIME25 52,71", "52,71: write a figure with a point"),
        ("m AIME25 43.3 > b 41,2%", "41,2%: write a figure with a point"),
        ("X AIME25 50 > Y 251", "251 is no percentage"),
        ("m house 50", "the run has one problem of house, and an interval needs two"),
    ],
)
def test_what_can_not_be_judged_is_one_line(tmp_path, text, told):
    run = write_run(tmp_path / "r.jsonl", {"m": [0.5]}, "house", 4) if "house" in text else None
    with pytest.raises(InputError, match=told):
        check_claim(text, run)


def test_a_run_says_for_a_stated_figure_too_how_many_problems_there_are(tmp_path):
    run = write_run(tmp_path / "r.jsonl", {"a": RATES}, "house", 16)
    assert check_claim("a house > c 4", run)["b"]["problems"] == 30


def test_compare_pairs_single_models_whatever_their_names(tmp_path):
    a = write_run(tmp_path / "a.jsonl", {"mine": RATES + 0.3 * (1 - RATES)}, samples=16)
    b = write_run(tmp_path / "b.jsonl", {"yours": RATES}, samples=8, seed=1)
    (row,) = compare_runs(a, b)["rows"]
    assert (row["model_a"], row["model_b"], row["samples_a"], row["samples_b"]) == ("mine", "yours", 16, 8)
    assert row["cons_k"] == 8 and row["problems"] == 30
    assert row["ci"][0] > 0 and row["p"] == row["p_holm"] < 0.05
    (back,) = compare_runs(b, a)["rows"]
    assert back["pass1_diff"] == -row["pass1_diff"]


def test_results_read_as_text(tmp_path):
    text = describe.claim(check_claim("Fathom-R1-14B AIME25 pass@1 52.71 > Light-R1-14B 51.15"))
    assert text.startswith("UNDERPOWERED (these problems): Fathom-R1-14B - Light-R1-14B = +1.6 points")
    assert "or 537 samples per problem on these" in text
    run = write_run(tmp_path / "a.jsonl", {"mine": RATES}, samples=4)
    assert "aime25 (T=0.6, 30 problems): mine" in describe.comparison(compare_runs(run, run))
    rows = [result_row(score) for score in load_scores(run)]
    header, line = describe.rows(rows).splitlines()
    assert header.split()[:3] == ["model", "benchmark", "T"] and line.split()[:3] == ["mine", "aime25", "0.6"]


def test_compare_corrects_for_the_number_of_rows(tmp_path):
    models = {f"m{i}": RATES for i in range(4)}
    a = write_run(tmp_path / "a.jsonl", models)
    b = write_run(tmp_path / "b.jsonl", models, seed=1)
    rows = compare_runs(a, b)["rows"]
    assert [row["model_a"] for row in rows] == list(models)
    smallest = min(rows, key=lambda row: row["p"])
    assert smallest["p_holm"] == pytest.approx(min(1, 4 * smallest["p"]))


def test_compare_refuses_runs_with_nothing_in_common(tmp_path):
    a = write_run(tmp_path / "a.jsonl", {"m": RATES})
    b = write_run(tmp_path / "b.jsonl", {"m": RATES}, benchmark="hmmt25")
    with pytest.raises(InputError, match=r"share no benchmark and sampling: the first has aime25 .* the second hmmt25"):
        compare_runs(a, b)
    with pytest.raises(InputError, match=r"no rollouts\.jsonl here"):
        compare_runs(tmp_path / "nowhere", b)


def test_power_by_hand():
    noise = Noise(between=0.0, within_a=0.25, within_b=0.25)
    # (1.96 + 0.8416)^2 * 0.5 / (30 * 0.05^2) = 52.3
    assert samples_needed(noise, 0.05, problems=30) == 53
    assert problems_needed(noise, 0.05, samples=1) == 1570
    assert detectable_difference(noise, 30, 64, 64) == pytest.approx(2.8016 * (0.5 / 1920) ** 0.5, rel=1e-3)
    # A spread of 0.2 between problems can't be sampled away: 30 * (0.05 / 2.8016)^2 < 0.04.
    assert samples_needed(Noise(0.04, 0.25, 0.25), 0.05, problems=30) is None


def test_the_needed_samples_have_the_promised_power():
    random = np.random.default_rng(5)
    rates = np.full(30, 0.5)
    k = samples_needed(Noise(0.0, 0.25, 0.2275), 0.15, problems=30)
    found = 0
    for _ in range(2000):
        a, b = random.binomial(k, rates + 0.15) / k, random.binomial(k, rates) / k
        error = ((a.mean() * (1 - a.mean()) + b.mean() * (1 - b.mean())) / (30 * k)) ** 0.5
        found += (a.mean() - b.mean()) / error > 1.96
    assert found / 2000 == pytest.approx(0.8, abs=0.04)


def test_measured_noise_recovers_its_parts():
    random = np.random.default_rng(6)
    rates = random.beta(2, 2, size=20_000)
    better = np.clip(rates + random.normal(0.05, 0.1, size=20_000), 0, 1)
    noise = measured_noise(random.random((20_000, 4)) < better[:, None], random.random((20_000, 8)) < rates[:, None])
    assert noise.within_b == pytest.approx((rates * (1 - rates)).mean(), rel=0.05)
    assert noise.between == pytest.approx((better - rates).var(), rel=0.2)
