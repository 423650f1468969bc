"""The first screen of a dataset in three statements: which encoder, how sure, and at what cost and what next."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import polars as pl

from fmcache.report.endings import Ending
from fmcache.report.findings import Findings
from fmcache.report.summary import Row
from fmcache.scores.records import Extraction
from fmcache.statistics.evidence import score_name
from fmcache.statistics.schemas import MEAN
from fmcache.statistics.verdict import Verdict

WORDS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
MOST_NAMES = 5
"""A longer list of names is cut, and says how many more there are."""

FEW_SEEDS, ENOUGH_SEEDS = 5, 10
REASONS = {
    "one seed": "{name} has one seed only",
    "too few units": "a label is in fewer than three {units}",
    "one fold": "a label is in one fold only",
    "nothing varied": "neither seeds nor {units} made a difference for {name}",
    "no whole run": "no seed of {name} tested every tile",
    "absent": "the test tiles have no label",
}
"""Why there is no interval, by the words of `fmcache.statistics.schemas.INTERVALS`."""


class Opening(NamedTuple):
    """The three statements, each of a few short sentences of plain text."""

    which: str
    sure: str
    next: str


def opening(findings: Findings) -> Opening:
    """Return the statements on a dataset. All of them are about the recipe's Dice, as the mean over labels."""
    return _Dataset(findings).opening()


