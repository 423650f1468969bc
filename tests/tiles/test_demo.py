import itertools
from pathlib import Path

import cv2
import numpy as np
import pytest

from fmcache.errors import ManifestError
from fmcache.manifest import DemoDataset, Label, Manifest, TileEntry
from fmcache.tiles.demo import draw_tile
from fmcache.tiles.images import read_tile

DATASET = Manifest(Path(__file__).parents[2] / "data_manifest.yaml").dataset("demo")


def drawn(ids):
    tiles = {tile.id: tile for tile in DATASET.tiles}
    return [draw_tile(DATASET.seed, tiles[i], 512) for i in ids]


def test_a_tile_is_the_same_whenever_it_is_drawn_and_unlike_any_other():
    tile, other = TileEntry("a", "g"), TileEntry("b", "g")
    image, mask = (array.copy() for array in draw_tile(1, tile, 128))
    draw_tile(1, other, 128)
    draw_tile.cache_clear()
    again, mask_again = draw_tile(1, tile, 128)
    assert np.array_equal(image, again)
    assert np.array_equal(mask, mask_again)
    assert not np.array_equal(image, draw_tile(1, other, 128)[0])
    assert not np.array_equal(image, draw_tile(2, tile, 128)[0])
    assert image.shape == (128, 128, 3)


@pytest.fixture(scope="module")
def samples():
    """Colour and texture of sample pixels of some training and test tiles, with their labels."""
    parts = []
    for ids in (DATASET.splits.train[::3], DATASET.splits.test[::3]):
        colour, texture, labels = [], [], []
        for image, mask in drawn(ids):
            smooth = cv2.GaussianBlur(image, (0, 0), 1.0).astype(np.float32)
            dark = 255 - image.min(axis=2).astype(np.float32)
            bands = [dark]
            for sigma in (1.5, 3.0, 6.0, 12.0):
                bands.append(cv2.GaussianBlur(dark, (0, 0), sigma))
            energies = [np.log1p(cv2.GaussianBlur((a - b) ** 2, (0, 0), 16)) for a, b in itertools.pairwise(bands)]
            colour.append(smooth[::8, ::8].reshape(-1, 3))
            texture.append(np.stack(energies, -1)[::8, ::8].reshape(-1, len(energies)))
            labels.append(mask[::8, ::8].ravel())
        parts.append((np.concatenate(colour), np.concatenate(texture), np.concatenate(labels)))
    return parts


def mean_dice(train_x, train_y, test_x, test_y):
    """Quadratic discriminant: a Gaussian per label, the likeliest label wins."""
    scores = []
    for label in range(3):
        x = train_x[train_y == label]
        inverse = np.linalg.inv(np.cov(x.T) + 1e-3 * np.eye(x.shape[1]))
        d = test_x - x.mean(0)
        scores.append(np.linalg.slogdet(inverse)[1] - np.einsum("ij,jk,ik->i", d, inverse, d))
    predicted = np.argmax(scores, axis=0)
    both = [
        2 * ((predicted == k) & (test_y == k)).sum() / ((predicted == k).sum() + (test_y == k).sum()) for k in range(3)
    ]
    return float(np.mean(both))


def test_colour_alone_cannot_distinguish_the_labels_and_texture_can(samples):
    (colour, texture, labels), (test_colour, test_texture, test_labels) = samples
    by_colour = mean_dice(colour, labels, test_colour, test_labels)
    by_texture = mean_dice(texture, labels, test_texture, test_labels)
    assert by_colour < 0.55, by_colour
    assert by_texture > 0.65, by_texture
    assert by_texture > by_colour + 0.15


def test_every_split_holds_every_label():
    for split in ("train", "val", "test"):
        masks = np.stack([mask for _, mask in drawn(DATASET.splits.of(split)[:5])])
        assert set(np.unique(masks)) == {0, 1, 2}


def test_stain_varies_from_slide_to_slide():
    means = np.stack(
        [draw_tile(7, TileEntry("same", group), 512)[0].mean((0, 1)) for group in ("s0", "s1", "s2", "s3")]
    )
    assert means.std(axis=0).max() > 4


def test_a_dataset_with_fewer_labels_than_are_drawn_is_refused_by_name(tmp_path):
    two = DemoDataset(labels=(Label("a", "#ffffff"), Label("b", "#000000")), seed=1)
    with pytest.raises(ManifestError, match="have 3 labels, but the dataset lists 2") as refused:
        read_tile(two, TileEntry("x"), tmp_path)
    assert refused.value.expected == "labels for tumour, stroma, other, in this order"
