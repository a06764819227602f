"""Corpora of the Hugging Face hub as a stream: nothing is downloaded before a stage runs, and then only what is read.

`datasets` tells which files a configuration and a split of a revision are; their rows go by a few at a time. Its
own stream of rows is not used: it decodes a Parquet file far ahead of the reader, so that memory grows with the
file, and it wants one type of a column in all shards. A local snapshot with the hub's
file layout (`path`) is read the same way. What the corpora are is declared in `corpora.py`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from fathom.config import FileInput
from fathom.errors import InputError, WorkError, first_line
from fathom.records import parsed_lines
from fathom.sources.corpora import CORPORA, Corpus
from fathom.sources.files import Row, parquet_rows
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

    Raises WorkError when the hub can't be read, InputError for a split that isn't there or a broken snapshot.
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
    import httpx
    import pyarrow.lib

    place = config.path or corpus.repo
    network = (OSError, httpx.HTTPError, datasets.exceptions.DatasetsError, pyarrow.lib.ArrowException)
    try:
        for subset in corpus.subsets:
            for url in _files(corpus, config, subset, split):
                yield from _read(url, _name(url, config.path))
    except (*network, ValueError, RuntimeError) as error:
        raise (InputError if config.path else WorkError)(f"{place}: {first_line(error)}") from None


def _files(corpus: Corpus, config: HubConfig, subset: str | None, split: str) -> list[str]:
    """Paths or hf:// addresses of the files that hold a split. Raises what `datasets` raises."""
    import datasets

    revision = None if config.path else config.revision or corpus.revision
    if split not in corpus.files:
        builder = datasets.load_dataset_builder(config.path or corpus.repo, subset, revision=revision)
        return list((builder.config.data_files or {}).get(split, ()))
    root = config.path or f"hf://datasets/{corpus.repo}" + (f"@{revision}" if revision else "")
    pattern = f"{root}/{corpus.files[split]}"
    form = "parquet" if pattern.endswith(".parquet") else "text"
    return list(datasets.load_dataset_builder(form, data_files=pattern).config.data_files["train"])


def _name(url: str, path: str | None) -> str:
    """The file as the recipe would write it."""
    return f"{path}/{os.path.relpath(url, path)}" if path else url.removeprefix("hf://datasets/")


def _read(url: str, name: str) -> Iterator[Row]:
    import huggingface_hub

    with huggingface_hub.HfFileSystem().open(url, "rb") if "://" in url else open(url, "rb") as stream:
        if url.endswith(".parquet"):
            yield from parquet_rows(stream, name)
        else:
            yield from parsed_lines(enumerate(stream, 1), name)
