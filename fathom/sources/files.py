"""Rows of local files, one after the other: JSON Lines, JSON, Parquet, or a directory of them.

It yields what stands in a file and looks at no column; what a row means is the business of `rows.py`.
A file that can't be read, isn't UTF-8 or isn't JSON is an InputError that names the place.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from fathom.errors import InputError, first_line
from fathom.records import json_lines

Row = tuple[str, Any]
"""Where a row stands, and the row: an object, unless the file is odd."""

BATCH = 64
"""Parquet rows decoded at a time; a row of a corpus with chains holds some 100 kB."""

SUFFIXES = (".jsonl", ".gz", ".json", ".parquet")


def read_rows(path: Path) -> Iterator[Row]:
    """The rows of a .jsonl, .jsonl.gz, .json (a list) or .parquet file, or of a directory of them in name order.

    JSON Lines and Parquet are never held whole; a .json file is one document and is.
    """
    if path.is_dir():
        files = sorted(f for f in path.rglob("*") if f.suffix in SUFFIXES)
        if not files:
            raise InputError(f"{path}: no .jsonl, .json or .parquet file in this directory")
        for file in files:
            yield from read_rows(file)
    elif path.suffix == ".parquet":
        yield from _local_parquet(path)
    elif path.suffix == ".json":
        yield from _json_rows(path)
    else:
        yield from json_lines(path)


def parquet_rows(file: Path | BinaryIO, name: str) -> Iterator[Row]:
    """The rows of a Parquet file, a few decoded at a time. Raises pyarrow's errors and OSError."""
    import pyarrow.parquet

    number = 0
    for batch in pyarrow.parquet.ParquetFile(file).iter_batches(batch_size=BATCH, use_threads=False):
        for row in batch.to_pylist():
            number += 1
            yield f"{name}: row {number}", row


def _local_parquet(path: Path) -> Iterator[Row]:
    import pyarrow.lib

    try:
        yield from parquet_rows(path, str(path))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (pyarrow.lib.ArrowException, OSError) as error:
        raise InputError(f"{path}: not a Parquet file ({first_line(error)})") from None


def _json_rows(path: Path) -> Iterator[Row]:
    try:
        rows = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not JSON ({error})") from None
    if not isinstance(rows, list):
        raise InputError(f"{path}: expected a list of objects, got {type(rows).__name__}")
    for number, row in enumerate(rows, 1):
        yield f"{path}: item {number}", row
