"""The cached tokens of slides: equal maps, no encoder for another seed, no use of an incomplete or another cache."""

import cv2
import numpy as np
import pytest
import zarr
from PIL import Image

from fmcache.cache.header import read_header
from fmcache.cache.reader import open_cache
from fmcache.cache.verify import find_caches, remove_cache, verify_cache
from fmcache.errors import CacheUnsealed, NoRoom, SpecError
from fmcache.specs import DecoderSpec, FitSpec, Recipe, ViewSpec
from fmcache.stages import places, predict, slide_tokens
from fmcache.stages.flags import Flags
from fmcache.stages.predict_request import PredictRequest
from fmcache.stages.run_choice import RunQuery

SIDE = 32


def blobs(seed, height, width):
    """Return a picture with blobs of two colours, and their mask."""
    rng = np.random.default_rng(seed)
    coarse = rng.random((height // 8, width // 8)).astype(np.float32)
    mask = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC) > 0.5
    image = np.where(mask[..., None], (200, 90, 120), (120, 90, 200)) + rng.integers(-50, 50, (height, width, 3))
    return image.clip(0, 255).astype(np.uint8), mask.astype(np.uint8)


@pytest.fixture(scope="module")
def fitted(make_study, tmp_path_factory):
    """Two seeds on tiles of 32 px at 0.5 um/px, with tokens rounded to five bits."""
    study = make_study(tmp_path_factory.mktemp("fitted"))
    for seed, name in enumerate("abcd"):
        image, mask = blobs(seed, SIDE, SIDE)
        Image.fromarray(image).save(study.folder / "images" / f"{name}.png")
        Image.fromarray(mask).save(study.folder / "masks" / f"{name}.png")
    study.add(replace=True)
    recipe = Recipe(
        name="toy", encoders=("colour-texture",), tile_px=SIDE, views=ViewSpec(count=2), decoder=DecoderSpec(width=8),
        store="float16-round5",
        fit=FitSpec(seeds=2, epochs=8, batch=2, validate_epochs=4, learning_rate=0.02, standardise="channel"),
    )  # fmt: skip
    study = study._replace(recipe=recipe)
    study.extract()
    study.fit()
    return study


@pytest.fixture
def slide(tmp_path):
    """A picture of 60 x 90 px with blobs; a row of windows is longer than a batch of the encoder."""
    Image.fromarray(blobs(9, 60, 90)[0]).save(tmp_path / "slide.png")
    return tmp_path / "slide.png"


@pytest.fixture
def made(fitted, slide):
    """The function that maps the slide into a new folder below `slide.parent`; the working folder is shared."""

    def make(into, *, seed=0, workers=0, **fields):
        lines = []
        request = PredictRequest(
            slide, RunQuery("toy", "colour-texture", seed=seed), into=slide.parent / into, tissue="off",
            mpp_of_slide=0.5, manifest=fitted.path, cache_tokens=True,
        )  # fmt: skip
        flags = Flags(fitted.work, device="cpu", threads=1, workers=workers)
        folder, failures = predict.predict(request._replace(**fields), flags, lines.append)
        if failures:
            raise failures[0].error
        return files(folder), lines

    yield make
    for path in caches(fitted):
        remove_cache(path)


def files(folder):
    """Return the bytes of all files of a map; the record has the time that it took."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.endswith(".predict.json"))
    found = {str(path.relative_to(folder)): path.read_bytes() for path in paths}
    assert len(found) > 4
    return found


def caches(study):
    return sorted((places.caches(study.work) / "slides").glob("*/*.zarr"))


def without_encoder(monkeypatch):
    def refused(*_, **__):
        raise AssertionError("the encoder was loaded")

    monkeypatch.setattr("fmcache.stages.model_setup.load_same_encoder", refused)


def test_maps_are_byte_for_byte_the_same_without_a_cache_while_it_is_written_and_from_it(fitted, made, monkeypatch):
    both = {"runs": RunQuery("toy", "colour-texture", all_seeds=True)}  # these maps hold probabilities too
    without, _ = made("without", cache_tokens=False, **both)
    assert caches(fitted) == []
    written, lines = made("written", **both)
    assert any("those of 1 are written: at most" in line for line in lines)
    without_encoder(monkeypatch)
    read, lines = made("read", **both)
    assert without == written == read
    assert any("tokens of 1 slides are read from their cache, the encoder is not loaded" in line for line in lines)


def test_another_seed_reads_the_tokens_and_never_loads_the_encoder(fitted, made, monkeypatch):
    expected, _ = made("expected", seed=1, cache_tokens=False)
    first, _ = made("first")
    assert first != expected
    without_encoder(monkeypatch)
    assert made("other", seed=1)[0] == expected
    with pytest.raises(AssertionError, match="was loaded"):
        made("more", seed=1, cache_tokens=False)


def test_what_is_cached_are_the_tokens_of_the_windows(fitted, made):
    made("map", overlap=0.0)
    (path,) = caches(fitted)
    cache = open_cache(path, "slide_tokens")
    assert cache.header.stored == (3, 3)  # 60 x 90 px in tiles of 32 px
    array = np.asarray(zarr.open_group(path, mode="r")["tokens"])
    assert array.dtype == np.float16
    assert np.array_equal(cache.read("row-1", 0, 3), array[1])
    assert len(np.unique(array.reshape(6, -1), axis=0)) == 6


def test_a_cache_that_was_not_finished_is_not_used_but_written_again(fitted, made, monkeypatch):
    expected, _ = made("expected", cache_tokens=False)
    with monkeypatch.context() as patched:
        patched.setattr(slide_tokens._Written, "_add", stopped_after(5))
        with pytest.raises(NoRoom):
            made("stopped")
    (path,) = caches(fitted)
    assert read_header(path).state == "filling"
    with pytest.raises(CacheUnsealed, match="never finished"):
        open_cache(path)
    again, lines = made("again")
    assert any("those of 1 are written" in line for line in lines)
    assert again == expected
    assert read_header(path).state == "sealed"
    assert verify_cache(path, lambda _: None).problems == []


def stopped_after(windows):
    add, seen = slide_tokens._Written._add, []

    def stopping(self, one):
        seen.append(one)
        if len(seen) > windows:
            raise NoRoom("the disk is full")
        add(self, one)

    return stopping


def test_a_damaged_cache_is_reported_marked_and_replaced(fitted, made):
    expected, _ = made("map")
    (path,) = caches(fitted)
    shard = max(
        (one for one in (path / "tokens" / "c").rglob("*") if one.is_file()), key=lambda one: one.stat().st_size
    )
    shard.write_bytes(shard.read_bytes()[:50] + b"\xff" * 20 + shard.read_bytes()[70:])
    verdict = verify_cache(path, lambda _: None)
    assert verdict.problems
    assert "fmcache predict --cache-tokens" in verdict.next_step
    again, lines = made("again")
    assert again == expected
    assert any("those of 1 are written" in line for line in lines)
    assert verify_cache(path, lambda _: None).problems == []


def test_other_windows_have_another_cache(fitted, made):
    made("half")
    _, lines = made("quarter", overlap=0.25)
    assert any("those of 1 are written" in line for line in lines)
    assert len(caches(fitted)) == 2
    made("finer", mpp_of_slide=0.4)
    assert len({read_header(path).fingerprint for path in caches(fitted)}) == len(caches(fitted)) == 3
    assert {entry.header.kind for entry in find_caches(places.caches(fitted.work) / "slides")} == {"slide_tokens"}


def test_a_worker_process_reads_one_slide_and_writes_another(fitted, made, slide):
    Image.fromarray(blobs(10, 60, 90)[0]).save(slide.with_name("other.png"))
    expected, _ = made("without", slides=slide.parent, cache_tokens=False)
    made("first")
    found, lines = made("both", slides=slide.parent, workers=1)
    assert found == expected
    assert any("tokens of 1 slides are read from their cache, those of 1 are written" in line for line in lines)
    assert len(caches(fitted)) == 2


def test_a_bundle_is_refused(fitted, made, tmp_path, monkeypatch):
    monkeypatch.setattr(predict, "checked_facts", lambda _: None)
    with pytest.raises(SpecError, match="--cache-tokens and --bundle"):
        made("map", runs=None, bundle=tmp_path)
