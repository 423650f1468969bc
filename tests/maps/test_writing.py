"""All files of a map appear at the end or not at all."""

import errno
import sys

import numpy as np
import pytest

from fmcache.errors import ExtraMissing, NoMemory, NoRoom
from fmcache.manifest import Label
from fmcache.maps import label_pyramid, ome_tiff, qupath_file, writing
from fmcache.maps.contract import Band, MapGeometry, MapOptions

FILES = ["slide.areas.csv", "slide.geojson", "slide.ome.tif", "slide.ome.zarr", "slide.overview.png"]
ALL = MapOptions(ome_tiff=True, least_um2=0)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_files_appear_when_the_last_band_was_added(tmp_path, maps):
    labels = maps.blobs(60, 60)
    geometry = MapGeometry("slide", 60, 60, 0.5, 2.0, maps.LABELS)
    folder = tmp_path / "new" / "folder"
    with writing.writing(geometry, folder, ALL) as writer:
        writer.add(Band(0, labels))
        assert all(name.startswith(".") and name.endswith(".partial") for name in names(folder))
    assert names(folder) == FILES
    assert sorted(path.name for path in writer.totals.files) == FILES


@pytest.mark.parametrize("earlier", [True, False])
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_error_in_the_block_leaves_nothing_new(tmp_path, maps, error, earlier):
    labels = maps.blobs(600, 60)
    if earlier:
        maps.write(tmp_path, labels, options=ALL)
    before = contents(tmp_path)
    geometry = MapGeometry("slide", 600, 60, 0.5, 2.0, maps.LABELS)
    with pytest.raises(error), writing.writing(geometry, tmp_path, ALL) as writer:
        writer.add(Band(0, labels[:550]))
        raise error
    assert contents(tmp_path) == before
    assert names(tmp_path) == (FILES if earlier else [])


def test_missing_bands_leave_nothing(tmp_path, maps):
    geometry = MapGeometry("slide", 600, 60, 0.5, 2.0, maps.LABELS)
    with pytest.raises(ValueError, match="end at row 550"), writing.writing(geometry, tmp_path, ALL) as writer:
        writer.add(Band(0, maps.blobs(550, 60)))
    assert names(tmp_path) == []


def fails(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (qupath_file, "_feature"),
        (label_pyramid._Levels, "_write"),
        (label_pyramid, "_flush"),
        (writing, "write_ome_tiff"),
        (ome_tiff, "_tiles"),
        (writing.Overview, "finish"),
    ],
)
def test_a_full_disk_is_named_and_leaves_nothing(tmp_path, maps, monkeypatch, owner, name):
    monkeypatch.setattr(owner, name, fails)
    with pytest.raises(NoRoom, match="the disk is full: slide"):
        maps.write(tmp_path, maps.blobs(60, 60), options=ALL)
    assert names(tmp_path) == []


def test_an_ome_tiff_without_tifffile_is_refused_before_the_first_band(tmp_path, maps, monkeypatch):
    monkeypatch.setitem(sys.modules, "tifffile", None)
    geometry = MapGeometry("slide", 60, 60, 0.5, 2.0, maps.LABELS)
    with pytest.raises(ExtraMissing, match=r"fmcache\[wsi\]"), writing.writing(geometry, tmp_path, ALL):
        raise AssertionError("the block was entered")
    assert names(tmp_path) == []


def test_too_little_memory_is_named(tmp_path, maps, monkeypatch):
    monkeypatch.setattr(qupath_file.QupathFile, "add", lambda *_: np.empty(10**15))
    with pytest.raises(NoMemory, match="slide"):
        maps.write(tmp_path, maps.blobs(60, 60))


def test_a_target_that_cannot_be_written_is_an_error_of_the_system(tmp_path, maps):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        maps.write(tmp_path / "file" / "below", maps.blobs(60, 60))


def test_bands_of_one_row_a_label_that_never_occurs_and_254_labels(tmp_path, maps):
    labels = np.zeros((40, 30), np.uint8)
    labels[10:20] = 253
    wanted = tuple(Label(f"label {i}", f"#{i:06x}") for i in range(254))
    totals = maps.write(tmp_path, labels, 1, MapGeometry("slide", 40, 30, 0.5, 1.0, wanted), ALL)
    assert (totals.px[0], totals.px[1], totals.px[253], totals.regions) == (900, 0, 300, 3)
    assert totals.files
