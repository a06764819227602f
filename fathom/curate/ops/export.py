"""`op: export`: the rows of a selection as files that other trainers load; what a row is says `fathom/curate/export.py`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as parquet

from fathom.chunks import write_rows
from fathom.curate import export
from fathom.curate.export_config import ExportConfig, Format
from fathom.errors import InputError
from fathom.records import Example, Problem, read_jsonl
from fathom.store import write_json

if TYPE_CHECKING:
    from fathom.ledger import Meter

ROW_GROUP = 512
"""Rows that are in memory at a time."""

_TEXT, _NUMBER = pa.string(), pa.float64()
_TURNS = pa.list_(pa.struct({"role": _TEXT, "content": _TEXT}))
_ABOUT = {"source": _TEXT, "licence": _TEXT, "difficulty": _NUMBER, "solve_rate": _NUMBER}
MESSAGES = pa.schema({"id": _TEXT, "problem_id": _TEXT, "messages": _TURNS, **_ABOUT})
VERL = pa.schema(
    {
        "data_source": _TEXT,
        "prompt": _TURNS,
        "ability": _TEXT,
        "reward_model": pa.struct({"style": _TEXT, "ground_truth": _TEXT}),
        "extra_info": pa.struct({"split": _TEXT, "index": pa.int64(), "id": _TEXT, **_ABOUT}),
    }
)
TRL = pa.schema({"prompt": _TURNS, "answer": _TEXT, "solution": _TEXT, "kind": _TEXT, "id": _TEXT, **_ABOUT})

Row = Mapping[str, Any]
Removed = list[dict[str, str]]


def run_export(inputs: dict[str, Any], config: ExportConfig, out: Path, meter: Meter) -> dict[str, Any]:
    """Stage: a file per format, lineage.jsonl beside training rows, removed.jsonl what a format has no place for.

    Raises InputError where the rows are not what a format needs, or none is left.
    """
    rows: Path = inputs["rows"]
    removed: Removed = []
    written: dict[str, int] = {}
    for form in dict.fromkeys(config.formats):
        needed = "examples.jsonl" if form in ("messages", "sharegpt") else "problems.jsonl"
        if not (rows / needed).is_file():
            raise InputError(f"export: the format {form} needs {needed}, and {config.rows} has none")
        written[form] = _WRITERS[form](rows / needed, config, out, removed)
        if not written[form]:
            told = f": {removed[0]['id']}: {removed[0]['reason']}" if removed else ""
            raise InputError(f"export: no row of {config.rows} is left for the format {form}{told}")
    if {"messages", "sharegpt"} & written.keys():
        write_rows(out / "lineage.jsonl", map(export.lineage_row, read_jsonl(rows / "examples.jsonl", Example)))
    write_rows(out / "removed.jsonl", removed)
    return {"rows": written, "set_aside": len(removed)}


def _messages(file: Path, config: ExportConfig, out: Path, removed: Removed) -> int:
    rows = map(export.messages_row, read_jsonl(file, Example))
    return write_parquet(out / "messages.parquet", MESSAGES, rows)


def _sharegpt(file: Path, config: ExportConfig, out: Path, removed: Removed) -> int:
    write_json(out / "dataset_info.json", export.dataset_info(config.name))
    return write_json_array(out / "sharegpt.json", map(export.sharegpt_row, read_jsonl(file, Example)))


def _verl(file: Path, config: ExportConfig, out: Path, removed: Removed) -> int:
    def row(problem: Problem, index: int) -> Row:
        return export.verl_row(problem, index, config.data_source, config.prompt, config.system)

    return write_parquet(out / "verl.parquet", VERL, _exportable("verl", file, row, removed))


def _trl(file: Path, config: ExportConfig, out: Path, removed: Removed) -> int:
    def row(problem: Problem, index: int) -> Row:
        return export.trl_row(problem, config.prompt, config.system)

    return write_parquet(out / "trl.parquet", TRL, _exportable("trl", file, row, removed))


_WRITERS: dict[Format, Callable[[Path, ExportConfig, Path, Removed], int]] = {
    "messages": _messages,
    "sharegpt": _sharegpt,
    "verl": _verl,
    "trl": _trl,
}


def _exportable(form: Format, file: Path, row: Callable[[Problem, int], Row], removed: Removed) -> Iterator[Row]:
    """A row for every problem that the format has a place for; the others go to `removed`."""
    index = 0
    for problem in read_jsonl(file, Problem):
        try:
            yield row(problem, index)
            index += 1
        except export.NotExportable as error:
            removed.append({"id": problem.id, "reason": f"{form}: {error}"})


def write_parquet(path: Path, schema: pa.Schema, rows: Iterable[Row]) -> int:
    """Write rows in groups of ROW_GROUP; returns how many."""
    rows, count = iter(rows), 0
    with parquet.ParquetWriter(path, schema, compression="zstd") as writer:
        while group := list(islice(rows, ROW_GROUP)):
            writer.write_table(pa.Table.from_pylist(group, schema=schema))
            count += len(group)
    return count


def write_json_array(path: Path, rows: Iterable[Row]) -> int:
    """Write rows as one JSON array, a row a line; returns how many."""
    count = 0
    with open(path, "w", encoding="utf-8", newline="\n") as stream:
        for count, row in enumerate(rows, 1):
            stream.write(("[\n" if count == 1 else ",\n") + json.dumps(row, ensure_ascii=False))
        stream.write("\n]\n" if count else "[]\n")
    return count
