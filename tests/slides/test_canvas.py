import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from fmcache.errors import ExtraMissing, SpecError, TileError
from fmcache.slides import levels as slide_levels
from fmcache.slides.canvas import Canvas, open_canvas
from fmcache.slides.level_blocks import level_factor, sampled_hash
from fmcache.slides.window_pixels import PIECE_PX


@pytest.fixture(scope="module")
def noise():
    return np.random.default_rng(0).integers(0, 256, (514, 771, 3)).astype("uint8")


def halved(pixels, times):
    height, width = (edge // times * times for edge in pixels.shape[:2])
    blocks = pixels[:height, :width].reshape(height // times, times, width // times, times, 3)
    return blocks.mean(axis=(1, 3)).astype("uint8")


def write_ome(path, pixels, levels=(2, 4), **size):
    """An OME-TIFF whose smaller levels lie in sub-directories, as Bio-Formats and QuPath write them."""
    size = size or {"PhysicalSizeX": 0.5, "PhysicalSizeY": 0.5}
    options = {"tile": (64, 64), "photometric": "rgb", "compression": "zlib"}
    with tifffile.TiffWriter(path, ome=True) as file:
        file.write(pixels, subifds=len(levels), metadata={"axes": "YXS", **size}, **options)
        for level in levels:
            file.write(halved(pixels, level), subfiletype=1, metadata=None, **options)
    return path


def write_png(path, pixels):
    Image.fromarray(pixels).save(path)
    return path


def whole_canvas(path, mpp, mpp_of_slide=None):
    with open_canvas(path, mpp, mpp_of_slide) as canvas:
        return canvas.read(0, 0, canvas.height, canvas.width)


class Levels:
    """Levels in memory, as a reader would return them."""

    def __init__(self, pictures, mpp, factors, origin=(0, 0), size=None):
        self._pictures, self.mpp, self.factors, self.origin, self.key = pictures, mpp, factors, origin, "key"
        self.sizes = [picture.shape[1::-1] for picture in pictures]
        self.size = size or self.sizes[0]
        self.largest = 0

    def region(self, level, place, size):
        (left, top), (width, height) = place, size
        assert 0 <= left < left + width <= self.sizes[level][0]
        assert 0 <= top < top + height <= self.sizes[level][1]
        self.largest = max(self.largest, width * height)
        return self._pictures[level][top : top + height, left : left + width]


def read_all(canvas):
    return canvas.read(0, 0, canvas.height, canvas.width)


def test_a_plain_image_at_its_own_scale_is_its_pixels(tmp_path, noise):
    with open_canvas(write_png(tmp_path / "a.png", noise), 0.5, 0.5) as canvas:
        assert (canvas.name, canvas.height, canvas.width, canvas.scale, canvas.mpp) == ("a", 514, 771, 1.0, 0.5)
        assert np.array_equal(canvas.read(3, 5, 100, 200), noise[3:103, 5:205])


@pytest.mark.parametrize(
    ("mpp", "scale", "size"), [(1.0, 2.0, (257, 385)), (0.7, 1.4, (367, 550)), (0.3, 0.6, (856, 1285))]
)
def test_the_scale_is_the_exact_quotient_of_both_um_per_pixel(tmp_path, noise, mpp, scale, size):
    with open_canvas(write_png(tmp_path / "a.png", noise), mpp, 0.5) as canvas:
        assert canvas.scale == pytest.approx(scale, rel=1e-12)
        assert (canvas.height, canvas.width) == size
        assert canvas.true_mpp == canvas.mpp == mpp


def test_a_level_within_one_percent_is_not_resampled_and_its_own_um_per_pixel_are_reported(tmp_path, noise):
    with open_canvas(write_png(tmp_path / "a.png", noise), 0.5, 0.498) as canvas:
        assert (canvas.scale, canvas.mpp, canvas.true_mpp) == (1.0, 0.5, 0.498)
        assert np.array_equal(read_all(canvas), noise)


def test_coarser_pixels_are_area_means_and_finer_ones_are_interpolated(tmp_path, noise):
    path = write_png(tmp_path / "a.png", noise)
    slow = noise[:, :770].reshape(257, 2, 385, 2, 3).mean(axis=(1, 3))
    assert np.abs(whole_canvas(path, 1.0, 0.5) - slow).max() <= 0.5
    fine, at = whole_canvas(path, 0.25, 0.5), noise.astype(float)
    # these pixels are a quarter of the way from one source pixel to the next, in x and in y
    slow = (9 * at[:-1, :-1] + 3 * at[1:, :-1] + 3 * at[:-1, 1:] + at[1:, 1:]) / 16
    assert np.abs(fine[1:-1:2, 1:-1:2] - slow).max() <= 0.5


@pytest.mark.parametrize("mpp", [0.25, 0.5, 0.61, 1.0, 1.9976, 5.3])
@pytest.mark.parametrize("kind", ["image", "ome", "scanner"])
def test_a_pixel_has_the_same_value_in_every_window(tmp_path, noise, mpp, kind, monkeypatch):
    if kind == "image":
        path = write_png(tmp_path / "a.png", noise)
    elif kind == "ome":
        path = write_ome(tmp_path / "a.ome.tif", noise)
    else:  # read by OpenSlide, with a level whose factor is not whole: 771 / 192 and 514 / 128
        monkeypatch.setattr(slide_levels, "NO_MAKER", ())
        monkeypatch.setattr(slide_levels, "BLOCK_PX", 32)
        path = tmp_path / "a.tif"
        with tifffile.TiffWriter(path) as file:
            for pixels in (noise, halved(noise, 4)):
                file.write(pixels, tile=(64, 64), photometric="rgb", subfiletype=int(pixels is not noise))
    rng = np.random.default_rng(2)
    with open_canvas(path, mpp, 0.5) as canvas:
        expected = read_all(canvas)
        for _ in range(12):
            top, left = int(rng.integers(canvas.height)), int(rng.integers(canvas.width))
            height, width = int(rng.integers(1, canvas.height - top + 1)), int(rng.integers(1, canvas.width - left + 1))
            window = canvas.read(top, left, height, width)
            assert np.array_equal(window, expected[top : top + height, left : left + width])


def test_a_mark_lies_at_the_same_place_of_level_0_at_every_scale_and_on_every_level():
    pixels = np.full((400, 12_000, 3), 255, np.uint8)
    pixels[200:280, 11_200:11_300] = 0
    levels = Levels([pixels, halved(pixels, 4)], 0.25, [1.0, 4.0])
    for mpp in (0.2, 0.25, 0.37, 0.4995, 1.0, 1.3, 2.2):
        canvas = Canvas(Path("a.svs"), levels, mpp)
        left = canvas.width * 9 // 10
        dark = 255 - canvas.read(0, left, canvas.height, canvas.width - left)[..., 0].astype(float)
        y, x = np.array([(dark * at).sum() for at in np.indices(dark.shape) + 0.5]) / dark.sum()
        assert y * canvas.scale == pytest.approx(240, abs=0.1), mpp
        assert (left + x) * canvas.scale == pytest.approx(11_250, abs=0.1), mpp


def test_reading_starts_at_the_origin_of_the_scanned_part(noise):
    levels = Levels([noise, halved(noise, 2)], 0.5, [1.0, 2.0], origin=(40, 30), size=(700, 400))
    for mpp, scale, slow in ((0.5, 1, noise[30:430, 40:740]), (1.0, 2, halved(noise, 2)[15:215, 20:370])):
        canvas = Canvas(Path("a.mrxs"), levels, mpp)
        assert (canvas.height, canvas.width) == (400 // scale, 700 // scale)
        assert np.array_equal(read_all(canvas), slow)
    levels = Levels([noise], 0.5, [1.0], origin=(40, 30), size=(700, 400))
    slow = noise[30:429, 40:739].reshape(133, 3, 233, 3, 3).mean(axis=(1, 3))
    assert np.abs(read_all(Canvas(Path("a.mrxs"), levels, 1.5)) - slow).max() <= 0.5


def test_levels_smaller_by_a_rounded_whole_number_have_that_factor():
    assert level_factor((46000, 32914), (11500, 8228)) == 4  # the quotient of the heights is 4.00024
    assert level_factor((46000, 32914), (2875, 2057)) == 16
    assert level_factor((1000, 800), (300, 240)) == pytest.approx(10 / 3)


def test_memory_depends_on_the_window_also_where_the_only_level_is_much_finer():
    levels = Levels([np.zeros((4096, 8192, 3), np.uint8)], 0.25, [1.0])
    canvas = Canvas(Path("a.tif"), levels, 8.0)
    tracemalloc.start()
    assert read_all(canvas).shape == (128, 256, 3)
    assert tracemalloc.get_traced_memory()[1] < 40e6  # the level has 100 MB
    tracemalloc.stop()
    assert levels.largest <= 1.1 * PIECE_PX


def test_a_window_outside_the_canvas_is_refused(noise):
    canvas = Canvas(Path("a.svs"), Levels([noise], 0.5, [1.0]), 0.5)
    for window in ((0, 0, 515, 1), (-1, 0, 5, 5), (0, 770, 1, 2), (0, 0, 0, 5)):
        with pytest.raises(ValueError, match="no window in 514 x 771"):
            canvas.read(*window)


def test_a_slide_smaller_than_a_tile_or_a_pixel_still_has_a_canvas(tmp_path, noise):
    path = write_png(tmp_path / "a.png", noise[:20, :30])
    assert whole_canvas(path, 1.0, 0.5).shape == (10, 15, 3)
    assert whole_canvas(path, 40.0, 0.5).shape == (1, 1, 3)


# TIFF


@pytest.mark.parametrize(
    "size",
    [
        {"PhysicalSizeX": 0.5, "PhysicalSizeY": 0.5},
        {"PhysicalSizeX": 500, "PhysicalSizeXUnit": "nm", "PhysicalSizeY": 0.0005, "PhysicalSizeYUnit": "mm"},
    ],
)
def test_an_ome_tiff_states_its_um_per_pixel_with_a_unit(tmp_path, noise, size):
    with open_canvas(write_ome(tmp_path / "a.ome.tif", noise, **size), 1.0) as canvas:
        assert (canvas.name, canvas.scale, canvas.full_size) == ("a", pytest.approx(2), (771, 514))
        assert np.array_equal(read_all(canvas), halved(noise, 2))  # the level in the sub-directory
    with open_canvas(tmp_path / "a.ome.tif", 1.0, 0.25) as canvas:
        assert canvas.scale == 4


def test_a_unit_that_is_no_length_and_a_resolution_of_software_are_refused(tmp_path, noise):
    size = {"PhysicalSizeX": 0.5, "PhysicalSizeXUnit": "pixel", "PhysicalSizeY": 0.5, "PhysicalSizeYUnit": "pixel"}
    write_ome(tmp_path / "a.ome.tif", noise, **size)
    tifffile.imwrite(tmp_path / "b.tif", noise, resolution=(72, 72), resolutionunit="INCH")
    tifffile.imwrite(tmp_path / "c.tif", noise, resolution=(2, 2), resolutionunit="NONE")
    for name, says in (("a.ome.tif", "does not state"), ("b.tif", "cannot be used"), ("c.tif", "does not state")):
        with pytest.raises(TileError, match=says) as caught, open_canvas(tmp_path / name, 0.5):
            pass
        assert "--mpp-of-slide" in caught.value.next_step
        assert caught.value.expected
        assert caught.value.found


def test_a_resolution_per_centimetre_is_used(tmp_path, noise):
    tifffile.imwrite(tmp_path / "a.tif", noise, resolution=(2e4, 2e4), resolutionunit="CENTIMETER")
    with open_canvas(tmp_path / "a.tif", 1.0) as canvas:
        assert canvas.scale == pytest.approx(2)


@pytest.mark.parametrize(
    ("axes", "options"),
    [
        ("YXS", {"photometric": "rgb"}),
        ("YXS", {"photometric": "rgb", "compression": "lzw"}),
        ("YXS", {"photometric": "rgb", "compression": "zlib", "rowsperstrip": 7}),
        ("CYX", {"photometric": "minisblack", "tile": (32, 64)}),
        ("CYX", {"photometric": "rgb", "planarconfig": "separate", "compression": "zlib"}),
    ],
)
def test_every_layout_of_rgb_gives_the_same_pixels(tmp_path, noise, axes, options):
    stored = noise if axes == "YXS" else np.moveaxis(noise, 2, 0)
    tifffile.imwrite(tmp_path / "a.ome.tif", stored, metadata={"axes": axes}, **options)
    assert np.array_equal(whole_canvas(tmp_path / "a.ome.tif", 0.5, 0.5), noise)


def test_jpeg_tiles_grey_and_transparent_pixels_become_rgb(tmp_path, noise):
    smooth = np.kron(noise[:16, :16], np.ones((16, 16, 1), np.uint8))
    tifffile.imwrite(tmp_path / "j.tif", smooth, photometric="rgb", tile=(64, 64), compression="jpeg")
    assert np.abs(whole_canvas(tmp_path / "j.tif", 0.5, 0.5).astype(int) - smooth).mean() < 4
    tifffile.imwrite(tmp_path / "g.tif", noise[..., 0], photometric="minisblack", tile=(64, 64))
    assert np.array_equal(whole_canvas(tmp_path / "g.tif", 0.5, 0.5), np.repeat(noise[..., :1], 3, axis=2))
    alpha = np.full(noise.shape[:2], 255, np.uint8)
    alpha[:100] = 0
    rgba = np.dstack([noise, alpha])
    tifffile.imwrite(tmp_path / "t.tif", rgba, photometric="rgb", extrasamples=["unassalpha"], tile=(64, 64))
    drawn = whole_canvas(tmp_path / "t.tif", 0.5, 0.5)
    assert (drawn[:100] == 255).all()
    assert np.array_equal(drawn[100:], noise[100:])


@pytest.mark.parametrize(
    ("pixels", "options"),
    [
        (np.zeros((64, 64, 3), np.uint16), {"photometric": "rgb"}),
        (np.zeros((5, 64, 64), np.uint8), {"photometric": "minisblack", "metadata": {"axes": "ZYX"}}),
        (np.zeros((5, 64, 64), np.uint8), {"photometric": "minisblack", "metadata": {"axes": "CYX"}}),
        (np.zeros((64, 64), np.uint8), {"photometric": "palette", "colormap": np.zeros((3, 256), np.uint16)}),
    ],
)
def test_stacks_and_other_colours_are_refused_with_what_was_found(tmp_path, pixels, options):
    tifffile.imwrite(tmp_path / "a.ome.tif", pixels, **options)
    with pytest.raises(TileError, match="RGB or grey with 8 bits") as caught:
        whole_canvas(tmp_path / "a.ome.tif", 0.5, 0.5)
    assert " x ".join(map(str, pixels.shape)) in caught.value.found


def test_decoded_blocks_of_neighbouring_windows_are_kept(tmp_path, noise):
    with open_canvas(write_ome(tmp_path / "a.ome.tif", noise), 0.5) as canvas:
        read_all(canvas)
        read_all(canvas)
        assert canvas._levels._block.cache_info().misses == 9 * 13  # tiles of 64 px


# bad files


def test_a_plain_image_needs_um_per_pixel(tmp_path, noise):
    with pytest.raises(TileError, match="does not state its um/px") as caught:
        whole_canvas(write_png(tmp_path / "a.png", noise), 0.5)
    assert "--mpp-of-slide" in caught.value.next_step


@pytest.mark.parametrize("mpp", [0.0, -1.0, float("nan"), float("inf")])
def test_um_per_pixel_that_cannot_be_are_refused(tmp_path, noise, mpp):
    path = write_png(tmp_path / "a.png", noise)
    for both in ((mpp, 0.5), (0.5, mpp)):
        with pytest.raises(SpecError, match="um"):
            whole_canvas(path, *both)


def test_a_folder_a_missing_file_and_what_is_no_slide_are_named(tmp_path):
    (tmp_path / "a.svs").write_bytes(b"no slide")
    (tmp_path / "b.tif").write_bytes(b"II*\0 no TIFF either")
    (tmp_path / "c.svs").touch()
    for name, says in (("", "is a folder"), ("x.svs", "does not exist"), ("a.svs", "cannot be read as a slide"),
                       ("b.tif", "cannot be read as a TIFF"), ("c.svs", "is empty")):  # fmt: skip
        with pytest.raises(TileError, match=says):
            whole_canvas(tmp_path / name, 0.5)


@pytest.mark.parametrize("compression", ["zlib", None])
def test_a_truncated_tiff_is_named_with_the_place(tmp_path, noise, compression):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, noise, tile=(64, 64), photometric="rgb", compression=compression)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    with open_canvas(path, 0.5, 0.5) as canvas:
        assert np.array_equal(canvas.read(0, 0, 64, 64), noise[:64, :64])
        with pytest.raises(TileError, match=r"a.tif cannot be read as a TIFF at x \d+, y \d+ of level 0") as caught:
            canvas.read(450, 0, 64, 64)
    assert "copy" in caught.value.next_step
    tifffile.imwrite(path, noise)  # not compressed: mapped as a whole
    path.write_bytes(path.read_bytes()[:100_000])
    with pytest.raises(TileError, match="cannot be read as a TIFF"):
        whole_canvas(path, 0.5, 0.5)


def test_a_tiff_whose_list_of_pages_is_cut_off_is_damaged_and_nothing_is_logged(tmp_path, noise, caplog):
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path) as file:
        for pixels in (noise, halved(noise, 4)):
            file.write(pixels, tile=(64, 64), photometric="rgb", subfiletype=int(pixels is not noise))
    with tifffile.TiffFile(path) as file:
        second = file.pages[1].offset
    whole = path.read_bytes()
    for kept in (second, 200, 6):
        path.write_bytes(whole[:kept])
        with pytest.raises(TileError, match="cannot be read as a TIFF") as caught:
            whole_canvas(path, 0.5, 0.5)
        assert caught.value.found
    assert not caplog.records


def test_a_truncated_image_is_named(tmp_path, noise):
    path = write_png(tmp_path / "a.png", noise)
    path.write_bytes(path.read_bytes()[:100_000])
    with pytest.raises(TileError, match=r"a.png cannot be read as a PNG"):
        whole_canvas(path, 0.5, 0.5)


def test_a_plain_image_that_is_too_large_is_refused_before_it_is_loaded(tmp_path, noise, monkeypatch):
    monkeypatch.setattr(slide_levels, "LARGEST_CUT_PX", 1000)
    with pytest.raises(TileError, match="too large") as caught:
        whole_canvas(write_png(tmp_path / "a.png", noise), 0.5, 0.5)
    assert caught.value.found == "771 x 514 px"
    assert "pyramidal TIFF" in caught.value.next_step


def test_the_key_follows_the_content(tmp_path, noise):
    paths = [write_png(tmp_path / "a.png", noise), write_png(tmp_path / "b.png", noise)]
    with open_canvas(paths[0], 0.5, 0.5) as one, open_canvas(paths[1], 1.0, 0.5) as same:
        assert one.key == same.key
    changed = bytearray(paths[1].read_bytes())
    changed[-20] ^= 1
    paths[1].write_bytes(changed)
    assert sampled_hash(paths[0]) != sampled_hash(paths[1])


def test_without_tifffile_the_extra_is_named_and_plain_images_need_no_extra(tmp_path, noise, monkeypatch):
    write_ome(tmp_path / "a.ome.tif", noise)
    monkeypatch.setitem(sys.modules, "tifffile", None)
    with pytest.raises(ExtraMissing, match=r"fmcache\[wsi\]"):
        whole_canvas(tmp_path / "a.ome.tif", 0.5)
    monkeypatch.setitem(sys.modules, "openslide", None)
    with pytest.raises(ExtraMissing, match=r"fmcache\[wsi\]"):
        whole_canvas(tmp_path / "a.ome.tif", 0.5)
    assert np.array_equal(whole_canvas(write_png(tmp_path / "a.png", noise), 0.5, 0.5), noise)
