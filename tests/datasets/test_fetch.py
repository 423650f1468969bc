"""PUMA in miniature, served over HTTP: downloaded, resumed, checked, unpacked, drawn, split and locked."""

import hashlib
import io
import json
import threading
import zipfile
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import yaml
from PIL import Image

from fmcache.datasets import download
from fmcache.datasets import fetch as fetched
from fmcache.datasets.balance import BalancedSplit
from fmcache.datasets.check import check
from fmcache.datasets.fetch import fetch
from fmcache.datasets.split import split as write_splits
from fmcache.errors import DataUnavailable, ManifestError, SpecError, TileError
from fmcache.manifest import Manifest
from fmcache.tiles.images import read_tile

SIDE = 64  # in place of 1024
STEMS = [f"training_set_{kind}_roi_{i:03d}" for kind in ("primary", "metastatic") for i in (1, 2, 3)]
IMAGES, MASKS = "01_training_dataset_tif_ROIs.zip", "01_training_dataset_geojson_tissue.zip"


def ring(x0, y0, x1, y1):
    return [[x0, y0], [x1, y0], [x1, y1], [x0, y1], [x0, y0]]


def feature(name, *rings, kind="Polygon", coordinates=None, colour=True):
    classification = {"name": name} | ({"color": [1, 2, 3]} if colour else {})
    return {
        "type": "Feature",
        "id": "0",
        "geometry": {"type": kind, "coordinates": coordinates or list(rings)},
        "properties": {"objectType": "annotation", "classification": classification},
    }


def tissue(i):
    """One of six files; together they hold what PUMA's files hold."""
    stroma = feature("tissue_stroma", ring(0, 0, SIDE, SIDE), ring(40, 40, 50, 50))
    tumour = feature("tissue_tumor", ring(0, 0, 20 + i, SIDE), colour=False)
    places = ring(2, 2, 6, 6), ring(50, 2, 54, 6)
    vessels = [feature("tissue_blood_vessel", kind="MultiPolygon", coordinates=[[place] for place in places])]
    rare = [feature(f"tissue_{name}", place) for name, place in zip(("epidermis", "necrosis"), places, strict=True)]
    features = [tumour, tumour, stroma, *(rare if i == 5 else vessels)]
    return features if i % 2 else {"type": "FeatureCollection", "features": features}


def zipped(files):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def tiff(i):
    pixels = np.random.default_rng(i).integers(0, 255, (SIDE, SIDE, 3 + i % 2)).astype("uint8")
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "TIFF")
    return buffer.getvalue()


def record():
    """The two archives; the second unpacks into a folder, and one of its files is of another system."""
    images = zipped({f"{stem}.tif": tiff(i) for i, stem in enumerate(STEMS)})
    folder = MASKS.removesuffix(".zip")
    masks = {f"{folder}/{stem}_tissue.geojson": json.dumps(tissue(i)) for i, stem in enumerate(STEMS)}
    masks |= {f"{folder}/": "", f"__MACOSX/{folder}/._a.geojson": "?"}
    return {IMAGES: images, MASKS: zipped(masks)}


class Server:
    """Files over HTTP, with byte ranges; `breaks_after` ends that many answers half way, `log` holds the ranges."""

    def __init__(self, files):
        self.files, self.breaks, self.ranges, self.log = dict(files), 0, True, []


