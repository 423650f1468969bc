"""Paths below the working folder. Names are for people; the identities inside the files decide what the files are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fmcache.encoders.cards import SUFFIXES, TIMM, card_names, read_card
from fmcache.errors import SpecError
from fmcache.identity import fingerprint
from fmcache.specs import NAME_ONE, EncoderChoice, Recipe
from fmcache.stages.identities import view_identity


def caches(work: Path) -> Path:
    """Return the folder of all caches."""
    return work / "cache"


def results(work: Path) -> Path:
    """Return the folder of all results."""
    return work / "results"


def reports(work: Path) -> Path:
    """Return the folder of all reports."""
    return work / "report"


def maps(work: Path, *names: str) -> Path:
    """Return the folder of the maps of slides: by study, dataset, encoder and runs, or by the name of a bundle."""
    return (work / "maps").joinpath(*names)


def slide_tokens(work: Path, encoder: str, name: str) -> Path:
    """Return the path of a cache of the tokens of a slide, by the encoder's name in the results."""
    return caches(work) / "slides" / encoder / name


def encoder_key(choice: EncoderChoice) -> str:
    """Return an encoder's name for folders and tables; it is the same with and without torch installed.

    Raises
    ------
    SpecError
        When the chosen name belongs to another encoder, or when `read_card` raises it.
    """
    if choice.name.startswith(TIMM):
        name = "timm-" + choice.name.removeprefix(TIMM)
    else:
        name = read_card(choice.name).name if choice.name.endswith(SUFFIXES) else choice.name
    if choice.alias and choice.alias != name and choice.alias in card_names():
        raise SpecError(
            f"{choice.name!r} cannot be called {choice.alias!r}: another encoder has this name",
            next_step="choose another name for `as` (--as)",
        )
    name = choice.alias or name
    return f"{name}-random" if choice.random_weights else name


def encoder_keys(recipe: Recipe) -> dict[str, str | EncoderChoice]:
    """Return the encoders that a recipe lists, by their names for folders and tables.

    Raises
    ------
    SpecError
        When two encoders have the same name, or when `encoder_key` raises it.
    """
    keys: dict[str, str | EncoderChoice] = {}
    for listed, choice in zip(recipe.encoders, recipe.encoder_choices, strict=True):
        key = encoder_key(choice)
        if key in keys:
            raise SpecError(f"two encoders of recipe {recipe.name!r} are called {key!r}", next_step=NAME_ONE)
        keys[key] = listed
    return keys


def mask_cache_path(work: Path, dataset: str, recipe: Recipe) -> Path:
    """Return the path of the mask cache of a dataset for a recipe."""
    views = fingerprint(view_identity(recipe.views, masks=True))[:6]
    return caches(work) / dataset / "view-bank" / f"{recipe.tile_px}px-views-{views}.zarr"


def tokens_path(work: Path, dataset: str, key: str, recipe: Recipe, tap: str) -> Path:
    """Return the path of an encoder's token cache for a recipe; recipes with other views or grids have other paths."""
    views = fingerprint(view_identity(recipe.views, masks=False))[:6]
    name = f"{recipe.tile_px}px-views-{views}-{recipe.grid}-{tap}-{recipe.store}.zarr"
    return caches(work) / dataset / key / name


def tile_picture(work: Path, dataset: str, tile_px: int, image_sha256: str) -> Path:
    """Return the path of the picture of a tile at a size, by the sha256 of the tile's image."""
    return caches(work) / dataset / "pictures" / str(tile_px) / f"{image_sha256}.jpg"


def cached_encoders(work: Path, dataset: str, recipe: Recipe, taps: Sequence[str]) -> list[str]:
    """Return the keys of the encoders that have caches of all `taps` for this dataset and recipe, sorted."""
    names = [tokens_path(work, dataset, "*", recipe, tap).name for tap in taps]
    keys = [{path.parent.name for path in (caches(work) / dataset).glob(f"*/{name}")} for name in names]
    return sorted(set.intersection(*keys))


def weights_lock(work: Path) -> Path:
    """Return the path of the file with the revision and sha256 of every weights file fetched from the hub."""
    return work / "weights.lock.yaml"


def remembered(work: Path) -> Path:
    """Return the path of the file with remembered hashes of images, masks and weights; it may always be deleted."""
    return work / "hashes.json"
