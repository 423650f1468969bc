"""Find the patient or slide of each tile: from a table, from a regex on names, or guessed for a hint."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from fmcache.datasets.file_names import stem_of
from fmcache.datasets.folder import Pair
from fmcache.datasets.group_tables import SHEETS, TABLES, read_groups
from fmcache.errors import SpecError, some

LIKELY = (
    r"^(TCGA-[A-Za-z0-9]{2}-[A-Za-z0-9]{4})",
    r"^([A-Za-z]*[0-9]+[A-Za-z]?)[-_ ]",
    r"^(.*[0-9].*?)[-_ .]+\[?(?:d=[0-9.]+,)?[xy]=?[0-9]+",
    r"^(.*[0-9].*?)[-_][0-9]+[-_][0-9]+$",
    r"^(.*[0-9].*)[-_][A-Za-z]*[0-9]+$",
)
"""Regexes that may group names by patient or slide. Patients come first, because the earlier regexes make larger
groups."""


def group_of(groups: str, pairs: Sequence[Pair], say: Callable[[str], None] = lambda line: None) -> list[str]:
    """Return the group of each tile: from a table with columns of tiles and groups, or a regex with one (group).

    Parameters
    ----------
    groups
        A file (CSV, with commas, semicolons or tabs), or a regex on the name of the image without its ending.
    say
        Gets one line for each fact about how a table was read, such as its columns or its encoding.

    Raises
    ------
    SpecError
        When the rule leaves a tile without a group, or a table cannot be read or contradicts itself.
    """
    if not groups:
        return [""] * len(pairs)
    if _is_file(groups):
        found = read_groups(Path(groups), pairs, say)
    else:
        try:
            rule = re.compile(groups)
            matches = [rule.search(stem_of(pair.image.name)) for pair in pairs]
            found = [(match.group(1) or "") if match else "" for match in matches]
        except (re.error, IndexError, RecursionError, OverflowError) as reason:
            raise SpecError(
                f"--groups {groups!r} is neither a file nor a regex with one (group): {reason}",
                next_step="check the path, or write a regex such as '^(P[0-9]+)_'",
            ) from None
    if lone := [pair.id for pair, group in zip(pairs, found, strict=True) if not group]:
        raise SpecError(
            f"--groups {groups!r} gives no group to {len(lone)} tiles",
            found=some(lone),
            next_step="change the regex or complete the table, so that each tile has a group",
        )
    return found


def likely_groups(pairs: Sequence[Pair]) -> str:
    """Return a hint when names look like several tiles of one patient or slide, with the regex that groups them.

    The hint is empty when names do not look so.
    """
    stems = [stem_of(pair.image.name) for pair in pairs]
    for rule in LIKELY:
        matches = [re.search(rule, stem) for stem in stems]
        teams = Counter(match[1] for match in matches if match)
        if all(matches) and 1 < len(teams) < len(stems) and max(teams.values()) > 1:
            named = some([f"{n} of {team}" for team, n in teams.most_common()], 3)
            return (
                f"names look like tiles of {len(teams)} patients or slides ({named}). The split may put tiles of one "
                f"patient into training and test, so the test may not be on new patients. To keep each patient in "
                f"one split: --groups '{rule}'"
            )
    return ""


def _is_file(groups: str) -> bool:
    ending = Path(groups).suffix.lower()
    try:
        return ending in (*TABLES, *SHEETS) or Path(groups).exists()
    except (OSError, ValueError):  # a regex may not be a valid path
        return False