@contextmanager
def serving(files):
    state = Server(files)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            name = self.path.partition("?")[0].rsplit("/", 1)[-1]
            asked = self.headers.get("Range", "")
            state.log.append((name, asked))
            if name not in state.files:
                return self.send_error(404)
            body = state.files[name]
            first = int(asked.removeprefix("bytes=").rstrip("-")) if asked and state.ranges else 0
            if first and first >= len(body):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(body)}")
                self.send_header("Content-Length", "0")
                return self.end_headers()
            self.send_response(206 if first else 200)
            self.send_header("Content-Length", str(len(body) - first))
            self.end_headers()
            if state.breaks:
                state.breaks -= 1
                self.wfile.write(body[first : (first + len(body)) // 2])
                return None
            return self.wfile.write(body[first:])

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    state.url = f"http://127.0.0.1:{server.server_port}/records/15050523/files"
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture(scope="module")
def files():
    return record()


@pytest.fixture
def server(files, monkeypatch):
    monkeypatch.setattr(download, "WAIT_S", 0.01)
    monkeypatch.setattr(download, "BLOCK", 512)
    with serving(files) as state:
        yield state


@pytest.fixture
def manifest(tmp_path, files):
    """PUMA's entry as it comes along, with the split and the checksum of the miniature."""
    from pathlib import Path

    document = yaml.safe_load((Path(__file__).parents[2] / "data_manifest.yaml").read_text())
    puma = document["datasets"]["puma"]
    puma["fetch"]["split"] = "3/1/2"
    puma["fetch"]["archives"][0]["md5"] = hashlib.md5(files[IMAGES]).hexdigest()  # noqa: S324
    path = tmp_path / "data_manifest.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


def get(manifest, server, **more):
    return fetch(Manifest(manifest), "puma", source=server.url, **more)


def test_puma_is_fetched_drawn_split_and_locked(manifest, server):
    said = get(manifest, server)
    assert f"recorded at this first download: {MASKS}" in said
    listed = Manifest(manifest)
    dataset = listed.dataset("puma")
    assert dataset.label_names == ("tumour", "stroma", "other")
    assert sorted(tile.id for tile in dataset.tiles) == sorted(STEMS)
    assert [len(dataset.splits.of(split)) for split in ("train", "val", "test")] == [3, 1, 2]
    for i, stem in enumerate(STEMS):
        entry = next(tile for tile in dataset.tiles if tile.id == stem)
        tile = read_tile(dataset, entry, listed.folder)
        expected = np.full((SIDE, SIDE), 1, dtype=np.uint8)
        expected[40:50, 40:50] = 2  # the hole: nothing is annotated there
        expected[:, : 20 + i] = 0  # above stroma, though stroma comes later in the file
        expected[2:6, 2:6] = expected[2:6, 50:54] = 2
        np.testing.assert_array_equal(tile.mask, expected)
        assert tile.image.shape == (SIDE, SIDE, 3)
        assert tile.overlap == pytest.approx(((20 + i) * SIDE + 16) / SIDE**2)
    found = check(listed, "puma")
    assert found.problems == []
    assert "overlap in 6 of 6 tiles" in " ".join(found.notes)


def test_a_listed_split_that_cannot_be_says_what_to_write_and_where(manifest, server):
    document = yaml.safe_load(manifest.read_text())
    document["datasets"]["puma"]["fetch"]["split"] = "15/5/10"
    manifest.write_text(yaml.safe_dump(document))
    with pytest.raises(SpecError, match="needs 30 tiles") as caught:
        get(manifest, server)
    assert caught.value.next_step == f"write `split: 3/1/2` below `fetch:` of puma in {manifest}"
    document["datasets"]["puma"]["fetch"]["split"] = "3/1/2"
    manifest.write_text(yaml.safe_dump(document))
    assert "split 3/1/2; label shares" in get(manifest, server)


def test_a_fetched_dataset_gets_folds_and_keeps_its_fixed_split(manifest, server):
    get(manifest, server)
    fixed = Manifest(manifest).dataset("puma").splits
    write_splits(manifest, "puma", "", 3, "", 0)
    listed = Manifest(manifest).dataset("puma")
    assert (listed.splits, len(listed.folds)) == (fixed, 3)
    before = manifest.read_bytes()
    for sizes, subsets in (("2/2/2", ""), ("", "2")):
        with pytest.raises(SpecError, match=r"is defined by .*puma\.lock\.yaml(.|\n)*fmcache data fetch puma"):
            write_splits(manifest, "puma", sizes, 0, subsets, 0)
    assert manifest.read_bytes() == before


def test_what_was_fetched_is_not_fetched_again_and_the_lock_stays(manifest, server):
    get(manifest, server)
    lock = (manifest.parent / "puma.lock.yaml").read_bytes()
    asked = list(server.log)
    assert "complete, 6 tiles" in get(manifest, server)
    assert (server.log, (manifest.parent / "puma.lock.yaml").read_bytes()) == (asked, lock)


def test_a_lost_file_comes_back_from_the_archive_and_a_lost_folder_from_the_web(manifest, server):
    get(manifest, server)
    splits = Manifest(manifest).dataset("puma").splits
    image = manifest.parent / "data" / "puma" / "images" / f"{STEMS[0]}.tif"
    image.write_bytes(b"spoilt")
    get(manifest, server)
    assert check(Manifest(manifest), "puma").problems == []
    get(manifest, server, into=manifest.parent / "elsewhere")
    listed = Manifest(manifest)
    assert (listed.dataset("puma").root, listed.dataset("puma").splits) == ("elsewhere", splits)
    assert check(listed, "puma").problems == []


def test_both_datasets_share_the_files_and_the_official_one_has_its_own_labels(manifest, server):
    get(manifest, server)
    asked = len(server.log)
    document = yaml.safe_load(manifest.read_text())
    document["datasets"]["puma-official"]["fetch"] = document["datasets"]["puma"]["fetch"]
    manifest.write_text(yaml.safe_dump(document))
    fetch(Manifest(manifest), "puma-official", source=server.url)
    assert len(server.log) == asked
    listed = Manifest(manifest)
    dataset = listed.dataset("puma-official")
    mask = read_tile(dataset, dataset.tiles[0], listed.folder).mask
    assert (mask[3, 3], mask[30, 0], mask[60, 60], mask[45, 45]) == (2, 3, 1, 0)


def test_a_download_that_breaks_off_resumes_where_it_stopped(manifest, server, files):
    server.breaks = 2
    get(manifest, server)
    whole, *resumed = [asked for name, asked in server.log if name == IMAGES]
    assert whole == ""
    first, second = (int(asked.removeprefix("bytes=").removesuffix("-")) for asked in resumed)
    assert 0 < first < second < len(files[IMAGES])
    assert (manifest.parent / "data" / "puma" / IMAGES).read_bytes() == files[IMAGES]


def test_a_second_call_resumes_with_what_the_first_one_left(manifest, server, files):
    server.breaks = 99
    with pytest.raises(DataUnavailable, match="resumes the download"):
        get(manifest, server)
    partial = manifest.parent / "data" / "puma" / f"{IMAGES}.partial"
    here = partial.stat().st_size
    assert 0 < here < len(files[IMAGES])
    assert not (manifest.parent / "puma.lock.yaml").exists()
    server.breaks, server.log[:] = 0, []
    get(manifest, server)
    assert server.log[0] == (IMAGES, f"bytes={here}-")
    assert not partial.exists()


def test_a_server_without_byte_ranges_sends_the_whole_again(manifest, server, files):
    server.breaks, server.ranges = 1, False
    get(manifest, server)
    assert (manifest.parent / "data" / "puma" / IMAGES).read_bytes() == files[IMAGES]


def test_a_whole_partial_file_is_taken_and_a_longer_one_is_dropped(manifest, server, files):
    folder = manifest.parent / "data" / "puma"
    folder.mkdir(parents=True)
    (folder / f"{IMAGES}.partial").write_bytes(files[IMAGES])
    (folder / f"{MASKS}.partial").write_bytes(files[MASKS] + b"more")
    get(manifest, server)
    assert (folder / MASKS).read_bytes() == files[MASKS]


def test_a_wrong_checksum_is_refused_and_the_file_removed(manifest, server):
    server.files[IMAGES] = zipped({"a.tif": tiff(0)})
    with pytest.raises(ManifestError, match="MD5"):
        get(manifest, server)
    assert not (manifest.parent / "data" / "puma" / IMAGES).exists()


def test_a_checksum_recorded_at_the_first_download_is_checked(manifest, server, files):
    get(manifest, server)
    folder = manifest.parent / "data" / "puma"
    assert yaml.safe_load((folder / download.RECORD).read_text())[MASKS]["sha256"] == (
        hashlib.sha256(files[MASKS]).hexdigest()
    )
    (folder / MASKS).unlink()
    (folder / "masks" / f"{STEMS[0]}_tissue.geojson").unlink()
    server.files[MASKS] = zipped({f"{stem}_tissue.geojson": json.dumps(tissue(0)) for stem in STEMS})
    with pytest.raises(ManifestError, match="not the file that was downloaded before"):
        get(manifest, server)
    (folder / download.RECORD).unlink()  # and even then, the lock knows the tiles
    with pytest.raises(ManifestError, match=r"not those that .*lock\.yaml lists"):
        get(manifest, server)


@pytest.mark.parametrize("name", ["../evil.geojson", "/evil.geojson", "a/../../evil.geojson", "..\\evil.geojson"])
def test_names_that_point_outside_the_folder_are_refused_before_anything_is_written(manifest, server, name):
    server.files[MASKS] = zipped({f"{STEMS[0]}_tissue.geojson": "[]", name: "[]"})
    with pytest.raises(ManifestError, match="points outside"):
        get(manifest, server)
    assert not list(manifest.parent.rglob("*.geojson"))


def test_links_damage_twins_and_archives_without_images_are_refused(manifest, server, files):
    link = zipfile.ZipInfo("a.geojson")
    link.external_attr = 0o120777 << 16
    twins = zipped({"x/a.geojson": "[]", "y/a.geojson": "[]"})
    for body, says in [
        (zipped({link: "/etc/passwd"}), "points outside"),
        (files[MASKS][:-40], "cannot be unpacked"),
        (twins, "two files named a.geojson"),
        (zipped({"readme.txt": "?"}), "no files of the expected types"),
    ]:
        server.files[MASKS] = body
        with pytest.raises(ManifestError, match=says):
            get(manifest, server)
        folder = manifest.parent / "data" / "puma"
        assert MASKS not in download.downloads(folder).read()
        (folder / MASKS).unlink()


def test_names_without_their_prefix_are_all_listed_and_make_no_empty_masks(manifest, server):
    wrong = {
        "type": "FeatureCollection",
        "features": [feature("tumor", ring(0, 0, 9, 9)), feature("", ring(1, 1, 9, 9))],
    }
    server.files[MASKS] = zipped({f"{stem}_tissue.geojson": json.dumps(wrong) for stem in STEMS})
    with pytest.raises(TileError, match=r"tumor \(6\), \(no class\) \(6\)"):
        get(manifest, server)
    assert not (manifest.parent / "puma.lock.yaml").exists()


def test_what_is_not_fetched_yet_says_how_and_hinders_no_other_dataset(manifest, server):
    listed = Manifest(manifest)
    assert listed.dataset("demo").label_names
    with pytest.raises(ManifestError, match="fmcache data fetch puma"):
        listed.dataset("puma")
    with pytest.raises(SpecError, match="nothing to fetch"):
        fetch(listed, "demo")
    with pytest.raises(DataUnavailable, match="404"):
        fetch(listed, "puma", source=f"{server.url}/{{file}}.lost")


def test_a_lock_file_of_another_format_or_with_a_split_too_many_is_refused_at_its_own_line(manifest, server):
    get(manifest, server)
    path = manifest.parent / "puma.lock.yaml"
    text = path.read_text()
    path.write_text(text.replace("format: 1", "format: 9"))
    with pytest.raises(ManifestError, match=r"puma.lock.yaml:\d+: format"):
        Manifest(manifest)
    path.write_text(text.replace("val: [", f"val: [{STEMS[0]}, {STEMS[1]}, {STEMS[2]}, {STEMS[3]}, {STEMS[4]}, "))
    with pytest.raises(ManifestError, match=r"puma.lock.yaml:\d+: splits"):
        Manifest(manifest)


def upv(folder, side=32):
    for kind in ("images", "masks"):
        (folder / kind).mkdir(parents=True)
    for i in range(6):
        name = f"slide-{i // 2}_{i}.png"
        Image.fromarray(np.full((side, side, 3), 40 * i, "uint8")).save(folder / "images" / name)
        mask = np.zeros((side, side), "uint8")
        mask[: 4 + i], mask[-4:] = 1, 2
        Image.fromarray(mask).save(folder / "masks" / name)


def test_the_private_dataset_says_what_to_place_where_and_is_then_listed_by_slide(manifest):
    with pytest.raises(ManifestError, match=r"(?s)upv-anxa5/images.*SLIDE_TILE\.png.*fmcache data fetch upv-anxa5"):
        fetch(Manifest(manifest), "upv-anxa5")
    document = yaml.safe_load(manifest.read_text())
    document["datasets"]["upv-anxa5"]["fetch"]["split"] = "2/2/2"
    manifest.write_text(yaml.safe_dump(document))
    upv(manifest.parent / "mine")
    fetch(Manifest(manifest), "upv-anxa5", into=manifest.parent / "mine")
    dataset = Manifest(manifest).dataset("upv-anxa5")
    group = {tile.id: tile.group for tile in dataset.tiles}
    assert set(group.values()) == {"slide-0", "slide-1", "slide-2"}
    for split in ("train", "val", "test"):
        assert len({group[tile] for tile in dataset.splits.of(split)}) == 1


def test_a_lock_that_would_not_be_read_again_is_never_written(manifest, server, monkeypatch):
    def one_tile_in_two_splits(ids, *_, **__):
        return BalancedSplit((tuple(range(len(ids))), (0,), (1,)), 0.0)

    before = manifest.read_bytes()
    with monkeypatch.context() as patched, pytest.raises(ManifestError, match=r"puma\.lock\.yaml:\d+: .*again in"):
        patched.setattr(fetched, "balanced_split", one_tile_in_two_splits)
        get(manifest, server)
    assert not (manifest.parent / "puma.lock.yaml").exists()
    assert manifest.read_bytes() == before
    get(manifest, server)
