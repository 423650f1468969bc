import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
import tifffile
from PIL import Image

from fmcache.errors import ExtraMissing, SpecError, TileError
from fmcache.slides import slide as slides
from fmcache.slides.slide import describe, opened, picture_frame, plan_grid, read_slide_tile, stated_mpp


def write_slide(path, pixels, mpp=0.5, levels=(1, 4)):
    """A tiled TIFF pyramid; each level holds area means of the first."""
    with tifffile.TiffWriter(path) as file:
        for level in levels:
            height, width = (edge // level * level for edge in pixels.shape[:2])
            blocks = pixels[:height, :width].reshape(height // level, level, width // level, level, 3)
            resolution = {"resolution": (1e4 / mpp, 1e4 / mpp), "resolutionunit": "CENTIMETER"} if mpp else {}
            file.write(
                blocks.mean(axis=(1, 3)).astype("uint8"), tile=(64, 64), photometric="rgb",
                subfiletype=int(level > 1), **resolution,
            )  # fmt: skip
    return path


@pytest.fixture
def noise():
    return np.random.default_rng(0).integers(0, 256, (512, 768, 3)).astype("uint8")


def tile_of(path, mpp, tile_px, column, row):
    slide = describe(path)
    grid = plan_grid(slide.size, slide.mpp, slide.downsamples, mpp, tile_px)
    with opened(path) as handle:
        return grid, read_slide_tile(handle, slide, grid, column, row)


def test_a_slide_says_size_levels_and_um_per_pixel(tmp_path, noise):
    slide = describe(write_slide(tmp_path / "a.tif", noise))
    assert (slide.name, slide.size, slide.origin, slide.downsamples) == ("a", (768, 512), (0, 0), (1.0, 4.0))
    assert slide.mpp == pytest.approx(0.5)
    assert describe(slide.path, mpp=0.3).mpp == 0.3


def test_tiles_at_the_slides_own_scale_are_its_pixels(tmp_path, noise):
    grid, tile = tile_of(write_slide(tmp_path / "a.tif", noise), 0.5, 100, 3, 2)
    assert (grid.columns, grid.rows, grid.level, grid.corner(3, 2)) == (7, 5, 0, (300, 200))
    assert np.array_equal(tile, noise[200:300, 300:400])


def test_a_scale_within_one_percent_is_read_as_it_is(tmp_path, noise):
    grid, tile = tile_of(write_slide(tmp_path / "a.tif", noise, mpp=0.499), 0.5, 64, 1, 1)
    assert grid.mpp == pytest.approx(0.499)
    assert np.array_equal(tile, noise[64:128, 64:128])


def test_coarser_tiles_are_area_means_of_the_best_level(tmp_path, noise):
    path = write_slide(tmp_path / "a.tif", noise)
    grid, tile = tile_of(path, 1.0, 32, 2, 1)  # twice as coarse as level 0, finer than level 1
    assert (grid.level, grid.window_px, grid.corner(2, 1), grid.scale) == (0, 64, (128, 64), 0.5)
    slow = noise[64:128, 128:192].reshape(32, 2, 32, 2, 3).mean(axis=(1, 3))
    assert np.abs(tile - slow).max() <= 0.5
    grid, tile = tile_of(path, 2.0, 32, 2, 1)
    assert (grid.level, grid.window_px, grid.corner(2, 1)) == (1, 32, (256, 128))
    assert np.array_equal(tile, noise[128:256, 256:384].reshape(32, 4, 32, 4, 3).mean(axis=(1, 3)).astype("uint8"))


def test_a_tile_shows_the_same_place_at_every_scale(tmp_path):
    pixels = np.full((512, 768, 3), 255, "uint8")
    pixels[200:240, 400:480] = (200, 0, 0)
    path = write_slide(tmp_path / "a.tif", pixels)
    for mpp, tile_px in ((0.5, 256), (0.7, 128), (1.3, 64), (2.0, 48), (3.1, 30)):
        grid, tile = tile_of(path, mpp, tile_px, *(2 * [0]))
        for column in range(grid.columns):
            for row in range(grid.rows):
                _, tile = tile_of(path, mpp, tile_px, column, row)
                y, x = (((np.arange(tile_px) + 0.5) / grid.scale + corner) for corner in grid.corner(column, row)[::-1])
                inside = np.outer((y > 208) & (y < 232), (x > 408) & (x < 472))
                outside = np.outer((y < 192) | (y > 248), np.ones(tile_px, bool)) | ((x < 392) | (x > 488))
                assert (tile[inside][:, 1] < 60).all(), (mpp, column, row)
                assert (tile[outside] == 255).all(), (mpp, column, row)


def test_strips_change_no_value_and_bound_what_is_held(tmp_path, noise, monkeypatch):
    path = write_slide(tmp_path / "a.tif", noise, levels=(1,))
    whole, expected = tile_of(path, 4.0, 64, 0, 0)  # 512 x 512 px of level 0
    monkeypatch.setattr(slides, "STRIP_PX", 512 * 64)
    grid, tile = tile_of(path, 4.0, 64, 0, 0)
    assert (whole.strips, grid.strips) == (1, 8)
    assert np.array_equal(tile, expected)
    monkeypatch.undo()
    huge = plan_grid((100_000, 80_000), 0.25, (1.0,), 8.0, 512)
    assert huge.window_px * huge.window_px // huge.strips <= slides.STRIP_PX
    assert huge.window_px % huge.strips == 512 % huge.strips == 0
    assert huge.mpp == pytest.approx(8.0, rel=1e-3)


def test_one_tile_of_a_slide_holds_far_less_memory_than_the_slide(tmp_path):
    pixels = np.zeros((2560, 2560, 3), "uint8")  # 20 MB
    path = write_slide(tmp_path / "a.tif", pixels, levels=(1,))
    del pixels
    tracemalloc.start()
    tile_of(path, 0.5, 256, 3, 3)
    assert tracemalloc.get_traced_memory()[1] < 2e6
    tracemalloc.stop()


def test_no_tile_reaches_beyond_the_slide():
    for mpp in (0.25, 0.44, 1.0, 3.3):
        grid = plan_grid((1000, 700), 0.25, (1.0, 4.0002), mpp, 64)
        x, y = grid.corner(grid.columns, grid.rows)
        assert x <= 1000
        assert y <= 700
        assert (x + grid.step_px > 1000) and (y + grid.step_px > 700)
        assert grid.mpp == pytest.approx(mpp, rel=0.011)
    assert plan_grid((100, 100), 0.5, (1.0,), 0.5, 512)[:2] == (0, 0)
    with pytest.raises(SpecError, match="above 0"):
        plan_grid((100, 100), 0.5, (1.0,), 0.0, 512)


def test_what_was_not_scanned_is_white(tmp_path, noise):
    class Handle:
        def read_region(self, place, level, size):
            return Image.new("RGBA", size, (0, 0, 0, 0))

    slide = describe(write_slide(tmp_path / "a.tif", noise))
    grid = plan_grid(slide.size, slide.mpp, slide.downsamples, 0.5, 64)
    assert (read_slide_tile(Handle(), slide, grid, 0, 0) == 255).all()


def test_reading_starts_at_the_origin_of_the_scanned_part():
    frame = {"openslide.bounds-x": "10", "openslide.bounds-y": "20"}
    assert picture_frame(frame, (900, 800)) == ((0, 0), (900, 800))
    frame |= {"openslide.bounds-width": "300", "openslide.bounds-height": "400"}
    assert picture_frame(frame, (900, 800)) == ((10, 20), (300, 400))


def test_the_origin_is_added_to_the_place_that_is_read(tmp_path, noise):
    slide = describe(write_slide(tmp_path / "a.tif", noise))._replace(origin=(30, 40), size=(700, 400))
    grid = plan_grid(slide.size, slide.mpp, slide.downsamples, 0.5, 64)
    with opened(slide.path) as handle:
        assert np.array_equal(read_slide_tile(handle, slide, grid, 1, 2), noise[168:232, 94:158])


@pytest.mark.parametrize(
    ("x", "y", "says"),
    [
        (None, None, "does not state"),
        ("0.25", "", "does not state"),
        ("352.8", "352.8", "cannot be used"),
        ("0.25", "0.5", "cannot be used"),
        ("nan", "nan", "cannot be used"),
    ],
)
def test_a_slide_without_true_um_per_pixel_is_refused_with_the_flag_that_helps(tmp_path, x, y, says):
    properties = {f"openslide.mpp-{k}": v for k, v in (("x", x), ("y", y)) if v is not None}
    with pytest.raises(TileError, match=says) as caught:
        stated_mpp(tmp_path / "a.svs", properties)
    assert "--mpp-of-slide" in caught.value.next_step
    assert caught.value.expected
    assert caught.value.found


def test_a_tiff_without_resolution_is_refused_unless_um_per_pixel_are_given(tmp_path, noise):
    path = write_slide(tmp_path / "a.tif", noise, mpp=None)
    with pytest.raises(TileError, match=r"does not state|cannot be used"):
        describe(path)
    assert describe(path, mpp=0.25).mpp == 0.25


def test_what_is_no_slide_is_named(tmp_path):
    (tmp_path / "a.svs").write_bytes(b"no slide")
    Image.new("RGB", (64, 64)).save(tmp_path / "b.jpg")
    for name in ("a.svs", "b.jpg"):
        with pytest.raises(TileError, match=f"{name} cannot be read as a slide"):
            describe(tmp_path / name)
    with pytest.raises(TileError, match="this slide does not exist"):
        describe(tmp_path / "absent.svs")


def test_without_openslide_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "openslide", None)
    with pytest.raises(ExtraMissing, match=r"fmcache\[wsi\]"):
        describe(tmp_path / "a.svs")


def test_the_module_loads_without_openslide():
    code = "import sys; import fmcache.slides.slide, fmcache.datasets.cut; assert 'openslide' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
