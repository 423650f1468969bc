"""The OME-TIFF of a map, opened with tifffile and Pillow."""

from xml.etree import ElementTree

import numpy as np
import pytest
import tifffile
from PIL import Image

from fmcache.manifest import Label
from fmcache.maps import label_pyramid
from fmcache.maps.contract import GLASS, MapGeometry, MapOptions

OME = "{http://www.openmicroscopy.org/Schemas/OME/2016-06}"
WITH_TIFF = MapOptions(ome_tiff=True)


def test_series_levels_tiles_sizes_and_colours(tmp_path, maps, monkeypatch):
    monkeypatch.setattr(label_pyramid, "SMALLEST_PX", 200)
    labels = maps.blobs(521, 601)
    maps.write(tmp_path, labels, options=WITH_TIFF)
    stored = np.where(labels == GLASS, 0, labels + 1)
    with tifffile.TiffFile(tmp_path / "slide.ome.tif") as tiff:
        assert tiff.is_ome and not tiff.is_bigtiff
        [series] = tiff.series
        assert series.axes == "YX"
        assert [level.shape for level in series.levels] == [(521, 601), (261, 301), (131, 151)]
        for i, level in enumerate(series.levels):
            assert level.keyframe.is_tiled
            assert (level.asarray() == stored[:: 2**i, :: 2**i]).all()
        palette = series.keyframe.colormap // 257
        assert palette[:, :4].T.tolist() == [[255, 255, 255], [200, 0, 0], [0, 200, 0], [0, 0, 200]]
        pixels = ElementTree.fromstring(tiff.ome_metadata).find(f"{OME}Image/{OME}Pixels")  # noqa: S314 - our own file
    assert (pixels.get("PhysicalSizeX"), pixels.get("PhysicalSizeY")) == ("0.5", "0.5")
    assert pixels.get("PhysicalSizeXUnit") == "µm"
    assert Image.open(tmp_path / "slide.ome.tif").convert("RGB").getpixel((500, 300)) == {
        0: (200, 0, 0), 1: (0, 200, 0), 2: (0, 0, 200),
    }[labels[300, 500]]  # fmt: skip


def test_names_of_any_script_markup_and_control_characters_give_valid_xml(tmp_path, maps):
    names = ["肿瘤", '<b a="1">&amp;', "a\x00\x0bb\ufffe"]
    geometry = MapGeometry("slide <1>", 4, 4, 0.25, 1.0, tuple(Label(name, "#000000") for name in names))
    maps.write(tmp_path, np.zeros((4, 4), np.uint8), geometry=geometry, options=WITH_TIFF)
    with tifffile.TiffFile(tmp_path / "slide <1>.ome.tif") as tiff:
        root = ElementTree.fromstring(tiff.ome_metadata)  # noqa: S314 - our own file
    assert {one.get("K"): one.text for one in root.iter(f"{OME}M")} == {
        "0": "(not predicted)", "1": names[0], "2": names[1], "3": "a  b ",
    }  # fmt: skip
    assert root.find(f"{OME}Image").get("Name") == "slide <1>"


@pytest.mark.parametrize("shape", [(1, 1), (1, 600), (600, 1), (513, 511)])
def test_maps_of_odd_sizes(tmp_path, maps, shape):
    labels = (np.indices(shape).sum(0) % 3).astype(np.uint8)
    maps.write(tmp_path, labels, options=WITH_TIFF)
    assert (tifffile.imread(tmp_path / "slide.ome.tif") == labels + 1).all()


def test_the_same_map_gives_the_same_bytes(tmp_path, maps):
    labels = maps.blobs(300, 200)
    for folder in ("a", "b"):
        maps.write(tmp_path / folder, labels, options=WITH_TIFF)
    assert (tmp_path / "a/slide.ome.tif").read_bytes() == (tmp_path / "b/slide.ome.tif").read_bytes()
