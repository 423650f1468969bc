"""Whether two datasets, or ours and the paper, rank encoders alike, as a row of a table and as a sentence."""

from __future__ import annotations

import polars as pl

from fmcache.report.findings import Findings
from fmcache.statistics.agreement import Agreement, Side, agreement, side_of

AGREEMENT = {
    "a": pl.String,
    "b": pl.String,
    "encoders": pl.Int64,
    "tau": pl.Float64,
    "tau_low": pl.Float64,
    "tau_high": pl.Float64,
    "rho": pl.Float64,
    "rho_low": pl.Float64,
    "rho_high": pl.Float64,
    "cannot": pl.String,
}
NO_LIMITS = {
    "too few encoders": "too few encoders are on both sides",
    "no variance": "with one seed or few test units, the errors of the scores are unknown",
    "all equal": "all scores of one side are equal",
}
"""Why there are no limits, by `cannot` of an `Agreement`."""


def side(found: Findings) -> Side:
    """Return the mean scores of a dataset's ranked encoders with their variances."""
    return side_of(found.evidence, [row.encoder.name for row in found.summary.rows if row.is_control])


def of_datasets(a: Findings, b: Findings) -> Agreement:
    """Return how far two datasets rank the encoders alike that were run on both."""
    return agreement(side(a), side(b))


def sentence(between: str, found: Agreement) -> str:
    """Return a sentence on rank agreement; `between` names the two sides."""
    over = f"Ranks {between} over {found.n} encoder{'s' * (found.n != 1)}"
    if found.tau is None or found.rho is None:
        return f"{over}: no agreement can be given ({_why(found)})."
    tau = f"Kendall's τ {_signed(found.tau)}{_limits(found.tau_low, found.tau_high)}"
    rho = f"Spearman's ρ {_signed(found.rho)}{_limits(found.rho_low, found.rho_high)}"
    if found.cannot:
        return f"{over}: {tau}, {rho}; no intervals ({_why(found)})."
    return f"{over}: {tau}, {rho}, with 95 % intervals of the true agreement of these encoders."


def _why(found: Agreement) -> str:
    return NO_LIMITS.get(found.cannot or "", found.cannot or "")


def _limits(low: float | None, high: float | None) -> str:
    return "" if low is None or high is None else f" [{_signed(low)}, {_signed(high)}]"


def _signed(value: float) -> str:
    return f"{value:.2f}".replace("-", "−")
