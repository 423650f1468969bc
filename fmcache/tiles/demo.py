"""The embedded dataset: tiles drawn from a seed to look like H&E, with three tissues that do not differ in colour.

Tumour has large, crowded, uneven nuclei. Stroma has wavy fibres, thin nuclei along them and white clefts. Other
(lymphoid) has small, round, dense nuclei and white gaps. Every tissue is scaled to the same mean density of both
stains, and stains vary between slides (groups). Only size, shape, density and direction of structures distinguish the
tissues.

Colours are computed from densities of haematoxylin and eosin by the Beer-Lambert law.

References
----------
Ruifrok & Johnston 2001, Quantification of histochemical staining by color deconvolution, for the stain vectors.
"""

from __future__ import annotations

import functools

import cv2
import numpy as np
import numpy.typing as npt

from fmcache.identity import random_key
from fmcache.manifest import TileEntry
from fmcache.tiles.pixels import Pixels

Field = npt.NDArray[np.float32]

TUMOUR, STROMA, OTHER = 0, 1, 2
DRAWN = ("tumour", "stroma", "other")
"""The drawn tissues, by label id."""

HAEMATOXYLIN = np.array([0.65, 0.70, 0.29])
EOSIN = np.array([0.07, 0.99, 0.11])
DRAWN_PX = 512
MEAN_DENSITY = {"haematoxylin": 0.42, "eosin": 0.40}


@functools.lru_cache(maxsize=64)  # enough for one dataset; every encoder needs the same tiles
def draw_tile(seed: int, tile: TileEntry, size_px: int) -> tuple[Pixels, Pixels]:
    """Return image (y, x, colour) and mask (y, x), both uint8. They depend only on seed, tile id, group and size."""
    rng = _generator(seed, "tile", tile.id)
    mask = _regions(rng)
    haematoxylin, eosin, gaps = _tissue(rng, mask)
    image = _stain(_generator(seed, "stain", tile.group or tile.id), rng, haematoxylin, eosin, gaps)
    if size_px != DRAWN_PX:
        image = np.asarray(cv2.resize(image, (size_px, size_px), interpolation=cv2.INTER_AREA), dtype=np.uint8)
        mask = np.asarray(cv2.resize(mask, (size_px, size_px), interpolation=cv2.INTER_NEAREST_EXACT), dtype=np.uint8)
    return image, mask


def _regions(rng: np.random.Generator) -> Pixels:
    """Return the label of every pixel, (y, x): the index of the largest of three smooth random fields."""
    fields = np.stack([_smooth_noise(rng, 55.0) + rng.normal(0, 0.25) for _ in range(3)])
    return np.asarray(fields.argmax(axis=0), dtype=np.uint8)


def _tissue(rng: np.random.Generator, mask: Pixels) -> tuple[Field, Field, Field]:
    """Return the densities of both stains, and white gaps (1 = glass), each (y, x)."""
    angle = np.pi * _smooth_noise(rng, 70.0)
    fibres = _fibres(rng, angle)
    blank = np.zeros((DRAWN_PX, DRAWN_PX), np.float32)
    nuclei = [
        _nuclei(rng, mask == TUMOUR, spacing=24, radius=(8.0, 13.0), stretch=(1.0, 1.5), angle=None),
        _nuclei(rng, mask == STROMA, spacing=30, radius=(3.0, 4.5), stretch=(3.0, 5.0), angle=angle),
        _nuclei(rng, mask == OTHER, spacing=11, radius=(3.6, 4.8), stretch=(1.0, 1.15), angle=None),
    ]
    clefts = ((fibres < -1.25) & (mask == STROMA)) | ((_smooth_noise(rng, 9.0) > 1.75) & (mask == OTHER))
    clefts |= (_smooth_noise(rng, 12.0) > 2.2) & (mask == TUMOUR)
    gaps = cv2.GaussianBlur(clefts.astype(np.float32), (0, 0), 1.2)
    haematoxylin, eosin = blank.copy(), blank.copy()
    texture = {TUMOUR: _smooth_noise(rng, 3.0), STROMA: fibres, OTHER: _smooth_noise(rng, 2.0)}
    for label, drawn in enumerate(nuclei):
        inside = mask == label
        matrix = np.clip(1.0 + 0.28 * texture[label], 0.2, None) * (1 - 0.6 * np.clip(drawn, 0, 1))
        for target, values, mean in (
            (haematoxylin, 0.10 + drawn, MEAN_DENSITY["haematoxylin"]),
            (eosin, matrix, MEAN_DENSITY["eosin"]),
        ):
            target[inside] = (values * (mean / max(float(values[inside].mean()), 1e-3)))[inside] if inside.any() else 0
    return haematoxylin, eosin, gaps