class _Dataset:
    """The rows of one dataset's answer on the mean over labels, by name of the encoder."""

    def __init__(self, findings: Findings) -> None:
        self.findings = findings
        self.summary, self.evidence = findings.summary, findings.evidence
        mean = (pl.col("label") == MEAN) & (pl.col("score") == score_name(self.summary.reduction))
        self.rows = {row.encoder.name: row for row in self.summary.rows}
        self.intervals = {one["encoder"]: one for one in findings.answer.intervals.filter(mean).iter_rows(named=True)}
        self.pairs = findings.answer.pairs.filter(mean).to_dicts()
        self.controls = findings.answer.against_control.filter(mean).to_dicts()
        self.units = _units(findings)

    def opening(self) -> Opening:
        found = self.findings.verdict
        if not self.summary.compares:
            return Opening(
                "Nothing is ranked: the test tiles hold fewer than two labels, so Dice has no meaning here.",
                "Nothing can be said about encoders before the test tiles hold at least two labels.",
                "Test other tiles: fmcache data split writes another split.",
            )
        if not self.summary.ranked:
            return self._only_controls()
        if found is None:
            return self._one_at_most()
        which, sure = self._several(found) if len(found.may_be_best) > 1 else self._winner(found.first)
        return Opening(
            _joined(*self._unbeaten(), which), _joined(sure, self._condition()), self._next(found.may_be_best)
        )

    def _only_controls(self) -> Opening:
        best = max(self.summary.rows, key=lambda row: self._estimate(row.encoder.name) or -1.0)
        name = best.encoder.name
        return Opening(
            f"Only controls ran, so no encoder is compared. {self._highest(name, 'The best of them is')}",
            self._alone(name),
            "Extract and fit an encoder: fmcache encoders list shows those that are available.",
        )

    def _one_at_most(self) -> Opening:
        """Fewer than two encoders can be ranked."""
        known = [row.encoder.name for row in self.summary.ranked if self._estimate(row.encoder.name) is not None]
        if not known:
            names = [row.encoder.name for row in self.summary.ranked]
            return Opening(
                f"Nothing is ranked, because {self._reason(names)}.",
                "Without complete runs it is unknown how sure a comparison is.",
                "Run the same fmcache fit again: it trains only the runs that are missing.",
            )
        (name,) = known[:1]
        others = len(self.summary.ranked) - 1
        only = "the only encoder" if not others else "the only encoder whose runs are complete"
        which = f"{self._title(name)} is {only}: mean Dice {self._score(name)}."
        return Opening(
            _joined(*self._unbeaten(), which), _joined(self._alone(name), self._condition()), self._next([name])
        )

    def _winner(self, first: str) -> tuple[str, str]:
        n = len(self.summary.ranked)
        which = f"{self._title(first)} is the best of {_word(n)} encoders: mean Dice {self._score(first)}. "
        which += "The other one cannot be best." if n == 2 else "No other encoder may be best."
        second = min(self._pairs_of(first), key=lambda pair: pair.difference)
        sure = f"{self._title(first)} is {_points(second.difference)} points above {self._title(second.other)}"
        if second.low is not None and second.high is not None:
            limits = "95% limits" if n == 2 else "95% limits for all pairs jointly"
            sure += f" ({limits}: {_points(second.low)} to {_points(second.high)})"
        return which, sure + f". This study could have seen a difference of {_points(second.could_see or 0.0)} points."

    def _several(self, found: Verdict) -> tuple[str, str]:
        first, names = found.first, found.may_be_best
        which = self._highest(first, "", after=" has the highest mean Dice, ")
        if found.could_see is None:
            reason = self._reason(names)
            return (
                f"{which} Nothing shows that it is better than the others: {reason}.",
                f"No interval can be given, because {reason}.",
            )
        which = f"{which} {self._tested()} cannot tell {self._group(names)}."
        pairs = [pair for pair in self._pairs_of(first) if pair.other in names]
        seen = f"This study could have seen a difference of {_points(found.could_see)} points."
        return which, f"{seen} {self._needs(found, pairs)}."

    def _needs(self, found: Verdict, pairs: Sequence[_Pair]) -> str:
        """What it takes to tell the first from the others that may be best."""
        first = self._title(found.first)
        if len(pairs) == 1:
            differ = f"{first} and {self._title(pairs[0].other)} differ by {_points(pairs[0].difference)}"
            them, each = "them", ""
        else:
            least, most = (_points(pick(pair.difference for pair in pairs)) for pick in (min, max))
            span = least if least == most else f"between {least} and {most}"
            differ = f"{first} is {span} points above the other {_word(len(pairs))}"
            them, each = f"{first} from each of them", " from all of them"
        if found.more_seeds:
            some = "" if all(pair.more_seeds for pair in pairs) else " at least one of"
            hidden = "this" if len(pairs) == 1 else f"{some} these differences".strip()
            return f"{differ}; the variation between seeds alone hides {hidden}: it takes more seeds, not more tiles"
        low, high, now = found.units_low, found.units_high, len(self.evidence.units)
        telling = f"telling {them} apart" if len(pairs) == 1 else f"telling {first}{each}"
        if low is None:
            return f"{differ}; no number of {self.units} can be given that would tell {them}{' apart' * (not each)}"
        if high is None:
            least = f"at least about {low:,}" if low > now else f"more than these {now:,}"
            return f"{differ}; {telling} would take {least} {self.units}, and no upper limit can be given"
        if high <= now:
            return f"{differ}; compared with no other encoder, these {now:,} {self.units} could be enough"
        span = f"about {low:,} to {high:,}" if now < low < high else f"about {high:,}" if low > now else ""
        return f"{differ}; {telling} would take {span or f'up to about {high:,}'} {self.units}"

    def _unbeaten(self) -> list[str]:
        """The first thing to know: encoders that are not shown to be better than the best control."""
        if not self.controls:
            return []
        control = self.controls[0]["control"]
        best = f"the best control, {self._title(control)} ({100 * (self._estimate(control) or 0.0):.1f}%)"
        known = [one for one in self.controls if one["beats"] is not None]
        if not known:
            below = [one["encoder"] for one in self.controls if (one["difference"] or 0.0) <= 0]
            return [self._not(below, len(self.controls), best, "above")] if below else []
        below = [one["encoder"] for one in known if not one["beats"]]
        return [self._not(below, len(known), best, "shown to beat")] if below else []

    def _not(self, names: Sequence[str], of: int, best: str, what: str) -> str:
        if len(names) == of > 1:
            return f"No encoder is {what} {best}."
        ordered = [name for name in self.rows if name in names]
        return f"{self._names(ordered)} {'is' if len(names) == 1 else 'are'} not {what} {best}."

    def _condition(self) -> str:
        if self.summary.folds:
            return ""
        n = self.summary.record.tiles["train"]
        these = f"these {n} training tiles" if n != 1 else "this one training tile"
        return f"This holds only for decoders trained on {these}: the split is fixed."

    def _next(self, names: Sequence[str]) -> str:
        return _joined(*self._cost(names), *self._advice(names))

    def _cost(self, names: Sequence[str]) -> list[str]:
        """What the first costs, and which of those that may be best costs least."""
        first = names[0]
        costs = {name: self._extraction(name) for name in names}
        known = [one for one in costs.values() if one is not None]
        if len(known) == len(costs) and len({one.device for one in known}) == 1:
            values = {name: one.seconds / one.views for name, one in costs.items() if one is not None}
            what, where = "fastest to extract", f" on {known[0].device}"
            shown = {name: f"{_seconds(value)} a view" for name, value in values.items()}
            alone = f"{self._title(first)} took {shown[first]} to extract{where}."
        else:
            params = {name: self.rows[name].encoder.params for name in names}
            what, where = "smallest", ""
            values = {name: float(one) for name, one in params.items()}
            shown = {name: f"{_millions(one)} parameters" for name, one in params.items()}
            alone = f"{self._title(first)} has {shown[first]}."
        if len(names) == 1:
            return [alone]
        cheapest = min(values, key=lambda name: values[name])
        if cheapest == first:
            return [f"{self._title(first)} is also the {what} of these: {shown[first]}{where}."]
        than = f"({self._title(first)}: {shown[first]})"
        return [
            f"Of these {_word(len(names))}, {self._title(cheapest)} is the {what}: {shown[cheapest]}{where} {than}."
        ]

    def _extraction(self, name: str) -> Extraction | None:
        records = [run.record for run in self.findings.runs if run.record.encoder.name == name]
        known = [record.extraction for record in records if record.extraction is not None]
        return known[0] if known and known[0].views else None

    def _advice(self, names: Sequence[str]) -> list[str]:
        """What to do next, the most important first: at most two steps."""
        ranked = self.summary.ranked
        seeds = min(len(set(row.seeds)) for row in ranked)
        steps = []
        if text := _ended(ranked, Ending.COLLAPSED):
            steps.append(f"Train longer first: {text} collapsed.")
        elif text := _ended(ranked, Ending.RISING):
            steps.append(f"Train longer first: {text} ended while still improving.")
        more = self.findings.verdict is not None and self.findings.verdict.more_seeds
        if seeds < FEW_SEEDS:
            steps.append(f"Train {ENOUGH_SEEDS} seeds: {_word(seeds)} {'is' if seeds == 1 else 'are'} too few.")
        elif more and len(names) > 1:
            steps.append(f"Train more seeds than {seeds}.")
        if not self.controls:
            steps.append("Add a control, such as raw pixels, to see whether encoders help at all.")
        if len(names) > 1 and not more:
            where = "annotate more tiles" if self.summary.folds else "use folds (fmcache data split --folds 5)"
            steps.append(f"To test more tiles, {where}.")
        return steps[:2] or ["No run collapsed, and none ended while still improving."]

    def _alone(self, name: str) -> str:
        one = self.intervals[name]
        if one["low"] is None:
            return f"No interval can be given, because {self._reason([name])}."
        return (
            f"Of the variance behind this interval, {one['by_tiles']:.0%} comes from {self.units} and "
            f"{one['by_seeds']:.0%} from seeds."
        )

    def _reason(self, names: Sequence[str]) -> str:
        whys = [(name, self.intervals[name]["cannot"]) for name in names if name in self.intervals]
        name, why = next(((name, why) for name, why in whys if why), (names[0], "nothing varied"))
        if why == "one seed" and all(one == why for _, one in whys) and len(whys) > 1:
            return "each encoder has one seed only"
        return REASONS[why].format(name=self._title(name), units=self.units)

    def _highest(self, name: str, before: str, after: str = ": mean Dice ") -> str:
        return f"{before} {self._title(name)}{after}{self._score(name)}.".strip()

    def _score(self, name: str) -> str:
        one = self.intervals[name]
        if one["estimate"] is None:
            return "undefined"
        limits = "" if one["low"] is None else f" (95% interval {100 * one['low']:.1f} to {100 * one['high']:.1f})"
        return f"{100 * one['estimate']:.1f}%{limits}"

    def _estimate(self, name: str) -> float | None:
        value: float | None = self.intervals[name]["estimate"] if name in self.intervals else None
        return value

    def _pairs_of(self, first: str) -> list[_Pair]:
        """The pairs of an encoder and each other one, signed so that the difference is `first` minus the other."""
        return [_pair(one, first) for one in self.pairs if first in (one["a"], one["b"])]

    def _group(self, names: Sequence[str]) -> str:
        n, listed = len(names), self._names(names)
        order = sorted(
            (name for name in self.intervals if self.intervals[name]["may_be_best"] is not None),
            key=lambda name: (-self.intervals[name]["estimate"], name),
        )
        if n == 2 == len(order):
            return f"{listed} apart"
        if n == len(order):
            return f"the {_word(n)} encoders apart: {listed}"
        if set(order[:n]) == set(names):
            return f"the first {_word(n)} apart: {listed}"
        return f"which of these {_word(n)} is best: {listed}"

    def _names(self, names: Sequence[str]) -> str:
        titles = [self._title(name) for name in names]
        if len(titles) > MOST_NAMES:
            return f"{', '.join(titles[: MOST_NAMES - 1])} and {_word(len(titles) - MOST_NAMES + 1)} more"
        return " and ".join(part for part in (", ".join(titles[:-1]), titles[-1]) if part)

    def _title(self, name: str) -> str:
        return self.rows[name].encoder.display

    def _tested(self) -> str:
        """The test tiles and units. There are several: fewer than three units have no interval."""
        text = f"{self.evidence.tiles:,} test tiles"
        if self.units != "test tiles":
            text += f" of {len(self.evidence.units):,} {self.units}"
        return text + (f" in {_word(len(self.summary.folds))} folds" if self.summary.folds else "")


