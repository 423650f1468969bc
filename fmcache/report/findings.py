"""All that a report says of one dataset of a study: its runs, their summary, and how certain the comparison is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from fmcache.report.summary import Summary, summarise
from fmcache.scores.records import RunResults
from fmcache.scores.results import results_table
from fmcache.statistics.answer import Answer, answers
from fmcache.statistics.evidence import Evidence, evidence_of, scores_of
from fmcache.statistics.verdict import Verdict, verdict


class Findings(NamedTuple):
    """One dataset of a study.

    `summary` has the rows of the tables in order (ranked encoders by mean Dice, then controls). `evidence`
    is for the recipe's own Dice. `answer` has the intervals, pairs and differences to the best control for all scores
    that the labels allow; `verdict` is their short form for the recipe's own Dice (None: fewer than two encoders are
    ranked).
    """

    runs: tuple[RunResults, ...]
    summary: Summary
    evidence: Evidence
    answer: Answer
    verdict: Verdict | None


def find(runs: Sequence[RunResults]) -> Findings:
    """Return the findings of all runs of one study and dataset; raises the errors of `summarise`."""
    summary = summarise(runs)
    groups = {tile: group for run in runs for tile, group in run.record.groups.items()}
    labels = [name for name, _ in summary.record.labels]
    evidence = evidence_of(results_table(runs), summary.reduction, groups, labels)
    found = answers(evidence, scores_of(labels), [row.encoder.name for row in summary.rows if row.is_control])
    return Findings(tuple(runs), summary, evidence, found, verdict(found, score=summary.reduction))
