"""OME-Zarr pyramids, opened with the reader of the format's authors and checked against the model of version 0.4."""

import json

import numpy as np
import pytest
import zarr

from fmcache.manifest import Label
from fmcache.maps import label_pyramid
from fmcache.maps.contract import GLASS, MapGeometry
from fmcache.maps.label_pyramid import mean, nearest, shapes, whole_folder

reader = pytest.importorskip("ome_zarr.reader", reason="ome-zarr is a dev dependency")


def opened(path):
    """Return the nodes that the reader finds: the image, the group of label maps, and each of its maps."""
    from ome_zarr.io import parse_url

    return list(reader.Reader(parse_url(path))())


def layers(labels, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "probability": rng.integers(0, 256, (3, *labels.shape), np.uint8),
        "disagreement": rng.integers(0, 256, labels.shape, np.uint8),
    }


def test_the_reader_finds_image_labels_scales_names_and_colours(tmp_path, maps, monkeypatch):
    monkeypatch.setattr(label_pyramid, "SMALLEST_PX", 200)
    labels = maps.blobs(521, 601)
    given = layers(labels)
    maps.write(tmp_path, labels, 333, **given)
    image, _, drawn = opened(tmp_path / "slide.ome.zarr")
    assert [level.shape for level in image.data] == [(4, 521, 601), (4, 261, 301), (4, 131, 151)]
    assert (np.asarray(image.data[0]) == np.concatenate([given["probability"], given["disagreement"][None]])).all()
    assert image.metadata["channel_names"] == ["tumour", "stroma", "other", "disagreement"]
    scales = [one[0]["scale"] for one in image.metadata["coordinateTransformations"]]
    assert scales == [[1, 0.5, 0.5], [1, 1, 1], [1, 2, 2]]
    assert {axis.get("unit") for axis in image.metadata["axes"]} == {None, "micrometer"}
    assert (np.asarray(drawn.data[0]) == np.where(labels == GLASS, 0, labels + 1)).all()
    assert (np.asarray(drawn.data[1]) == np.asarray(drawn.data[0])[::2, ::2]).all()
    assert (np.asarray(drawn.data[2]) == np.asarray(drawn.data[0])[::4, ::4]).all()
    assert {value: one["name"] for value, one in drawn.metadata["properties"].items()} == {
        1: "tumour", 2: "stroma", 3: "other",
    }  # fmt: skip
    assert drawn.metadata["color"][1] == pytest.approx([200 / 255, 0, 0, 1])
    assert [one[0]["scale"] for one in drawn.metadata["coordinateTransformations"]] == [[0.5, 0.5], [1, 1], [2, 2]]


@pytest.mark.parametrize("with_layers", [True, False])
def test_image_and_labels_follow_the_model_of_version_0_4(tmp_path, maps, with_layers):
    from ome_zarr_models.v04.image import Image
    from ome_zarr_models.v04.image_label import ImageLabel

    labels = maps.blobs(40, 60)
    maps.write(tmp_path, labels, **(layers(labels) if with_layers else {}))
    root = zarr.open_group(tmp_path / "slide.ome.zarr", mode="r")
    Image.from_zarr(root)
    ImageLabel.from_zarr(root["labels/map"])
    assert root.metadata.zarr_format == 2


def test_without_probability_the_image_is_the_label_map(tmp_path, maps):
    labels = maps.blobs(40, 60)
    maps.write(tmp_path, labels)
    image = opened(tmp_path / "slide.ome.zarr")[0]
    assert (np.asarray(image.data[0]) == np.where(labels == GLASS, 0, labels + 1)).all()


@pytest.mark.parametrize("part", ["probability", "disagreement"])
def test_the_image_has_the_layers_that_there_are(tmp_path, maps, part):
    labels = maps.blobs(40, 60)
    given = layers(labels)[part]
    maps.write(tmp_path, labels, **{part: given})
    stored = zarr.open_array(tmp_path / "slide.ome.zarr" / "0", mode="r")[:]
    assert (stored == given.reshape(-1, 40, 60)).all()


@pytest.mark.parametrize("band_px", [1, 700])
def test_levels_are_those_of_the_whole_map_whatever_the_height_of_bands(tmp_path, maps, band_px):
    labels = maps.blobs(1541, 130)
    given = layers(labels)
    maps.write(tmp_path, labels, band_px, **given)
    group = zarr.open_group(tmp_path / "slide.ome.zarr", mode="r")
    expected = np.concatenate([given["probability"], given["disagreement"][None]])
    assert (group["0"][:] == expected).all()
    assert (group["1"][:] == mean(expected)).all()
    assert (group["labels/map/1"][:] == nearest(np.where(labels == GLASS, 0, labels + 1))).all()


def test_means_are_rounded_and_odd_ends_are_paired_with_themselves():
    rows = np.array([[[0, 1, 9], [1, 0, 10], [7, 8, 255]]], np.uint8)
    assert (mean(rows) == [[[1, 10], [8, 255]]]).all()  # 0.5 -> 1, 9.5 -> 10, 7.5 -> 8
    assert (nearest(rows) == [[[0, 9], [7, 255]]]).all()


def test_levels_halve_until_the_last_is_small():
    assert shapes((6, 5000, 1025)) == [(6, 5000, 1025), (6, 2500, 513), (6, 1250, 257), (6, 625, 129)]
    assert shapes((1, 1)) == [(1, 1)]


def test_names_of_any_script_and_markup_are_kept(tmp_path, maps):
    names = ["肿瘤", "</script>", 'a"b']
    geometry = MapGeometry("slide", 4, 4, 0.5, 1.0, tuple(Label(name, "#000000") for name in names))
    maps.write(tmp_path, np.zeros((4, 4), np.uint8), geometry=geometry)
    described = json.loads((tmp_path / "slide.ome.zarr/labels/map/.zattrs").read_text())
    assert [one["name"] for one in described["image-label"]["properties"]] == names


def test_a_folder_is_replaced_as_a_whole_or_not_at_all(tmp_path):
    target = tmp_path / "a.zarr"
    with whole_folder(target) as folder:
        (folder / "old").write_text("1")
        assert not target.exists()
    with pytest.raises(RuntimeError), whole_folder(target) as folder:
        (folder / "new").write_text("2")
        raise RuntimeError
    assert [path.name for path in tmp_path.rglob("*")] == ["a.zarr", "old"]
    with whole_folder(target) as folder:
        (folder / "new").write_text("2")
    assert [path.name for path in tmp_path.rglob("*")] == ["a.zarr", "new"]
