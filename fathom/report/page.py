"""The HTML page: turns a `Run` into what `page.html.j2` shows. Formats and draws; derives through `facts`."""

from __future__ import annotations

from functools import cache
from importlib import resources
from typing import Any

import jinja2
import yaml
from markupsafe import Markup

import fathom
from fathom.report import charts, facts, published, words
from fathom.report.charts import Series
from fathom.report.evidence import budget_curves, length_histogram, pair_of_chains, side_by_side, solve_rates
from fathom.report.graph import draw_graph
from fathom.report.read import Run, Stage

TEXT_SHOWN = 300
"""Characters of a removed row's text."""

SMOOTHING = 20
"""A smoothed loss averages over about one part in so many of the steps."""

SECTIONS = (
    ("accuracy", "results", "Accuracy"),
    ("published", "published", "Published"),
    ("length", "lengths", "Length"),
    ("budget", "curves", "Budget"),
    ("chains", "chains", "Chains"),
    ("data", "funnel", "Data"),
    ("training", "training", "Training"),
    ("cost", "costs", "Cost"),
    ("provenance", "provenance", "Provenance"),
)


def render(run: Run) -> str:
    """The whole page as one string; the same run gives the same bytes."""
    best = facts.headline(run.rows, run.final)
    base, final, names = pair_of_chains(run, best)
    view = {
        **head(run, best),
        "results": results(run),
        "published": published_cards(run),
        "published_told": published.family_of(run).told,
        "lengths": length_histogram(base, final, names),
        "curves": budget_curves(run),
        "chains": side_by_side(run, base, final, names),
        "funnel": funnel(run),
        "solve_rates": solve_rates(run),
        "training": training(run),
        "costs": costs(run),
        "provenance": provenance(run),
        "graph": draw_graph(run),
    }
    sections = [(anchor, title) for anchor, key, title in SECTIONS if view[key]]
    page = _environment().get_template("page.html.j2")
    return page.render(view, run=run, css=_style_sheet(), sections=sections, version=fathom.__version__) + "\n"


