"""data_card.md: what a set of training rows is, where it came from, how it was checked, what it cost, how to rebuild it.

Of a whole run (the rows that its trainings read) or of one exported set. Counts and names are those of
the rows' own lineage and of the manifests; what neither says is told as unknown.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from fathom.records import json_lines
from fathom.report import facts, markdown, words
from fathom.report.markdown import Sections, escape, table
from fathom.report.read import Run, Stage, read_run
from fathom.store import read_json

CERTIFICATE, DATA_CARD = "certificate.json", "data_card.md"
UNKNOWN = "unknown"
Row = Mapping[str, Any]


def of_run(run: Run) -> str | None:
    """The card of what a run trains on, else of its last selections; None where it has chosen nothing."""
    chosen = trained_on(run)
    if not chosen:
        selected, reads = run.of("select", "mix", "pairs"), facts.inputs(run)
        passed_on = {name for stage in selected for name in reads[stage.name]}
        chosen = [stage for stage in selected if stage.name not in passed_on]
    return render(run, chosen, f"Data of {run.name}") if chosen else None


def trained_on(run: Run) -> list[Stage]:
    """The stages whose rows some finished training read."""
    reads = facts.inputs(run)
    read = {name for stage in run.of("sft", "grpo", "prefer") for name in reads[stage.name]}
    return [stage for stage in run.stages if stage.name in read and any(path.is_file() for path in _files(stage))]


def exports(run: Run) -> list[Stage]:
    """The finished exports whose rows are still there."""
    return [stage for stage in run.of("export") if run.stage(stage.config["rows"])]


def beside_export(run: Run, export: Stage) -> dict[str, str]:
    """What lies beside one exported set, by file name: its card, and the certificates of its decontaminations.

    Funnel, certificates and bill are those of the stages that the rows came through.
    """
    run, source = _origin(run, run.stage(export.config["rows"]))
    written = export.metrics["rows"]
    names = [name for name in export.manifest["files"] if name != "removed.jsonl"]
    counts = {name: written.get(name.partition(".")[0]) for name in names}
    files = ", ".join(f"`{name}`" + (f" ({words.number(n)} rows)" if n else "") for name, n in counts.items())
    aside = Counter(row["id"] for _, row in json_lines(export.directory / "removed.jsonl"))
    nowhere = {id for id, formats in aside.items() if formats == len(written)}
    title = f"{run.name}: {source.name} as {', '.join(export.config['formats'])}"
    card = render(run, [source], title, files, nowhere)
    return {DATA_CARD: card, **certificates(run, [source.name])}


def certificates(run: Run, names: Collection[str]) -> dict[str, str]:
    """The certificates of the decontaminations that the rows of some stages came through, by file name."""
    stages = upstream(run, names).of("decontaminate")
    paths = {f"{stage.name}.{CERTIFICATE}": stage.directory / CERTIFICATE for stage in stages}
    return {name: path.read_text(encoding="utf-8") for name, path in paths.items() if path.is_file()}


def _origin(run: Run, source: Stage) -> tuple[Run, Stage]:
    """Where rows come from: the run itself, or the one that they were taken from by hand and that still has them."""
    path = Path(source.config["path"]) if source.op == "given" else Path()
    if path.parent.name == "artifacts" and (path.parent.parent / "recipe.yaml").is_file():
        origin = read_run(path.parent.parent)
        first = origin.stage(path.name)
        if first and first.manifest["files"] == source.manifest["files"]:
            return origin, first
    return run, source


def render(
    run: Run, chosen: Sequence[Stage], title: str, files: str = "", without: Collection[str] = frozenset()
) -> str:
    """The card of the rows of some stages; the same run gives the same bytes. without: problems whose rows are not told of."""
    came_through = upstream(run, [stage.name for stage in chosen])
    rows = [
        row for stage in chosen for row in _rows(stage) if {row["id"], row["id"].rpartition("#")[0]}.isdisjoint(without)
    ]
    parts = [
        f"# {escape(title)}",
        markdown.which_run(run),
        f"{words.number(len(rows))} rows, from {escape(' and '.join(stage.name for stage in chosen))}.",
        *([f"Files: {files}."] if files else []),
        *contents(rows),
        *teachers(rows),
        *checks(rows),
        *decontamination(came_through),
        *markdown.funnel(came_through),
        *_cost(came_through, rows),
        *_rebuild(run, came_through),
    ]
    return "\n\n".join(parts) + "\n"


def upstream(run: Run, names: Collection[str]) -> Run:
    """The run with these stages and those that they came through, and their part of the bill."""
    reads = facts.inputs(run)
    needed, waiting = set(names), list(names)
    while waiting:
        new = set(reads.get(waiting.pop(), ())) - needed
        needed |= new
        waiting += new
    stages = tuple(stage for stage in run.stages if stage.name in needed)
    return replace(run, stages=stages, bill=tuple(line for line in run.bill if line.stage in needed))


def _files(stage: Stage) -> list[Path]:
    return [stage.directory / name for name in (*facts.ROW_FILES, "problems.jsonl")]


def _rows(stage: Stage) -> list[Row]:
    """Lineage of the training rows, without their texts; where a stage hands on problems only, what they tell of it."""
    *trained, problems = _files(stage)
    if rows := next((path for path in trained if path.is_file()), None):
        return [{"id": row["id"], "lineage": row.get("lineage", {})} for _, row in json_lines(rows)]
    told = ("source", "licence", "solve_rate")
    rows = (row for _, row in json_lines(problems)) if problems.is_file() else ()
    return [{"id": row["id"], "lineage": {name: row[name] for name in told if name in row}} for row in rows]


# ------------------------------------------------------------------------------ sections


def contents(rows: Sequence[Row]) -> Sections:
    """Rows by source and licence, and rolled up by licence."""
    by_source = [(source, licence, words.number(n)) for source, licence, n in facts.licences(rows)]
    licences = _counted(rows, lambda lineage: lineage.get("licence"))
    parts = _counted(rows, lambda lineage: lineage.get("part"))
    blocks = ["## Sources and licences", table(("source", "licence", "rows"), by_source)]
    blocks += [f"By licence: {_listed(licences)}."]
    if parts and UNKNOWN not in parts:
        blocks.append(f"By part of the mixture: {_listed(parts)}.")
    if missing := licences.get(UNKNOWN):
        blocks.append(
            f"**{words.number(missing)} rows have no stated licence**: ask their source before you publish them."
        )
    return blocks


def teachers(rows: Sequence[Row]) -> Sections:
    """Who wrote the answers, how they were sampled, and who rewrote them."""
    models = Counter((_lineage(row).get("model"), _told(_lineage(row).get("sampling"))) for row in rows)
    lines = [(model, sampling, words.number(n)) for (model, sampling), n in models.most_common() if model]
    if not lines:
        return []
    blocks = ["## Who wrote the answers", table(("model", "sampling", "rows"), lines)]
    prompts = {row["lineage"]["prompt"] for row in rows if _lineage(row).get("prompt")}
    if prompts:
        blocks.append(f"Distinct prompts, by their hash: {words.number(len(prompts))}.")
    rewrites = [rewrite for row in rows if (rewrite := _lineage(row).get("rewrite"))]
    for name, count in Counter(str(r.get("by", UNKNOWN)) for r in rewrites).most_common():
        shares = [r["kept"] for r in rewrites if str(r.get("by", UNKNOWN)) == name and "kept" in r]
        kept = f", which kept {sum(shares) / len(shares):.1%} of their words" if shares else ""
        blocks.append(f"{words.number(count)} rows were rewritten by {escape(name)}{kept}.")
    return blocks


def checks(rows: Sequence[Row]) -> Sections:
    """Which version of which grader found the answers right, by which rule, and how hard the problems are."""
    verdicts = [verdict for row in rows if (verdict := _lineage(row).get("verdict"))]
    counts = Counter((v.get("grader", UNKNOWN), v.get("rung") or UNKNOWN) for v in verdicts)
    lines = [(grader, rung, words.number(n)) for (grader, rung), n in sorted(counts.items())]
    blocks = [table(("grader", "decided by", "rows"), lines)] if lines else []
    if unchecked := len(rows) - len(verdicts):
        blocks.append(f"{words.number(unchecked)} rows carry no verdict.")
    rates = [rate for row in rows if (rate := _lineage(row).get("solve_rate")) is not None]
    if rates:
        mean = words.percent(sum(rates) / len(rates))
        blocks.append(f"Mean solve rate of the base model: {mean}, over {words.number(len(rates))} rows that have one.")
    return ["## How they were checked", *blocks] if blocks else []


def decontamination(run: Run) -> Sections:
    """Per benchmark what was recognised and by which rule, from the certificate; from the metrics where there is none."""
    blocks = [block for stage in run.of("decontaminate") for block in _decontaminated(stage)]
    told = "**Not decontaminated**: no stage compared these rows with a benchmark."
    return ["## Decontamination", *(blocks or [told])]


def _decontaminated(stage: Stage) -> Sections:
    path = stage.directory / CERTIFICATE
    if not path.is_file():
        counts = stage.metrics.get("by_benchmark", {})
        return [f"Stage {escape(stage.name)} removed {_listed(counts)}."]
    certificate = read_json(path)
    count = certificate["problems"]
    lines = [
        (b["name"], words.number(b["problems"]), words.number(b["removed"]), _told(b["by_rule"]), b["sha256"][:16])
        for b in certificate["benchmarks"]
    ]
    names = escape(" and ".join(b["name"] for b in certificate["benchmarks"]))
    file_hash = stage.manifest["files"][CERTIFICATE]["sha256"]
    return [
        f"Stage {escape(stage.name)} compared {words.number(count['read'])} problems with every problem of {names}, "
        f"removed {words.number(count['removed'])} and kept {words.number(count['kept'])} (SHA-256 of what it kept: "
        f"`{certificate['kept_sha256']}`). The removed rows stand in its `{CERTIFICATE}` (SHA-256 `{file_hash}`).",
        table(("benchmark", "problems", "recognised", "by rule", "SHA-256 of its rows"), lines),
    ]


def _cost(run: Run, rows: Sequence[Row]) -> Sections:
    """The bill of the stages that made the rows, and what the rows themselves say they cost."""
    paid = [sum(known) for row in rows if (known := _payments(_lineage(row)))]
    blocks = markdown.cost(run)
    if paid:
        mean = f"{100 * sum(paid) / len(paid):.3g} cents"
        blocks.append(
            f"Calls for these rows: {words.dollars(sum(paid))}, {mean} for each of {words.number(len(paid))} rows."
        )
    return blocks


def _payments(lineage: Row) -> list[float]:
    costs = (lineage.get("usd"), (lineage.get("rewrite") or {}).get("usd"))
    return [usd for usd in costs if usd is not None]


def _rebuild(run: Run, came_through: Run) -> Sections:
    """Keys, versions, the command, and the recipe whole."""
    blocks = markdown.provenance(came_through)
    lead = "The same recipe, seed and inputs give the same rows; `fathom why ROW` tells the way of any one of them."
    return ["## How to make it again", lead, *blocks[1:], *markdown.recipe(run)[1:]] if blocks else []


# ------------------------------------------------------------------------------ small words


def _lineage(row: Row) -> Row:
    return row.get("lineage", {})


def _counted(rows: Iterable[Row], key: Any) -> dict[str, int]:
    counts = Counter(str(key(_lineage(row)) or UNKNOWN) for row in rows)
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{escape(name)} {words.number(count)}" for name, count in counts.items()) or "nothing"


def _told(values: Mapping[str, Any] | None) -> str:
    """Plain values in one cell; unknown where there are none."""
    if values is None:
        return UNKNOWN
    return ", ".join(f"{name} {json.dumps(value)}" for name, value in values.items()) or "none"
