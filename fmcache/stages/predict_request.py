"""What predict must do, as one object: the slides, the runs or the bundle, how slides are read, what is written."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, NamedTuple

from fmcache.maps.contract import MapOptions
from fmcache.stages.run_choice import RunQuery


class PredictRequest(NamedTuple):
    """A slide or a folder of slides, and how they are predicted.

    Attributes
    ----------
    runs
        The runs of a study; None with a bundle.
    bundle
        The folder of a bundle; None with a study.
    into
        The folder for the maps; None: a folder below the working folder, which depends on the runs.
    overlap
        Share of a tile's side that neighbouring windows have in common.
    tissue
        ``auto``: only tissue is predicted; ``off``: everything.
    regions
        A GeoJSON file of QuPath: only these regions of the slide are predicted, in place of the tissue.
    mpp_of_slide
        um per pixel of the slides' level 0; None: as each slide states.
    mpp
        um per pixel of the tiles of the study; None: as its results state.
    batch
        Tiles that the model gets at a time; 0: by device.
    weights
        Weights file of the encoder, if it is not where it was; its sha256 is checked.
    cache_tokens
        Read the tokens of each slide from their cache, or write it. A bundle has no such cache.
    manifest
        The manifest, if it exists: labels that it names differently now are reported.
    """

    slides: Path
    runs: RunQuery | None = None
    bundle: Path | None = None
    into: Path | None = None
    overlap: float = 0.5
    tissue: Literal["auto", "off"] = "auto"
    regions: Path | None = None
    mpp_of_slide: float | None = None
    mpp: float | None = None
    batch: int = 0
    weights: str = ""
    manifest: Path = Path("data_manifest.yaml")
    outputs: MapOptions = MapOptions()
    cache_tokens: bool = False
