"""What an extract is asked to do for one dataset: constant for all of its caches, and passed whole."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from fmcache.demand import Demand
from fmcache.specs import Recipe
from fmcache.stages import places
from fmcache.stages.flags import Flags
from fmcache.stages.identities import Hashes


class ExtractRequest(NamedTuple):
    """A recipe's demand of a dataset, the content hashes of its tiles, and the manifest's folder; `say` takes lines."""

    recipe: Recipe
    demand: Demand
    hashes: Hashes
    folder: Path
    flags: Flags
    say: Callable[[str], None]

    @property
    def mask_cache_path(self) -> Path:
        """Where the mask cache lies."""
        return places.mask_cache_path(self.flags.work, self.demand.name, self.recipe)
