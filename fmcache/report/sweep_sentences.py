"""What a sweep shows, in a sentence for each encoder, and how much the last training tiles helped."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import polars as pl

from fmcache.report.findings import Findings
from fmcache.report.summary import MEAN
from fmcache.report.sweep import SUBSET, Point, SweptDataset, shown_setting
from fmcache.scores.records import EncoderInfo
from fmcache.scores.results import results_table
from fmcache.settings import Setting
from fmcache.specs import short_field
from fmcache.statistics.answer import answer
from fmcache.statistics.evidence import evidence_of

MOST_LISTED = 4
"""A longer list of settings is not written out."""

LITTLE = 1.0
"""A gain below this is called little, in points of mean Dice."""


class Gain(NamedTuple):
    """The gain of an encoder from one setting to another, in points of mean Dice, with 95 % limits (NaN: none)."""

    points: float
    low: float
    high: float


def sweep_sentences(swept: SweptDataset) -> list[str]:
    """Return a sentence on the order, one for each encoder, and one for each learning curve."""
    each = [_on_control(swept, one) if swept.is_control(one.name) else _on(swept, one) for one in swept.encoders]
    return [*_order(swept), *each, *_learning(swept)]


def gain(before: Findings, after: Findings, encoder: str) -> Gain:
    """Return how much an encoder gained between two settings.

    Both settings test the same tiles, so the tiles are paired, as they are for two encoders under one setting
    (`fmcache.statistics.pairs`); seeds are not.
    """
    tables: list[pl.DataFrame] = []
    groups: dict[str, str] = {}
    for name, found in (("after", after), ("before", before)):
        runs = [run for run in found.runs if run.record.encoder.name == encoder]
        tables.append(results_table(runs).with_columns(pl.lit(name).alias("encoder")))
        groups |= {tile: group for run in runs for tile, group in run.record.groups.items()}
    evidence = evidence_of(pl.concat(tables), after.evidence.score, groups, after.evidence.labels)
    rows = answer(evidence).pairs.filter(pl.col("label") == MEAN).to_dicts()
    if not rows:
        return Gain(math.nan, math.nan, math.nan)
    return Gain(*(100 * _number(rows[0][key]) for key in ("difference", "low_alone", "high_alone")))


def _on(swept: SweptDataset, encoder: EncoderInfo) -> str:
    points = swept.of(encoder.name)
    ranked = {setting: point for setting, point in points.items() if point.place}
    if not ranked:
        return f"{encoder.display}: not ranked under any setting."
    first = [setting for setting, point in ranked.items() if point.place == 1]
    may = [setting for setting, point in ranked.items() if point.may_be_best]
    shown = [setting for setting in first if setting in may and _others(swept, setting, encoder.name) == 0]
    parts = [f"first {_only(first, ranked)}{_under(first, swept)}" if first else "never first"]
    if shown and len(shown) == len(may):
        parts.append("no other encoder may be best there")
    elif may:
        parts.append(f"may be best {_under(may, swept)}")
        parts += [f"the only one that may be best {_under(shown, swept)}"] if shown else []
    elif all(point.may_be_best is False for point in ranked.values()):
        parts.append("another encoder is better under every setting")
    return f"{encoder.display}: {'; '.join(parts)}.{_absent(swept, points)}"


def _on_control(swept: SweptDataset, encoder: EncoderInfo) -> str:
    points = swept.of(encoder.name)
    above = [setting for setting, point in points.items() if _beats_all(swept, setting, point)]
    if not any(not swept.is_control(name) for name, _ in swept.points):
        said = "a control, never ranked"
    elif above:
        said = f"a control, but its Dice is above that of every encoder {_under(above, swept)}"
    else:
        said = "a control; at least one encoder has a higher Dice under every setting"
    return f"{encoder.display}: {said}.{_absent(swept, points)}"


def _beats_all(swept: SweptDataset, setting: Setting, point: Point) -> bool:
    rivals = [p.estimate for (_, at), p in swept.points.items() if at == setting and not p.row.is_control]
    known = [estimate for estimate in rivals if not math.isnan(estimate)]
    return bool(known) and point.estimate > max(known)


def _others(swept: SweptDataset, setting: Setting, encoder: str) -> int:
    """Return how many other encoders may be best under a setting."""
    return sum(bool(p.may_be_best) for (name, at), p in swept.points.items() if at == setting and name != encoder)


def _only(some: Sequence[Setting], ranked: Sequence[Setting] | dict[Setting, Point]) -> str:
    return "only " if len(some) < len(ranked) else ""


def _under(some: Sequence[Setting], swept: SweptDataset) -> str:
    """Return which settings are meant: all, those with one value of a field, or a list."""
    everything = swept.settings
    if len(some) == len(everything):
        return "under every setting"
    for pair in some[0]:
        if set(some) == {setting for setting in everything if pair in setting}:
            return f"under {shown_setting((pair,))}"
    if len(swept.fields) == 1 and len(some) <= MOST_LISTED:
        return f"under {short_field(*swept.fields)} {', '.join(map(swept.text, some))}"
    listed = "" if len(some) > MOST_LISTED else f" ({'; '.join(map(shown_setting, some))})"
    return f"under {len(some)} of {len(everything)} settings{listed}"


def _absent(swept: SweptDataset, points: dict[Setting, Point]) -> str:
    missing = len(swept.settings) - len(points)
    return f" It was not run under {missing} of {len(swept.settings)} settings." if missing else ""


def _order(swept: SweptDataset) -> list[str]:
    """Return whether the order of the encoders that were ranked under every setting is the same."""
    names = [e.name for e in swept.encoders if all((p := swept.of(e.name).get(s)) and p.place for s in swept.settings)]
    if len(names) < 2 or len(swept.settings) < 2:
        return []
    orders = {tuple(sorted(names, key=lambda name: swept.points[name, s].place)) for s in swept.settings}
    if len(orders) == 1:
        return ["The order of encoders is the same under every setting."]
    return [f"The order of encoders depends on the setting: {len(orders)} orders in {len(swept.settings)} settings."]


def _learning(swept: SweptDataset) -> list[str]:
    """Return a sentence on the last step of each learning curve: one for each setting of the other fields."""
    curves: dict[Setting, list[tuple[int, Setting]]] = {}
    for setting, found in swept.findings.items():
        if any(field == SUBSET for field, _ in setting):
            rest = tuple(pair for pair in setting if pair[0] != SUBSET)
            curves.setdefault(rest, []).append((found.summary.record.tiles["train"], setting))
    return [_last_step(swept, rest, sorted(steps)) for rest, steps in curves.items() if len(steps) > 1]


def _last_step(swept: SweptDataset, rest: Setting, steps: Sequence[tuple[int, Setting]]) -> str:
    (few, before), (many, after) = steps[-2:]
    where = f"Under {shown_setting(rest)}, from" if rest else "From"
    step = f"{where} {few} to {many} training tiles"
    leader = next((row for row in swept.findings[after].summary.rows if not row.is_control), None)
    if leader is None or (leader.encoder.name, before) not in swept.points:
        return f"{step}: the first encoder has no result on both sides."
    found = gain(swept.findings[before], swept.findings[after], leader.encoder.name)
    if math.isnan(found.points):
        return f"{step}: the first encoder has no Dice on both sides."
    said = f"{step}, {leader.encoder.display} (first with {many}) {_gained(found)}"
    caution = "" if swept.findings[after].summary.folds else " One subset of each size was tried; others may differ."
    return f"{said}. {_advice(found)}{caution}"


def _gained(found: Gain) -> str:
    verb = "gained" if found.points >= 0 else "lost"
    text = f"{verb} {abs(found.points):.1f} points of mean Dice"
    if math.isnan(found.low):
        return text
    limits = f"[{_signed(found.low)}, {_signed(found.high)}]"
    return f"{text} (95 % interval of the gain on the same test tiles: {limits})"


def _advice(found: Gain) -> str:
    if math.isnan(found.low):
        return (
            "Without an interval (too few seeds or test tiles), it is unknown whether more training tiles would help."
        )
    if found.low > 0:
        return "More training tiles would probably still help."
    if found.high < 0:
        return "The larger subset was worse; that is no reason to expect a gain from more tiles."
    if found.high < LITTLE:
        return "More training tiles would probably help little."
    return (
        f"A gain is not shown; up to {found.high:.1f} points are possible, so more training tiles may or may not help."
    )


def _signed(value: float) -> str:
    text = f"{value:+.1f}"
    return text[1:] if float(text) == 0 else text.replace("-", "−")


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)
