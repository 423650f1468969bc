"""Kills: a command is ended at a random moment; run again, it must give the same files as without the kill."""

from __future__ import annotations

import signal
import time
from typing import NamedTuple

import numpy as np

from torturing.commands import Done, Running, run
from torturing.study import (
    ADD,
    MORE,
    PLAIN,
    REPORT,
    SPLIT,
    VERIFY,
    Study,
    compared,
    differing,
    extract,
    fit,
    leftovers,
    state_of,
)

START_S = 2.5
"""Approximate seconds until a fresh interpreter starts its work."""
WORKERS_S = 5.0
"""Approximate seconds until two worker processes start their work."""
STOP_S, ORPHAN_S = 30.0, 10.0


class Scenario(NamedTuple):
    """A command, the state of the study before it, and the state after it (and after the command `then`, if given).

    `life` is the state that takes about as long to make as the command runs.
    """

    start: str
    command: str
    end: str
    life: str
    weight: int = 3
    then: str = ""


_EXTRACT, _FIT = extract("mine.yaml"), fit("mine.yaml")
_RM = "cache rm --yes CACHE"
SCENARIOS = (
    Scenario("bare", ADD, "added", "added"),
    Scenario("added", SPLIT, "split", "split"),
    Scenario("listed", _EXTRACT, "mine.extracted", "mine.extracted", 6),
    Scenario("mine.half", _EXTRACT, "mine.extracted", "mine.extracted"),
    Scenario("many.half", _EXTRACT, "many.extracted", "mine.extracted", 2, extract(MORE)),
    Scenario("mine.reported", f"{_EXTRACT} --recompute", "mine.reported", "mine.extracted", 4),
    Scenario("mine.extracted", extract(MORE), "more.extracted", "more.extracted", 4),
    Scenario("listed", f"{_EXTRACT} --workers 2", "mine.extracted", "mine.extracted", 1),
    Scenario("mine.extracted", _FIT, "mine.fitted", "mine.fitted", 6),
    Scenario("mine.reported", f"{_FIT} --recompute", "mine.reported", "mine.fitted"),
    Scenario("mine.extracted", f"{_FIT} --workers 2", "mine.fitted", "mine.fitted", 1),
    Scenario("mine.fitted", REPORT, "mine.reported", "mine.reported", 4),
    Scenario("mine.reported", _RM, "mine.reported", "rm", 4, _EXTRACT),
    Scenario("listed", f"run mine.yaml --offline {PLAIN}", "mine.reported", "run"),
)
WAYS = (
    (signal.SIGKILL, True, 0.45),
    (signal.SIGKILL, False, 0.2),
    (signal.SIGTERM, True, 0.2),
    (signal.SIGINT, True, 0.15),
)
"""Signal, whether the whole process group gets it, and its probability."""


class Outcome(NamedTuple):
    """Outcome of a kill; `lost` lists what differs from a run without the kill."""

    what: str
    lost: list[str]
    orphans: int
    leftovers: list[str]


def kill(study: Study, random: np.random.Generator) -> Outcome:
    """Start a command, kill it, run it again to its end, and compare."""
    weights = np.array([scenario.weight for scenario in SCENARIOS], float)
    scenario = SCENARIOS[random.choice(len(SCENARIOS), p=weights / weights.sum())]
    scenario = scenario._replace(command=scenario.command.replace("CACHE", study.cache("raw-pixels")))
    number, group, _ = WAYS[random.choice(len(WAYS), p=[share for *_, share in WAYS])]
    fresh = bool(random.random() < 0.1)
    end = study.at(scenario.end)
    life = _life(study, scenario, fresh)
    running, moment = _killed(study, scenario, fresh, number, group, life, random)
    orphans = _orphans(running)
    stopped = running.wait(STOP_S)
    what = f"{scenario.command!r} {'fresh' if fresh else 'warm'}, {number.name} {'to all' if group else 'to it alone'}"
    what += f" after {moment:.3f} of {life:.2f} s"
    lost = [f"it took {stopped.wall_s:.0f} s to end"] if stopped.wall_s - moment > STOP_S else []
    again = run(study.folder, scenario.command)
    last = run(study.folder, scenario.then) if scenario.then else again
    found = state_of(study.folder)
    lost += differing(compared(found), compared(end))[:4]
    if (last.code and lost) or again.traceback or last.traceback:
        lost.append(f"the same command ended with {again.code}, {last.code}: {_end_of(again)} {_end_of(last)}")
    left = leftovers(study.folder)
    if any(".zarr/" in name for name in found):
        verified = run(study.folder, VERIFY)
        lost += [f"verify: {_end_of(verified)}"] if verified.code else []
    return Outcome(what, lost, orphans, left)


def _life(study: Study, scenario: Scenario, fresh: bool) -> float:
    """Return the approximate duration of a command in seconds."""
    if scenario.life == "rm":
        life = 0.3
    elif scenario.life == "run":
        life = sum(study.life_s[f"mine.{stage}"] for stage in ("extracted", "fitted", "reported"))
    else:
        study.at(scenario.life)
        life = study.life_s[scenario.life]
    return life + START_S * fresh + WORKERS_S * ("--workers" in scenario.command)


def _killed(
    study: Study,
    scenario: Scenario,
    fresh: bool,
    number: int,
    group: bool,
    life: float,
    random: np.random.Generator,
) -> tuple[Running, float]:
    """Return a command that was running when it got the signal, and the seconds before the signal."""
    while True:
        study.put_back(scenario.start)
        moment = float(random.uniform(0, life))
        running = Running(study.folder, tuple(scenario.command.split()), fresh)
        time.sleep(moment)
        if not running.ended():
            running.signal(number, group)
            return running, moment
        life *= 0.8


def _orphans(running: Running) -> int:
    """Return how many processes outlive their command, and kill them."""
    stop = time.monotonic() + STOP_S
    while not running.ended() and time.monotonic() < stop:
        time.sleep(0.01)
    stop = time.monotonic() + ORPHAN_S
    while (left := running.others()) and time.monotonic() < stop:
        time.sleep(0.05)
    if left:
        running.signal(signal.SIGKILL)
    return len(left)


def _end_of(done: Done) -> str:
    return " / ".join(done.text.strip().splitlines()[-4:])[:600]
