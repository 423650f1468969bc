"""All that a report says of one dataset of a study: its runs, their summary, and how certain the comparison is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import polars as pl

from fmcache.report.further_scores import FurtherScores, further_scores
from fmcache.report.summary import Summary, summarise
from fmcache.scores.records import RunResults
from fmcache.statistics.answer import Answer, answer, answers
from fmcache.statistics.evidence import Evidence, Score, score_name, scores_of
from fmcache.statistics.verdict import Verdict, verdict


class Findings(NamedTuple):
    """One dataset of a study.

    `summary` has the rows of the tables in order (ranked encoders by mean Dice, then controls). `evidence`
    is for the recipe's own Dice. `answer` has the intervals, pairs and differences to the best control for all scores
    that the labels allow, and for the surface Dice of the encoders whose runs counted boundaries; `verdict` is their
    short form for the recipe's own Dice (None: fewer than two encoders are ranked). `further` has the scores beyond
    overlap, as far as the runs have them.
    """

    runs: tuple[RunResults, ...]
    summary: Summary
    evidence: Evidence
    answer: Answer
    verdict: Verdict | None
    further: FurtherScores

    def intervals_of(self, score: Score | None = None) -> dict[tuple[str, str], dict[str, Any]]:
        """Return the rows of `answer.intervals` for a score (default: the recipe's Dice), by (encoder, label)."""
        wanted = score_name(score or self.evidence.score)
        rows = self.answer.intervals.filter(pl.col("score") == wanted).iter_rows(named=True)
        return {(row["encoder"], row["label"]): row for row in rows}


def find(runs: Sequence[RunResults]) -> Findings:
    """Return the findings of all runs of one study and dataset; raises the errors of `summarise`."""
    summary = summarise(runs)
    evidence = summary.evidence
    controls = [row.encoder.name for row in summary.rows if row.is_control]
    found, further = answers(evidence, scores_of(evidence.labels), controls), further_scores(runs, evidence)
    if further.boundaries:
        of_boundaries = answer(further.boundaries, [name for name in controls if name in further.boundaries.encoders])
        found = Answer(*(pl.concat(tables) for tables in zip(found, of_boundaries, strict=True)))
    return Findings(tuple(runs), summary, evidence, found, verdict(found, score=summary.reduction), further)
