"""What `fmcache screen` runs, and how its result leads to a study of fewer encoders.

The recipe is the same as pipelines/screen.yaml, which a package that was installed with pip does not have.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from fmcache.commands.options import DEFAULT_MANIFEST, DEFAULT_WORK

if TYPE_CHECKING:
    from pathlib import Path

    from fmcache.scores.records import EncoderInfo
    from fmcache.specs import Recipe
    from fmcache.stages.flags import Flags


def screening() -> Recipe:
    """Return the recipe: a linear probe on the grids that `fmcache extract` caches for the paper's protocol."""
    from fmcache.specs import DecoderSpec, FitSpec, Recipe

    return Recipe(
        name="screen",
        question="Which encoders are worth a full study with the paper's decoder?",
        expect="The order of a linear probe is like that of the paper's decoder, but need not be equal to it. On three "
        "small datasets with one pretrained encoder the leader was the same (pipelines/own-study.md).",
        decoder=DecoderSpec(kind="linear"),
        fit=FitSpec(learning_rate=1e-2),
    )


def remaining(
    leaders: Mapping[str, Sequence[EncoderInfo]], datasets: Sequence[str], manifest: Path, flags: Flags
) -> Iterator[str]:
    """Yield which encoders may still be best, and the commands that fit the paper's decoder for those only.

    Parameters
    ----------
    leaders
        By dataset, the ranked encoders that may be best; empty where fewer than two are ranked.
    datasets
        The datasets that the user named. Without them there is one, and commands name none.
    manifest, flags
        As the user passed them: commands repeat what differs from the defaults.
    """
    together: dict[tuple[str, ...], list[str]] = {}
    for dataset, infos in leaders.items():
        if not infos:
            yield (
                f"{dataset}: fewer than two encoders are ranked (controls and random weights never are), so the "
                "screening rules none out"
            )
            continue
        who, are = ", ".join(info.display for info in infos), "encoder" if len(infos) == 1 else "encoders"
        yield f"{dataset}: {len(infos)} {are} may still be best, judged by a linear probe: {who}"
        together.setdefault(tuple(info.name for info in infos), []).append(dataset)
    for names, of in together.items():
        words = ["fmcache", "fit", *_repeated("--encoder", names), *(_repeated("--dataset", of) if datasets else ())]
        yield f"  next, the paper's decoder for those only: {shlex.join([*words, *_flags(manifest, flags)])}"


def _repeated(flag: str, values: Sequence[str]) -> Iterator[str]:
    for value in values:
        yield from (flag, value)


def _flags(manifest: Path, flags: Flags) -> Iterator[str]:
    """Yield the flags of a command that differ from the defaults."""
    if manifest != DEFAULT_MANIFEST:
        yield from ("--manifest", str(manifest))
    if flags.work != DEFAULT_WORK:
        yield from ("--work", str(flags.work))
    if flags.device != "auto":
        yield from ("--device", flags.device)
    processes = "--dask" if isinstance(flags.workers, str) else "--workers"
    for name, count in (("--threads", flags.threads), (processes, flags.workers)):
        if count:
            yield from (name, str(count))