class _Pair(NamedTuple):
    other: str
    difference: float
    low: float | None
    high: float | None
    could_see: float | None
    more_seeds: bool


def _pair(one: dict[str, Any], first: str) -> _Pair:
    rest = (one["could_see"], bool(one["more_seeds"]))
    if one["a"] == first:
        return _Pair(one["b"], one["difference"], one["low"], one["high"], *rest)
    low, high = (None if end is None else -end for end in (one["high"], one["low"]))
    return _Pair(one["a"], -one["difference"], low, high, *rest)


def _units(findings: Findings) -> str:
    """What the test units are. The manifest knows groups only: patients, or slides."""
    groups = {group for run in findings.runs for group in run.record.groups.values()}
    if not groups:
        return "test tiles"
    return "patients or slides" if set(findings.evidence.units) <= groups else "patients, slides or tiles"


def _ended(rows: Sequence[Row], how: Ending) -> str:
    """Return how many runs ended in a way, and whose; empty if none did."""
    found = [(row.encoder.display, len(row.ended(how))) for row in rows if row.ended(how)]
    if not found:
        return ""
    n, of = sum(count for _, count in found), sum(len(row.runs) for row in rows)
    names = f" ({', '.join(name for name, _ in found)})" if len(found) < min(len(rows), MOST_NAMES) else ""
    return f"{n} of {of} runs{names}"


def _joined(*sentences: str) -> str:
    return " ".join(sentence for sentence in sentences if sentence)


def _word(n: int) -> str:
    return WORDS[n] if 0 <= n < len(WORDS) else str(n)


def _points(share: float) -> str:
    """Return a difference of Dice in points; a small one is not shown as 0."""
    value = 100 * share
    if 0 < abs(value) < 0.05:
        return "less than 0.1"
    return f"{value:.1f}"


def _seconds(value: float) -> str:
    return f"{1000 * value:.0f} ms" if value < 1 else f"{value:.1f} s"


def _millions(params: int) -> str:
    return (
        f"{params / 1e6:,.0f} million"
        if params >= 1e7
        else f"{params / 1e6:.1f} million"
        if params >= 1e5
        else str(params)
    )
