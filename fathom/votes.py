"""Votes: answers of one problem gathered into clusters that mean the same, as they come in.

Evaluation counts them for cons@k, `serve.consensus` to stop early; both see the same clusters. What makes
two answers equal is a grader's business, and what a majority is worth is the metrics'.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

Equivalent = Callable[[str, str], bool]

NO_VOTE = -1
"""Label of a sample that announces no answer (truncated, or nothing to extract): it does not vote."""


class Ballot:
    """The votes of one problem so far.

    An answer joins the first cluster whose first member it equals, so a cluster never changes with later
    answers. equivalent: exact and symmetric, such as `graders.equivalent`; without it strings are the
    canonical form. founders: the first member of each cluster, in order; counts: its votes.
    """

    def __init__(self, equivalent: Equivalent | None = None):
        self.founders: list[str] = []
        self.counts: list[int] = []
        self._equivalent = equivalent
        self._label_of: dict[str, int] = {}

    def cast(self, answer: str | None) -> int:
        """Count one answer; returns its cluster's label, `NO_VOTE` for None and empty ones."""
        if answer is None or not answer.strip():
            return NO_VOTE
        if answer not in self._label_of:
            self._label_of[answer] = self._join(answer)
        label = self._label_of[answer]
        self.counts[label] += 1
        return label

    def _join(self, answer: str) -> int:
        if self._equivalent is not None:
            for label, founder in enumerate(self.founders):
                if self._equivalent(founder, answer):
                    return label
        self.founders.append(answer)
        self.counts.append(0)
        return len(self.founders) - 1


def cluster_votes(answers: Sequence[str | None], equivalent: Equivalent | None = None) -> np.ndarray:
    """Label the answers of one problem so that equal labels are one vote; shape (samples,), int.

    Labels are those of a `Ballot` on which the answers are cast in order.
    """
    ballot = Ballot(equivalent)
    return np.array([ballot.cast(answer) for answer in answers], dtype=int)
