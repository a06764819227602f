"""Corpora of the Hugging Face hub, read through `datasets` in streaming form.

Nothing is downloaded before a stage runs, and then only the rows that are read, which go by one at a time.
A local snapshot with the hub's file layout (`path`) is read the same way. What the corpora are is
declared in `corpora.py`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from fathom.config import FileInput
from fathom.errors import InputError, WorkError
from fathom.sources.corpora import CORPORA, Corpus
from fathom.sources.files import Row
from fathom.sources.rows import Outcome, RowFilter, outcomes


class HubConfig(RowFilter):
    """`{name: openr1-math-220k, limit: 1000, where: {source: [olympiads]}}`.

    split: one that is not the corpus's usual one. revision: a commit of the hub's repository in place of the
    declared one. path: a local snapshot in place of the hub. Columns and licence are the declaration's own.
    """

    name: Literal[*CORPORA]
    split: Literal["train", "test"] | None = None
    revision: str | None = None
    path: FileInput | None = None


def label(config: HubConfig) -> str:
    """The source's name in ids and tables; another split has ids of its own."""
    return f"{config.name}-{config.split}" if config.split else config.name


def read(config: HubConfig) -> Iterator[Outcome]:
    """What becomes of each row.

    Raises WorkError when the hub can't be read, InputError for a split or a snapshot that isn't there.
    """
    corpus = CORPORA[config.name]
    split = config.split or corpus.split
    if split not in corpus.rows:
        raise InputError(f"{config.name}: has no split {split!r}; there are: {', '.join(corpus.rows)}")
    if config.path is not None and not Path(config.path).is_dir():
        raise InputError(f"{config.path}: not a directory (expected a snapshot of {corpus.repo})")
    spec = corpus.spec.model_copy(
        update={
            "where": {**corpus.spec.where, **config.where},
            "numeric_gold": config.numeric_gold,
            "limit": config.limit,
        }
    )
    return outcomes(_rows(corpus, config, split), spec, label(config), corpus.chains)


def _rows(corpus: Corpus, config: HubConfig, split: str) -> Iterator[Row]:
    import datasets

    place, revision = config.path or corpus.repo, None if config.path else config.revision or corpus.revision
    number = 0
    for subset in corpus.subsets:
        try:
            for row in _stream(corpus, place, revision, subset, split):
                number += 1
                yield f"{place}: row {number}", row
        except (OSError, ValueError, TypeError, RuntimeError, datasets.exceptions.DatasetsError) as error:
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise WorkError(f"{place}: {reason}" + (f" (after row {number})" if number else "")) from None


def _stream(corpus: Corpus, place: str, revision: str | None, subset: str | None, split: str) -> Iterator[Any]:
    import datasets

    if split not in corpus.files:
        yield from datasets.load_dataset(place, subset, split=split, revision=revision, streaming=True)
        return
    root = place if Path(place).is_dir() else f"hf://datasets/{place}" + (f"@{revision}" if revision else "")
    pattern = f"{root}/{corpus.files[split]}"
    if pattern.endswith(".parquet"):
        yield from datasets.load_dataset("parquet", data_files=pattern, split="train", streaming=True)
        return
    # Lines are parsed one by one: `datasets` would want one type of every column.
    for line in datasets.load_dataset("text", data_files=pattern, split="train", streaming=True):
        if line["text"].strip():
            yield json.loads(line["text"])
