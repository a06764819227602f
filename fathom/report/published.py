"""What the authors of a re-implemented recipe report, to stand beside a run of it. Figures come from published.yaml."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from fathom.report.read import Run


class Role(NamedTuple):
    """What a published model is in its recipe, and its colour."""

    about: str
    style: str


class Family(NamedTuple):
    """The published models of one recipe, base first and final model last. told: who reports what, as a sentence."""

    told: str
    roles: Mapping[str, Role]


FAMILIES = {
    "fathom-r1": Family(
        "What the Fathom-R1 authors report for their 14B models. Another scale and other problems: compare the "
        "shape (base, parts, merge), not the heights. They publish no intervals.",
        {
            "DeepSeek-R1-Distill-Qwen-14B": Role("base", "base"),
            "Fathom-R1-14B-V0.6": Role("curriculum SFT", "p1"),
            "Fathom-R1-14B-V0.4-RS": Role("GRPO, then SFT", "p2"),
            "Fathom-R1-14B-RS": Role("merge of V0.6 and V0.4-RS", "p3"),
            "Fathom-R1-14B": Role("merge of V0.6 and V0.4", "final"),
        },
    ),
    "sky-t1": Family(
        "What the Sky-T1 authors report for their 32B models, a single run of each. Another scale and other "
        "problems: compare the shape (base, teacher, student), not the heights. They publish no intervals.",
        {
            "Qwen2.5-32B-Instruct": Role("base", "base"),
            "QwQ-32B-Preview": Role("teacher", "p1"),
            "Sky-T1-32B-Preview": Role("SFT on its rewritten chains", "final"),
        },
    ),
}
"""By what the names of the recipe's files begin with."""


@dataclass(frozen=True)
class Figure:
    """One published figure of one model. Rates are fractions of 1; None where the source does not say."""

    model: str
    benchmark: str
    pass1: float
    cons: float | None
    tokens: float | None
    samples: int


def family_of(run: Run) -> Family:
    """The family whose recipe the run follows, by its name; the first for a recipe of another name."""
    return next((family for name, family in FAMILIES.items() if run.name.startswith(name)), FAMILIES["fathom-r1"])


def figures(family: Family, tables: Sequence[Mapping[str, Any]]) -> dict[str, list[Figure]]:
    """The authors' own figures by benchmark, in the order of the roles.

    Benchmarks for which not every role has one are left out. tables: the content of published.yaml
    (percent; a figure is a pass@1, a pair with cons@k, or a mapping).
    """
    groups: dict[str, list[Figure]] = {}
    for model in family.roles:
        for table in tables:
            if not table.get("reproduction"):
                for benchmark, figure in table["rows"].get(model, {}).items():
                    groups.setdefault(benchmark, []).append(_figure(model, benchmark, figure, table["samples"]))
    return {benchmark: group for benchmark, group in groups.items() if len(group) == len(family.roles)}


def _figure(model: str, benchmark: str, figure: Any, samples: int) -> Figure:
    if isinstance(figure, int | float):
        figure = {"pass1": figure}
    elif isinstance(figure, list):
        figure = dict(zip(("pass1", "cons"), figure, strict=True))
    cons = figure.get("cons")
    return Figure(
        model, benchmark, figure["pass1"] / 100, None if cons is None else cons / 100, figure.get("tokens"), samples
    )
