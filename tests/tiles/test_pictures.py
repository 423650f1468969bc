"""What containers hold: pages, planes, transparency, palettes, depth and loss are honoured, or refused by name."""

import io
import struct
import warnings
import zlib

import numpy as np
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from fmcache.errors import TileError
from fmcache.tiles.containers import look
from fmcache.tiles.pictures import TRANSPARENT, over_white, read_image, read_raw_mask

IDS = np.array([[0, 1, 2, 3], [3, 3, 1, 0]], "uint8")
COLOURS = np.array([[200, 0, 0], [0, 200, 0], [255, 255, 255], [9, 9, 9]], "uint8")
RGB = COLOURS[IDS]
OPAQUE = np.where(IDS % 2, 0, 255).astype("uint8")
RGBA = np.dstack([RGB, OPAQUE])


def png(path, bits, kind, rows, palette=b"", transparency=b""):
    """Write a PNG of bytes that are packed already: Pillow writes no grey of 2 or 4 bits."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    size = struct.pack(">IIBBBBB", 4, 2, bits, kind, 0, 0, 0)
    extra = [(b"PLTE", palette), (b"tRNS", transparency)]
    data = zlib.compress(b"".join(b"\0" + row for row in rows))
    chunks = [(b"IHDR", size), *((name, text) for name, text in extra if text), (b"IDAT", data), (b"IEND", b"")]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*one) for one in chunks))
    return path


def packed(values, bits):
    if bits == 16:
        return values.astype(">u2").tobytes()
    text = "".join(f"{value:0{bits}b}" for value in values).ljust(8 * -(-len(values) * bits // 8), "0")
    return int(text, 2).to_bytes(len(text) // 8, "big")


def colours_of(path):
    keys = read_raw_mask(path).keys
    return [["-" if key == TRANSPARENT else f"#{-1 - key:06x}" for key in row] for row in keys.tolist()]


@pytest.mark.parametrize("bits", [2, 4, 8, 16])
@pytest.mark.parametrize("kind", [0, 3])
def test_label_ids_of_any_depth_are_those_that_are_stored(tmp_path, bits, kind):
    if (bits, kind) == (16, 3):
        return
    palette = COLOURS.tobytes() if kind else b""
    rows = [packed(row, bits) for row in IDS]
    raw = read_raw_mask(png(tmp_path / "a.png", bits, kind, rows, palette))
    assert raw.keys.tolist() == IDS.tolist()
    assert raw.is_palette == bool(kind)
    hidden = b"\xff\0" if kind else b"\0\x01"  # the second palette entry, or the grey value 1
    keys = read_raw_mask(png(tmp_path / "b.png", bits, kind, rows, palette, hidden)).keys
    assert keys.tolist() == np.where(IDS == 1, TRANSPARENT, IDS.astype(int)).tolist()
    if bits < 16:
        image = read_image(tmp_path / "b.png")
        assert (image[IDS == 1] == 255).all()
        shown = COLOURS[IDS] if kind else (IDS * (255 // (2**bits - 1)))[..., None].repeat(3, -1)
        assert (image[IDS != 1] == shown[IDS != 1]).all()


READ = {
    "big-endian": {"byteorder": ">"},
    "tiled": {"tile": (16, 16)},
    "deflate": {"compression": "zlib", "predictor": True},
    "bigtiff": {"bigtiff": True},
    "ImageJ": {"imagej": True},
    "OME": {"ome": True},
    "upright": {"extratags": [(274, "H", 1, 1, True)]},
}


@pytest.mark.parametrize("how", READ)
@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_label_ids_of_a_tiff_are_those_that_are_stored(tmp_path, how, dtype):
    tifffile.imwrite(tmp_path / "a.tif", IDS.astype(dtype), **READ[how])
    assert read_raw_mask(tmp_path / "a.tif").keys.tolist() == IDS.tolist()


def test_planes_apart_and_smaller_versions_beside_it_change_no_image(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", np.moveaxis(RGB, -1, 0), photometric="rgb", planarconfig="separate")
    with tifffile.TiffWriter(tmp_path / "b.tif") as file:
        file.write(RGB, photometric="rgb", subifds=1)
        file.write(RGB[:1, :2], photometric="rgb", subfiletype=1)
        file.write(RGB[:1, :2], photometric="rgb", subfiletype=1)
    for name in ("a.tif", "b.tif"):
        assert (read_image(tmp_path / name) == RGB).all()


SEPARATE = {"photometric": "rgb", "planarconfig": "separate"}
REFUSED = [
    ("pages", np.stack([IDS] * 3), {"photometric": "minisblack"}, "holds 3 pages"),
    ("z stack", np.stack([IDS] * 2), {"imagej": True, "metadata": {"axes": "ZYX"}}, "holds 2 pages"),
    ("OME channels", np.stack([IDS] * 3), {"ome": True, "photometric": "minisblack"}, "holds 3 pages"),
    ("planes under one page", np.stack([IDS] * 3), {"photometric": "minisblack", "truncate": True}, "holds 3 planes"),
    ("other file", IDS, {"description": '<OME><Image><Pixels SizeZ="1" SizeC="2" SizeT="1"/>'}, "holds 2 planes"),
    ("ImageJ", IDS, {"description": "ImageJ=1.53\nimages=5\nslices=5\n", "metadata": None}, "holds 5 planes"),
    ("turned", IDS, {"extratags": [(274, "H", 1, 6, True)]}, "rotated"),
    ("channels", RGB, {"photometric": "minisblack", "planarconfig": "contig"}, "extra channels"),
    ("unnamed", RGBA, {"photometric": "rgb", "extrasamples": ["unspecified"]}, "extra channels"),
    ("deep", RGB.astype("uint16"), {"photometric": "rgb"}, "16 bits"),
    ("deep planes", np.moveaxis(RGB, -1, 0).astype("uint16"), SEPARATE, "16 bits"),
]


@pytest.mark.parametrize(("array", "how", "says"), [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED])
@pytest.mark.parametrize("read", [read_image, read_raw_mask])
def test_a_tiff_that_is_not_one_upright_picture_of_8_bits_is_refused_by_name(tmp_path, array, how, says, read):
    tifffile.imwrite(tmp_path / "a.tif", array, **how)
    with pytest.raises(TileError, match=says) as caught:
        read(tmp_path / "a.tif")
    assert caught.value.next_step


@pytest.mark.parametrize("dtype", ["int32", "int64", "uint64", "float32", "float64"])
def test_label_ids_in_a_tiff_of_any_type_of_number_are_read_and_images_of_such_refused(tmp_path, dtype):
    tifffile.imwrite(tmp_path / "a.tif", IDS.astype(dtype))
    assert read_raw_mask(tmp_path / "a.tif").keys.tolist() == IDS.tolist()
    with pytest.raises(TileError, match="images of mode"):
        read_image(tmp_path / "a.tif")


@pytest.mark.parametrize("values", [IDS - 1.0, IDS / 2, IDS * 2.0**31, np.full((2, 4), np.nan)])
def test_numbers_in_a_tiff_that_are_no_label_ids_are_refused(tmp_path, values):
    tifffile.imwrite(tmp_path / "a.tif", values)
    with pytest.raises(TileError, match="mask values"):
        read_raw_mask(tmp_path / "a.tif")


def test_a_bigtiff_with_the_high_byte_first_is_refused_with_what_to_save(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", RGB, bigtiff=True, byteorder=">", photometric="rgb")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # what Pillow warns of when it only looks at the file helps nobody
        look(tmp_path / "a.tif")
    with pytest.raises(TileError, match="high byte first") as caught:
        read_image(tmp_path / "a.tif")
    assert "PNG" in caught.value.next_step


def test_a_thumbnail_or_a_larger_image_beside_the_first_page_is_refused(tmp_path):
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        file.write(IDS)
        file.write(IDS[:1])
    with pytest.raises(TileError, match="2 pages"):
        read_image(tmp_path / "a.tif")
    with tifffile.TiffWriter(tmp_path / "b.tif") as file:
        file.write(IDS[:1], subifds=1, subfiletype=1)
        file.write(IDS)
    with pytest.raises(TileError, match="smaller version"):
        read_image(tmp_path / "b.tif")


@pytest.mark.parametrize("dtype", ["bool", "uint8", "uint16"])
def test_masks_in_which_0_is_white_are_refused_and_images_are_shown(tmp_path, dtype):
    tifffile.imwrite(tmp_path / "a.tif", IDS.astype(dtype), photometric="miniswhite")
    with pytest.raises(TileError, match="WhiteIsZero"):
        read_raw_mask(tmp_path / "a.tif")
    if dtype == "uint8":
        assert (read_image(tmp_path / "a.tif")[..., 0] == 255 - IDS).all()


def test_signed_and_very_large_numbers_are_not_wrapped(tmp_path):
    for name, values in (("a.tif", IDS.astype("int8") - 1), ("b.tif", IDS.astype("int16") - 1)):
        tifffile.imwrite(tmp_path / name, values)
        with pytest.raises(TileError, match="below 0"):
            read_raw_mask(tmp_path / name)
    tifffile.imwrite(tmp_path / "c.tif", np.full((2, 2), 2**31, "uint32"))
    with pytest.raises(TileError, match="above 2147483647"):
        read_raw_mask(tmp_path / "c.tif")


def test_palettes_of_png_tiff_and_bmp_show_their_colours(tmp_path):
    picture = Image.fromarray(IDS).convert("P")
    picture.putpalette(COLOURS.tobytes())
    for name in ("a.png", "a.bmp", "a.tif"):
        picture.save(tmp_path / name)
    table = np.zeros((3, 256), "uint16")
    table[:, :4] = COLOURS.T
    tifffile.imwrite(tmp_path / "wide.tif", IDS, photometric="palette", colormap=table * 257)
    tifffile.imwrite(tmp_path / "narrow.tif", IDS, photometric="palette", colormap=table)
    for name in ("a.png", "a.bmp", "a.tif", "wide.tif", "narrow.tif"):
        raw = read_raw_mask(tmp_path / name)
        assert (raw.keys == IDS).all()
        assert (raw.colours[:4] == COLOURS).all()
        assert (read_image(tmp_path / name) == RGB).all()


@pytest.mark.parametrize("name", ["a.png", "associated.tif", "unassociated.tif", "planes.tif"])
def test_what_is_transparent_is_not_in_a_mask_and_white_in_an_image(tmp_path, name):
    path = tmp_path / name
    if name == "a.png":
        Image.fromarray(RGBA).save(path)
    else:
        kind = "assocalpha" if name == "associated.tif" else "unassalpha"
        planes = name == "planes.tif"
        pixels = np.moveaxis(RGBA, -1, 0) if planes else RGBA
        tifffile.imwrite(
            path, pixels, photometric="rgb", planarconfig="separate" if planes else "contig", extrasamples=[kind]
        )
    assert colours_of(path) == [["#c80000", "-", "#ffffff", "-"], ["-", "-", "-", "#c80000"]]
    assert (read_image(path) == np.where(OPAQUE[..., None] > 0, RGB, 255)).all()


def test_grey_with_alpha_is_grey_and_opaque_alpha_changes_nothing(tmp_path):
    for name in ("a.png", "a.tif"):
        Image.merge("LA", [Image.fromarray(IDS), Image.fromarray(OPAQUE)]).save(tmp_path / name)
        hidden = np.where(OPAQUE == 0, TRANSPARENT, IDS.astype(int))
        assert (read_raw_mask(tmp_path / name).keys == hidden).all()
        Image.fromarray(IDS).convert("LA").save(tmp_path / name)
        assert (read_raw_mask(tmp_path / name).keys == IDS).all()
    Image.fromarray(RGB).convert("RGBA").save(tmp_path / "b.png")
    assert (read_image(tmp_path / "b.png") == RGB).all()


def test_a_channel_without_a_meaning_is_dropped_when_it_says_nothing(tmp_path):
    for constant in (0, 255):
        spare = np.dstack([RGB, np.full_like(IDS, constant)])
        tifffile.imwrite(tmp_path / "a.tif", spare, photometric="rgb", extrasamples=["unspecified"])
        assert (read_image(tmp_path / "a.tif") == RGB).all()
        assert colours_of(tmp_path / "a.tif")[0][0] == "#c80000"


def test_half_transparent_masks_are_refused_and_images_blended_as_slides_are(tmp_path):
    half = Image.fromarray(np.dstack([RGB, np.full_like(IDS, 128)]))
    half.save(tmp_path / "a.png")
    with pytest.raises(TileError, match="8 pixels of the mask are partly transparent") as caught:
        read_raw_mask(tmp_path / "a.png")
    assert "anti-aliasing" in caught.value.next_step
    assert (read_image(tmp_path / "a.png") == over_white(half, half.getchannel("A"))).all()
    assert read_image(tmp_path / "a.png")[0, 0].tolist() == [227, 127, 127]


LOSSY = [("JPEG", {}), ("WEBP", {}), ("JPEG2000", {}), ("TIFF", {"compression": "jpeg"})]


@pytest.mark.parametrize(("format_", "how"), LOSSY, ids=[name for name, _ in LOSSY])
@pytest.mark.parametrize("name", ["a.png", "a.jpg"])
def test_masks_that_were_compressed_with_loss_are_refused_whatever_they_are_called(tmp_path, format_, how, name):
    Image.fromarray(RGB).resize((16, 16)).save(tmp_path / name, format=format_, **how)
    with pytest.raises(TileError, match="is lossy") as caught:
        read_raw_mask(tmp_path / name)
    assert "PNG or TIFF" in caught.value.next_step
    assert read_image(tmp_path / name).shape == (16, 16, 3)


def test_a_picture_is_read_by_what_it_holds_not_by_its_name(tmp_path):
    Image.fromarray(RGB).save(tmp_path / "a.tif", format="PNG")
    Image.fromarray(RGB).save(tmp_path / "a.jpg", format="BMP")
    for name in ("a.tif", "a.jpg"):
        assert (read_image(tmp_path / name) == RGB).all()
        assert colours_of(tmp_path / name)[0][0] == "#c80000"


def test_animations_are_refused(tmp_path):
    for name, format_ in (("a.png", "PNG"), ("b.png", "GIF")):
        frames = [Image.fromarray(IDS + i) for i in range(2)]
        frames[0].save(tmp_path / name, format=format_, save_all=True, append_images=frames[1:])
        for read in (read_image, read_raw_mask):
            with pytest.raises(TileError, match="holds 2 pictures"):
                read(tmp_path / name)


def test_an_image_that_is_too_large_is_not_called_damaged(tmp_path):
    path = png(tmp_path / "a.png", 1, 0, [b"\0"])
    data = path.read_bytes()
    size = b"IHDR" + struct.pack(">II", 20000, 10000) + data[24:29]
    path.write_bytes(data[:12] + size + struct.pack(">I", zlib.crc32(size)) + data[33:])
    tifffile.memmap(tmp_path / "a.tif", shape=(14000, 14000), dtype="uint8").flush()
    for name, found in (("a.png", "20000 x 10000 px, 200 megapixels"), ("a.tif", "14000 x 14000 px, 196 megapixels")):
        with pytest.raises(TileError, match="too large for a tile") as caught:
            read_image(tmp_path / name)
        assert caught.value.found == found
        assert "fmcache data cut" in caught.value.next_step


ARRAYS = [IDS, IDS > 0, IDS.astype(">i4"), IDS.astype("float32"), np.asfortranarray(IDS), IDS[..., None], IDS[None]]


@pytest.mark.parametrize("array", ARRAYS, ids=lambda array: f"{array.dtype}{array.shape}")
def test_a_numpy_array_of_whole_numbers_is_a_mask(tmp_path, array):
    np.save(tmp_path / "a.npy", array)
    assert read_raw_mask(tmp_path / "a.npy").keys.tolist() == array.reshape(2, 4).astype(int).tolist()


@pytest.mark.parametrize(
    ("array", "says"),
    [
        (np.eye(4, dtype="uint8")[IDS], "not a 2-D array"),
        (IDS + 0.5, "not whole numbers"),
        (np.full((2, 2), np.nan), "not whole numbers"),
        (IDS.astype(int) - 1, "below 0"),
        (np.full((2, 2), 2**40), "above 2147483647"),
        (np.array([["a", "b"]]), "not a 2-D array of numbers"),
        (np.array([[None, 1]], dtype=object), "cannot be read as a NumPy array"),
    ],
)
def test_other_arrays_are_refused_with_what_to_save(tmp_path, array, says):
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(TileError, match=says) as caught:
        read_raw_mask(tmp_path / "a.npy")
    assert "PNG" in caught.value.next_step or "numpy.save" in caught.value.next_step or "255" in caught.value.next_step


@pytest.mark.parametrize(
    ("start", "says"),
    [(b"version https://git-lfs.github.com/spec/v1\noid", "git lfs pull"), (b"<!DOCTYPE html>", "web page")],
)
def test_what_came_in_place_of_the_file_is_called_so(tmp_path, start, says):
    (tmp_path / "a.png").write_bytes(start)
    for read in (read_image, read_raw_mask):
        with pytest.raises(TileError) as caught:
            read(tmp_path / "a.png")
        assert says in caught.value.found


def test_archives_matlab_files_and_text_are_refused_by_name(tmp_path):
    np.savez(tmp_path / "z.npz", IDS)
    (tmp_path / "z.npz").rename(tmp_path / "z.npy")
    (tmp_path / "m.npy").write_bytes(b"MATLAB 5.0 MAT-file, Platform: GLNXA64")
    (tmp_path / "t.png").write_text("not found")
    for name, found in (("z.npy", "zip or .npz"), ("m.npy", "MATLAB file"), ("t.png", "first bytes")):
        with pytest.raises(TileError, match="cannot be read as a mask") as caught:
            read_raw_mask(tmp_path / name)
        assert found in caught.value.found


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB"])
def test_bmp_is_read_as_png_is(tmp_path, mode):
    picture = Image.fromarray(RGB).convert(mode)
    for name in ("a.bmp", "a.png"):
        picture.save(tmp_path / name)
    assert (read_image(tmp_path / "a.bmp") == read_image(tmp_path / "a.png")).all()
    if mode != "P":  # of a palette, the order may differ
        assert (read_raw_mask(tmp_path / "a.bmp").keys == read_raw_mask(tmp_path / "a.png").keys).all()


def test_a_bmp_whose_short_grey_palette_misleads_pillow_is_refused(tmp_path):
    palette, rows = bytes([0, 0, 0, 0, 255, 255, 255, 0]), bytes([0, 1, 1, 0])
    head = struct.pack("<IiiHHIIiiII", 40, 4, 1, 1, 8, 0, 4, 0, 0, 2, 0)
    (tmp_path / "a.bmp").write_bytes(b"BM" + struct.pack("<IHHI", 66, 0, 0, 62) + head + palette + rows)
    with pytest.raises(TileError, match="short grey palette"):
        read_raw_mask(tmp_path / "a.bmp")


def test_missing_empty_and_broken_files_are_reported_with_the_reason(tmp_path):
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "empty.png").touch()
    png(tmp_path / "half.png", 8, 0, [bytes(row) for row in IDS])
    (tmp_path / "half.png").write_bytes((tmp_path / "half.png").read_bytes()[:45])
    for name, says in (
        ("nowhere.png", "cannot be opened"), ("folder.png", "cannot be opened"), ("empty.png", "is empty"),
        ("half.png", "cannot be read as a PNG"),
    ):  # fmt: skip
        for read in (read_image, read_raw_mask):
            with pytest.raises(TileError, match=says) as caught:
                read(tmp_path / name)
            assert caught.value.found
            assert caught.value.next_step


def seeds():
    def saved(picture, **how):
        file = io.BytesIO()
        picture.save(file, **how)
        return file.getvalue()

    def listed(array, **how):
        file = io.BytesIO()
        tifffile.imwrite(file, array, **how)
        return file.getvalue()

    grey, colour, palette = Image.fromarray(IDS), Image.fromarray(RGBA), Image.fromarray(RGB).convert("P")
    array = io.BytesIO()
    np.save(array, IDS)
    yield from (saved(picture, format=name) for picture in (grey, colour, palette) for name in ("PNG", "BMP", "TIFF"))
    yield from (saved(grey, format="PNG", transparency=1), saved(Image.fromarray(RGB), format="JPEG"), array.getvalue())
    yield from (listed(IDS, bigtiff=True), listed(np.stack([IDS] * 2), imagej=True), listed(IDS.astype("uint16")))


SEEDS = list(seeds())


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(SEEDS),
    st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=6),
    st.floats(0.2, 1),
)
@pytest.mark.filterwarnings("ignore")
def test_no_bytes_bring_a_traceback(tmp_path, seed, changes, kept):
    data = bytearray(seed[: max(1, round(len(seed) * kept))])
    for at, value in changes:
        data[int(at * len(data))] = value
    (tmp_path / "a.png").write_bytes(data)
    for read in (read_image, read_raw_mask):
        try:
            read(tmp_path / "a.png")
        except TileError as error:
            assert error.next_step
