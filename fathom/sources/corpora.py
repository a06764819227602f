"""The public corpora by name: where each one is, how its rows read, under what licence.

Declarations only; `hub.py` reads by them. A corpus is added by one more entry. Revisions are commits of
the hub's repositories, so that a recipe reads the same rows next year; null is the newest one (no commit
is known to us). Row counts are those of the data-set cards; plans use them and nothing is checked by them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from fathom.sources.rows import ChainColumns, Columns, RowSpec

Values = list[str | int | float | bool | None]


@dataclass(frozen=True)
class Corpus:
    """One corpus of the Hugging Face hub.

    spec: how a row becomes a problem. chains: the recorded chains of its rows. subsets: read one after the
    other. split: the usual one. files: for each split a pattern of files, where `datasets` finds a loading
    script in the repository and refuses it. rows: how many there are by split; by_value: how many of the
    usual split hold a value in a column.
    """

    repo: str
    revision: str | None
    spec: RowSpec
    rows: Mapping[str, int]
    chains: ChainColumns | None = None
    subsets: tuple[str | None, ...] = (None,)
    split: str = "train"
    files: Mapping[str, str] = field(default_factory=dict)
    by_value: Mapping[str, Mapping[str, int]] = field(default_factory=dict)

    def rows_wanted(self, split: str | None, where: Mapping[str, Values]) -> int:
        """Rows of a split that pass a filter, as far as the card tells; all of them where it doesn't."""
        counts = [
            sum(self.by_value[column].get(str(value), 0) for value in values)
            for column, values in {**self.spec.where, **where}.items()
            if column in self.by_value and (split or self.split) == self.split
        ]
        return min([count for count in counts if count], default=self.rows[split or self.split])


_NUMINA_TYPES = ["problem_type", "question_type"]

_PROGRAMS = Columns(
    question="question",
    gold=None,
    tests="input_output",
    solutions="solutions",
    meta=["starter_code", "difficulty", "url"],
)
"""APPS, and TACO which took over its columns."""

CORPORA: dict[str, Corpus] = {
    "openr1-math-220k": Corpus(
        repo="open-r1/OpenR1-Math-220k",
        revision="e4e141ec9dea9f8326f4d347be56105859b2bd68",
        subsets=("default",),
        spec=RowSpec(
            licence="Apache-2.0",
            columns=Columns(id="uuid", source="source", meta=_NUMINA_TYPES),
            reject_golds=["proof", "notfound"],
        ),
        chains=ChainColumns(
            text="generations",
            complete="is_reasoning_complete",
            written_by="deepseek-ai/DeepSeek-R1",
            meta=["correctness_math_verify", "finish_reasons"],
        ),
        rows={"train": 93_733},
    ),
    "numinamath-1.5": Corpus(
        repo="AI-MO/NuminaMath-1.5",
        revision="1b05109f9e5c1ad06c0663519502416c30b300f8",
        spec=RowSpec(
            licence="Apache-2.0",
            columns=Columns(
                source="source", meta=[*_NUMINA_TYPES, "problem_is_valid", "solution_is_valid", "synthetic"]
            ),
            reject_golds=["proof", "notfound"],
        ),
        rows={"train": 896_215},
        by_value={"source": {"olympiads": 197_084, "aops_forum": 67_841, "cn_contest": 29_944, "amc_aime": 5_872}},
    ),
    "numinamath-cot": Corpus(  # no column of answers: the gold is the last box of the solution
        repo="AI-MO/NuminaMath-CoT",
        revision="9d8d210c9f6a36c8f3cd84045668c9b7800ef517",
        spec=RowSpec(
            licence="Apache-2.0", columns=Columns(gold="solution", source="source"), answer_in="boxed"
        ),
        rows={"train": 859_494, "test": 100},
        by_value={
            "source": {
                "amc_aime": 4_072, "aops_forum": 30_201, "cn_k12": 276_591, "gsm8k": 7_345, "math": 7_478,
                "olympiads": 150_581, "orca_math": 153_334, "synthetic_amc": 62_111, "synthetic_math": 167_895,
            }
        },
    ),
    "apps": Corpus(
        repo="codeparrot/apps",
        revision="21e74ddf8de1a21436da12e3e653065c5213e9d1",
        spec=RowSpec(kind="code", licence="MIT", columns=_PROGRAMS),
        rows={"train": 5_000, "test": 5_000},
        files={"train": "train.jsonl", "test": "test.jsonl"},
        by_value={"difficulty": {"introductory": 2_639, "interview": 2_000, "competition": 361}},
    ),
    "taco": Corpus(
        repo="BAAI/TACO",
        revision=None,
        spec=RowSpec(
            kind="code",
            licence="Apache-2.0",
            columns=_PROGRAMS.model_copy(update={"meta": [*_PROGRAMS.meta, "source", "time_limit"]}),
        ),
        rows={"train": 25_443, "test": 1_000},
        files={"train": "ALL/train-*.parquet", "test": "ALL/test-*.parquet"},
        by_value={"difficulty": {"MEDIUM": 3_244}},
    ),
    "still-2": Corpus(  # its science and puzzles; no reference answers: the gold is what its own chain ends in
        repo="RUC-AIBOX/long_form_thought_data_5k",
        revision=None,
        spec=RowSpec(
            licence="Apache-2.0",
            columns=Columns(question="question", gold="combined_text", meta=["domain"]),
            answer_in="boxed",
            where={"domain": ["puzzle", "physics", "biology", "chemistry"]},
        ),
        chains=ChainColumns(text="combined_text", written_by="STILL-2 teachers", sections=True),
        rows={"train": 4_922},
        by_value={"domain": {"math": 3_929, "code": 178, "physics": 271, "chemistry": 238, "puzzle": 159, "biology": 147}},
    ),
    "gsm8k": Corpus(
        repo="openai/gsm8k",
        revision="740312add88f781978c0658806c59bc2815b9866",
        subsets=("main",),
        spec=RowSpec(licence="MIT", columns=Columns(question="question"), answer_in="####"),
        rows={"train": 7_473, "test": 1_319},
    ),
    "math": Corpus(
        repo="EleutherAI/hendrycks_math",
        revision="21a5633873b6a120296cce3e2df9d5550074f4a3",
        subsets=(
            "algebra", "counting_and_probability", "geometry", "intermediate_algebra",
            "number_theory", "prealgebra", "precalculus",
        ),
        spec=RowSpec(licence="MIT", columns=Columns(gold="solution", meta=["level", "type"]), answer_in="boxed"),
        rows={"train": 7_500, "test": 5_000},
    ),
}  # fmt: skip