def _nuclei(
    rng: np.random.Generator,
    inside: npt.NDArray[np.bool_],
    spacing: int,
    radius: tuple[float, float],
    stretch: tuple[float, float],
    angle: Field | None,
) -> Field:
    """Return the density of nuclei on a jittered lattice, (y, x): about 1 in a nucleus, varied by its chromatin."""
    canvas = np.zeros((DRAWN_PX, DRAWN_PX), np.float32)
    lattice = np.stack(np.meshgrid(*[np.arange(0, DRAWN_PX, spacing)] * 2), -1).reshape(-1, 2)
    at = lattice + rng.uniform(-0.42, 0.42, lattice.shape) * spacing
    sizes, ratios = rng.uniform(*radius, len(at)), np.sqrt(rng.uniform(*stretch, len(at)))
    turns, depths = rng.uniform(0, np.pi, len(at)), rng.uniform(0.7, 1.2, len(at))
    for (x, y), size, ratio, turn, depth in zip(at, sizes, ratios, turns, depths, strict=True):
        column, row = int(np.clip(x, 0, DRAWN_PX - 1)), int(np.clip(y, 0, DRAWN_PX - 1))
        if not inside[row, column]:
            continue
        turn = float(angle[row, column]) if angle is not None else turn
        centre, axes = (int(x * 8), int(y * 8)), (int(size * ratio * 8), int(size / ratio * 8))
        cv2.ellipse(canvas, centre, axes, np.degrees(turn), 0, 360, float(depth), -1, cv2.LINE_AA, 3)
    chromatin = 1 + 0.22 * _smooth_noise(rng, 1.6)
    return np.asarray(cv2.GaussianBlur(canvas, (0, 0), 0.9) * chromatin, dtype=np.float32)


def _fibres(rng: np.random.Generator, angle: Field) -> Field:
    """Return noise stretched along a field of directions, (y, x), with zero mean and unit standard deviation."""
    noise = rng.standard_normal((DRAWN_PX, DRAWN_PX)).astype(np.float32)
    y, x = np.mgrid[:DRAWN_PX, :DRAWN_PX].astype(np.float32)
    total = np.zeros_like(noise)
    noise = np.asarray(cv2.GaussianBlur(noise, (0, 0), 1.6), dtype=np.float32)
    for step in np.linspace(-22, 22, 15):
        total += cv2.remap(
            noise,
            (x + step * np.cos(angle)).astype(np.float32),
            (y + step * np.sin(angle)).astype(np.float32),
            cv2.INTER_LINEAR,
            borderMode=cv2.BORDER_REFLECT_101,
        )
    return _standardised(total)


def _stain(
    slide: np.random.Generator, rng: np.random.Generator, haematoxylin: Field, eosin: Field, gaps: Field
) -> Pixels:
    """Return the RGB image of both densities, from the slide's stain vectors and strengths, with sensor noise."""
    vectors = [v + slide.normal(0, 0.035, 3) for v in (HAEMATOXYLIN, EOSIN)]
    strengths = slide.uniform(0.85, 1.2, 2)
    tissue = 1 - gaps
    density = sum(
        np.multiply.outer(field * tissue * strength, vector / np.linalg.norm(vector))
        for field, strength, vector in zip((haematoxylin, eosin), strengths, vectors, strict=True)
    )
    light = 245 * np.exp(-1.6 * np.asarray(density))
    light = cv2.GaussianBlur(light, (0, 0), 0.7) + rng.normal(0, 2.0, light.shape)
    return np.clip(np.rint(light), 0, 255).astype(np.uint8)


def _smooth_noise(rng: np.random.Generator, sigma: float) -> Field:
    noise = rng.standard_normal((DRAWN_PX, DRAWN_PX)).astype(np.float32)
    return _standardised(cv2.GaussianBlur(noise, (0, 0), sigma, borderType=cv2.BORDER_REFLECT_101))


def _standardised(field: npt.NDArray[np.generic]) -> Field:
    values = np.asarray(field, dtype=np.float32)
    return np.asarray((values - values.mean()) / values.std(), dtype=np.float32)


def _generator(seed: int, *names: str) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=random_key("demo", seed, *names)))
