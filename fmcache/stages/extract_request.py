"""What extract must do for one dataset. It is the same for all caches of the dataset and is passed as one object."""

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
    """What a recipe needs from a dataset, its tiles' hashes, the manifest; `say` receives message lines."""

    recipe: Recipe
    demand: Demand
    hashes: Hashes
    manifest: Path
    flags: Flags
    say: Callable[[str], None]

    @property
    def folder(self) -> Path:
        """The folder of the manifest, where relative roots of datasets start."""
        return self.manifest.parent

    @property
    def mask_cache_path(self) -> Path:
        """The path of the mask cache."""
        return places.mask_cache_path(self.flags.work, self.demand.name, self.recipe)
