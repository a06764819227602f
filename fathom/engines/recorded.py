"""A recorded engine: stored generations served as if they were sampled now.

Anyone's JSON Lines of completions becomes an engine, so solve rates, selection and evaluation can
be recomputed with no GPU. It samples nothing: the n-th request of a key gets the n-th stored row,
and the sampling that a recipe asks for is not the one that made the text.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from fathom.engines import Completion, RecordedConfig, Request, engine_name
from fathom.errors import InputError
from fathom.records import Sampling, json_lines


class RecordedEngine:
    """Serves stored completions by request key and index, in the order of the file.

    Raises InputError for a missing file or column, and when no row is left.
    """

    device = "cpu"

    def __init__(self, config: RecordedConfig):
        self.name = engine_name(config)
        self._config = config
        self._rows: dict[str, list[dict[str, Any]]] = {}
        columns = config.columns
        for where, row in json_lines(config.path):
            for column in (columns.key, columns.text):
                if not isinstance(row, dict) or not isinstance(row.get(column), str):
                    raise InputError(f"{where}: no text in column {column!r}")
            if config.models is None or row.get(columns.model) in config.models:
                self._rows.setdefault(row[columns.key], []).append(row)
        if not self._rows:
            raise InputError(f"{config.path}: no row" + (f" of {', '.join(config.models)}" if config.models else ""))

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[Completion]:
        for request in requests:
            rows = self._rows.get(request.key, [])
            stop = request.first + request.samples
            if len(rows) < stop and not self._config.allow_fewer:
                raise InputError(f"{self._config.path}: {len(rows)} chains of {request.key!r}, {stop} are asked for")
            for index in range(request.first, min(stop, len(rows))):
                yield self._completion(request.key, index, rows[index])

    def _completion(self, key: str, index: int, row: dict[str, Any]) -> Completion:
        columns = self._config.columns
        truncated = bool(columns.truncated and row.get(columns.truncated))
        return Completion(
            key=key,
            index=index,
            text=row[columns.text],
            tokens=_count(row, columns.tokens),
            finish="length" if truncated else "stop",
            prompt_tokens=_count(row, columns.prompt_tokens),
        )

    def close(self) -> None:
        """Nothing to release."""


def _count(row: dict[str, Any], column: str | None) -> int:
    value = row.get(column) if column else None
    return value if isinstance(value, int) else 0