@cache
def _environment() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.PackageLoader("fathom.report", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _style_sheet() -> Markup:
    return Markup(resources.files("fathom.report").joinpath("page.css").read_text(encoding="utf-8"))


# ------------------------------------------------------------------------------ the head


def head(run: Run, best: facts.Headline | None) -> dict[str, Any]:
    """Title, one sentence of certainty and the tiles."""
    bill = facts.total(run)
    tiles = _tiles(best) if best else []
    if run.bill:
        tiles.append(_tile("Cost of the whole run", words.dollars(bill.usd), words.bill_note(bill)))
    return {
        "title": words.finding(best) if best else words.data_finding(run),
        "lede": words.told_with(best, run.comparisons) if best else run.recipe.get("description", ""),
        "tiles": tiles,
        "day": facts.day(run),
    }


def _tiles(best: facts.Headline) -> list[dict[str, str]]:
    base, final = best.base, best.final
    tokens = f"base {words.whole(base['tokens_mean'])}: {words.fewer_tokens(best.tokens_ratio)}"
    certain = f"95%: {words.span((best.low, best.high), signed=True)} points"
    return [
        _tile("pass@1, paired difference", words.points(best.diff), certain),
        _tile(f"cons@{best.setting.samples}", words.percent(final["cons"]), f"base {words.percent(base['cons'])}"),
        _tile("Tokens per answer", words.whole(final["tokens_mean"]), tokens),
    ]


def _tile(label: str, value: str, note: str) -> dict[str, str]:
    return {"label": label, "value": value, "note": note}


# ------------------------------------------------------------------------------ results


def results(run: Run) -> list[dict[str, Any]]:
    """One card per setting: a dot-and-whisker row and the figures of every model."""
    cards = []
    for setting, rows in facts.by_setting(run.rows).items():
        base = facts.base_row(rows)
        colours = charts.styles([row["model"] for row in rows], base and base["model"], run.final)
        ends = [end for row in rows for end in (row["pass1_ci"] or (row["pass1"],))]
        axis = charts.nice_axis(100 * min(ends), 100 * max(ends), 6)
        cards.append(
            {
                "benchmark": setting.benchmark,
                "caption": words.setting(setting),
                "cons_name": f"cons@{setting.samples}",
                "rows": [_result_row(row, axis, colours[row["model"]], run) for row in rows],
                "scale": charts.scale(axis),
                "versus": _versus(facts.compared(run.comparisons, setting)),
            }
        )
    return cards


def _versus(comparisons: list[facts.Row]) -> list[dict[str, Any]]:
    return [
        {
            "name": f"{c['model']} minus {c['other']}",
            "diff": words.points(c["pass1_diff"]),
            "ci": words.span(c["ci"], signed=True),
            "verdict": words.separation(c["ci"]),
            "tokens": words.fewer_tokens(c["tokens_ratio"]),
        }
        for c in comparisons
    ]


def _result_row(row: facts.Row, axis: charts.Axis, style: str, run: Run) -> dict[str, Any]:
    paired = row.get("vs_base")
    interval = row["pass1_ci"] and [100 * end for end in row["pass1_ci"]]
    note = f"{row['model']}: {words.percent(row['pass1'])}, 95% interval {words.span(row['pass1_ci'])}"
    ratio = paired and paired["tokens_ratio"]
    return {
        "model": row["model"],
        "about": words.model_about(row["model"], run),
        "style": style,
        "chart": charts.whisker(100 * row["pass1"], interval, axis, style, note),
        "pass1": words.percent(row["pass1"]),
        "interval": words.span(row["pass1_ci"]),
        "cons": words.percent(row["cons"]),
        "tokens": words.whole(row["tokens_mean"]),
        "ratio": f"{ratio:.2f}" if ratio else "",
        "truncated": words.percent(row["truncated"]),
        "diff": words.points(paired["pass1_diff"]) if paired else "",
        "diff_ci": words.span(paired["ci"], signed=True) if paired else "",
        "tone": "" if not paired else "good" if paired["ci"][0] > 0 else "bad" if paired["ci"][1] < 0 else "",
    }


def published_cards(run: Run) -> list[dict[str, Any]]:
    """The published rows of the recipe that the run follows, a card per benchmark; none without own results."""
    family = published.family_of(run)
    groups = published.figures(family, run.published) if run.rows else {}
    cards = []
    for benchmark, rows in groups.items():
        axis = charts.nice_axis(100 * min(row.pass1 for row in rows), 100 * max(row.pass1 for row in rows), 6)
        cards.append(
            {
                "benchmark": benchmark,
                "caption": f"{rows[0].samples} chains per problem" if rows[0].samples > 1 else "one run",
                "cons_name": f"cons@{rows[0].samples}",
                "rows": [_published_row(row, rows[0], family.roles[row.model], axis) for row in rows],
                "scale": charts.scale(axis),
            }
        )
    return cards


def _published_row(
    row: published.Figure, base: published.Figure, role: published.Role, axis: charts.Axis
) -> dict[str, Any]:
    ratio = row.tokens / base.tokens if row.tokens and base.tokens and row is not base else None
    return {
        "model": row.model.removeprefix("DeepSeek-"),
        "about": role.about,
        "style": role.style,
        "chart": charts.whisker(100 * row.pass1, None, axis, role.style, f"{row.model}: {words.percent(row.pass1, 2)}"),
        "pass1": words.percent(row.pass1, 2),
        "interval": "",
        "diff": words.points(row.pass1 - base.pass1) if row is not base else "",
        "diff_ci": "",
        "tone": "",
        "cons": words.percent(row.cons, 2),
        "tokens": words.number(row.tokens),
        "ratio": f"{ratio:.2f}" if ratio else "",
        "truncated": words.NONE,
    }


# ------------------------------------------------------------------------------ data and training


def funnel(run: Run) -> list[dict[str, Any]]:
    """Every stage that filters rows, with bars on one scale and what it set aside."""
    steps = facts.funnel(run)
    top = max((count for step in steps for _, count in step.counts), default=1) or 1
    return [
        {
            "stage": step.stage,
            "lines": [
                {"bar": charts.bar(count / top, "final"), "count": words.number(count), "label": label}
                for label, count in step.counts
            ],
            "aside": words.number(step.removed),
            "reasons": words.listed([f"{reason} ({words.number(count)})" for reason, count in step.reasons]),
            "samples": [_removed(row) for row in step.samples],
        }
        for step in steps
    ]


def _removed(row: facts.Row) -> dict[str, str]:
    told = {key: words.shortened(str(row.get(key, "")), TEXT_SHOWN) for key in ("text", "other_text")}
    return {"id": str(row.get("id", "")), "reason": str(row.get("reason", "")), **told}


def training(run: Run) -> dict[str, Any] | None:
    """Loss curves of every trained stage in one plot, with a table."""
    logs = [(stage, stage.lines("train_log.jsonl")) for stage in run.stages]
    logs = [(stage, log) for stage, log in logs if log]
    if not logs:
        return None
    colours = charts.styles([stage.name for stage, _ in logs], None, run.final)
    faint, bold = [], []
    for stage, log in logs:
        points = [(float(row["step"]), float(row["loss"])) for row in log]
        faint.append(Series(stage.name, points, f"{colours[stage.name]} faint"))
        bold.append(
            Series(stage.name, charts.smoothed(points, keep=max(0.0, 1 - SMOOTHING / len(points))), colours[stage.name])
        )
    xs = [x for series in faint for x, _ in series.points]
    ys = [y for series in faint for _, y in series.points]
    x, y = charts.nice_axis(0, max(xs), whole=False), charts.nice_axis(min(ys), max(ys))
    chart = charts.plot([*faint, *bold], x, y, ("step", "loss"), named=bold)
    return {"chart": chart, "rows": [_training_row(stage, log) for stage, log in logs]}


def _training_row(stage: Stage, log: list[dict[str, Any]]) -> dict[str, str]:
    tenth = max(1, len(log) // 10)
    losses = [row["loss"] for row in log]
    return {
        "stage": stage.name,
        "steps": words.number(len(log)),
        "epochs": words.number(max(row["epoch"] for row in log) + 1),
        "tokens": words.number(sum(row["tokens"] for row in log)),
        "rate": f"{max(row['lr'] for row in log):.2g}",
        "first": f"{sum(losses[:tenth]) / tenth:.4f}",
        "last": f"{sum(losses[-tenth:]) / tenth:.4f}",
        "time": words.duration(stage.manifest.get("seconds")),
    }


# ------------------------------------------------------------------------------ cost and provenance


def costs(run: Run) -> dict[str, Any] | None:
    """Planned and actual cost of every stage ever attempted in the run directory."""
    lines = facts.costs(run)
    if not lines:
        return None
    bill = facts.total(run)
    top = max(cost.line.usd or 0.0 for cost in lines) or 1.0
    planned = [cost.planned[1] for cost in lines if cost.planned]
    return {
        "rows": [_cost_row(cost, top) for cost in lines],
        "sentence": words.bill_finding(bill, run.plan.get("budget_usd")),
        "total": {
            "planned": words.dollars(sum(planned)) if planned else words.NONE,
            "actual": words.dollars(bill.usd),
            "wasted": words.dollars(bill.wasted_usd),
            "time": words.duration(bill.seconds),
            "tokens": words.number(bill.tokens) if bill.tokens else words.NONE,
        },
    }


def _cost_row(cost: facts.Cost, top: float) -> dict[str, Any]:
    line, planned = cost.line, cost.planned
    lost = line.wasted_usd or 0.0
    low, expected, high = (words.dollars(usd) for usd in planned) if planned else ("", words.NONE, "")
    return {
        "stage": line.stage,
        "earlier": cost.earlier,
        "device": words.billed_as(line),
        "bar": charts.bar(((line.usd or 0.0) - lost) / top, "final", lost / top),
        "planned": expected,
        "range": f"{low} to {high}" if planned else "",
        "actual": words.dollars(line.usd),
        "wasted": words.dollars(line.wasted_usd) if lost else words.NONE,
        "lost": lost > 0,
        "time": words.duration(line.seconds),
        "tokens": words.number(cost.tokens) if cost.tokens else words.NONE,
        "basis": line.basis,
    }


def provenance(run: Run) -> dict[str, Any]:
    """Keys, inputs, commands, versions, licences and the recipe."""
    return {
        "rows": [_provenance_row(stage) for stage in run.stages],
        "command": facts.command(run),
        "versions": facts.versions(run),
        "licences": facts.licences(facts.training_rows(run)),
        "recipe": yaml.safe_dump(dict(run.recipe), sort_keys=False, allow_unicode=True, width=100).rstrip(),
    }


def _provenance_row(stage: Stage) -> dict[str, str]:
    parts = stage.manifest.get("parts", {})
    files = stage.manifest["files"]
    return {
        "stage": stage.name,
        "op": f"{stage.op} v{parts['version']}" if "version" in parts else stage.op,
        "reads": ", ".join([*parts.get("inputs", {}), *parts.get("models", {})]) or words.NONE,
        "key": stage.manifest["key"],
        "files": words.number(len(files)),
        "bytes": words.number(sum(entry["size"] for entry in files.values())),
        "time": words.duration(stage.manifest.get("seconds")),
    }
