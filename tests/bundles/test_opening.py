"""A bundle predicts what the study predicts, in a process without fmcache too; damage is found before anything runs."""

import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch

from fmcache.bundles import tracing
from fmcache.bundles.contents import write_checksums
from fmcache.bundles.opening import open_bundle
from fmcache.decoders.fitted import load_decoder
from fmcache.encoders.load import load_encoder
from fmcache.encoders.tokens import token_grids
from fmcache.errors import BundleCorrupt, BundleNotFound, SpecError, WeightsMismatch
from fmcache.grid import GridGeometry
from fmcache.manifest import Manifest
from fmcache.scores.predictions import read_predictions
from fmcache.scores.run_files import WEIGHTS, read_record
from fmcache.specs import EncoderChoice
from fmcache.tiles.images import read_tile, resize_tile

CPU = torch.device("cpu")
ROUNDING = 2e-5
TILE_PX = 40  # of the study in conftest.py


def some_tiles(count, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, TILE_PX, TILE_PX, 3), dtype=np.uint8)


def probabilities_of_the_study(fitted, tiles, encoder="tiny"):
    """The slow reference: the stages' own encoder, rounding and decoder, in its fast form."""
    folder = fitted.run_folder(encoder)
    record = read_record(folder)
    choice = EncoderChoice(str(fitted.card)) if encoder == "tiny" else EncoderChoice(encoder)
    loaded = load_encoder(choice, CPU)
    grid = GridGeometry(TILE_PX, record.encoder.patch, record.recipe["grid"])
    tokens = token_grids(loaded, tiles, grid).half().float()
    with torch.no_grad():
        return load_decoder(folder / WEIGHTS, record)(tokens).softmax(1).numpy()


@pytest.mark.parametrize("encoder", ["tiny", "raw-pixels"])
def test_a_bundle_returns_the_probabilities_of_the_studys_encoder_and_decoder(fitted, tmp_path, encoder):
    model = open_bundle(fitted.export(tmp_path / "out", encoder))
    tiles = some_tiles(3)
    found = model(tiles)
    assert (found.dtype, found.shape) == (np.float32, (1, 3, 3, TILE_PX, TILE_PX))
    np.testing.assert_allclose(found[0], probabilities_of_the_study(fitted, tiles, encoder), atol=ROUNDING)


def test_a_bundle_predicts_the_labels_that_the_run_stored_for_its_test_tiles(fitted, opened):
    dataset = Manifest(fitted.folder / "data_manifest.yaml").dataset("drawn")
    stored = read_predictions(fitted.run_folder())
    entries = {tile.id: tile for tile in dataset.tiles}
    images = [resize_tile(read_tile(dataset, entries[tile], fitted.folder), TILE_PX).image for tile in stored.tiles]
    differing = (opened(np.stack(images))[0].argmax(axis=1) != stored.predicted).mean()
    assert len(stored.tiles) == 3
    assert differing < 1e-3  # pixels between two labels, by rounding


def test_a_bundle_states_labels_sizes_and_um_per_pixel(opened):
    assert [(label.name, label.colour) for label in opened.labels] == [
        ("tumour | *bed*", "#d55e00"), ("строма", "#009e73"), ("other", "#0072b2")
    ]  # fmt: skip
    assert (opened.tile_px, opened.covered_px) == (TILE_PX, TILE_PX)
    assert opened.mpp == pytest.approx(0.25 * 96 / 40)  # of an image of 96 px, drawn at 0.25 um/px


WITHOUT_FMCACHE = """
import sys, warnings
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("fmcache", "timm"):
            raise ImportError(name)
sys.meta_path.insert(0, Blocked())
import numpy as np, torch
warnings.simplefilter("ignore")
torch.set_num_threads(1)
model = torch.jit.load(sys.argv[1] + "/torchscript_model.pt").eval()
tiles = torch.from_numpy(np.load(sys.argv[2]))
with torch.no_grad():
    np.save(sys.argv[3], np.stack([model(tiles).numpy() for _ in range(4)]))
    one = np.load(sys.argv[1] + "/test_input.npy")
    print(np.abs(model(torch.from_numpy(one)).numpy() - np.load(sys.argv[1] + "/test_output.npy")).max())
"""


def test_the_model_runs_in_a_fresh_process_without_fmcache_and_timm(fitted, bundle, tmp_path):
    tiles = some_tiles(2)
    pixels = np.ascontiguousarray((tiles / np.float32(255)).transpose(0, 3, 1, 2))
    np.save(tmp_path / "in.npy", pixels)
    arguments = [bundle, tmp_path / "in.npy", tmp_path / "out.npy"]
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_FMCACHE, *map(str, arguments)], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) <= ROUNDING
    found = np.load(tmp_path / "out.npy")
    assert (found == found[0]).all()  # torch optimises a TorchScript module in its first calls
    np.testing.assert_allclose(found[0], probabilities_of_the_study(fitted, tiles), atol=ROUNDING)


def test_probabilities_do_not_depend_on_the_other_tiles_of_a_batch(opened):
    tiles = some_tiles(3)
    np.testing.assert_allclose(opened(tiles[1:2])[0, 0], opened(tiles)[0, 1], atol=ROUNDING)
    np.testing.assert_allclose(opened(tiles).sum(axis=2), 1, atol=1e-5)


@pytest.mark.parametrize("shape", [(1, TILE_PX, TILE_PX + 1, 3), (1, TILE_PX, TILE_PX), (1, 3, TILE_PX, TILE_PX)])
def test_tiles_of_another_size_are_refused(opened, shape):
    with pytest.raises(SpecError, match="not a valid input") as error:
        opened(np.zeros(shape, np.uint8))
    assert str(TILE_PX) in error.value.expected
    with pytest.raises(SpecError, match="not a valid input"):
        opened(np.zeros((1, TILE_PX, TILE_PX, 3), np.float32))


def test_a_changed_or_missing_file_is_named_before_the_model_is_loaded(bundle, tmp_path, monkeypatch):
    monkeypatch.setattr(tracing, "load", lambda *_: pytest.fail("loaded a program that was not checked"))
    for name in ("torchscript_model.pt", "bundle.json", "decoder.safetensors"):
        copy = shutil.copytree(bundle, tmp_path / name)
        content = (copy / name).read_bytes()
        (copy / name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        with pytest.raises(BundleCorrupt, match=f"{name} was changed"):
            open_bundle(copy)
        (copy / name).unlink()
        with pytest.raises(BundleCorrupt, match=f"{name} cannot be read"):
            open_bundle(copy)
        write_checksums(copy)  # a list that agrees with what is there does not help
        with pytest.raises(BundleCorrupt, match=name):
            open_bundle(copy)


def test_a_folder_without_checksums_is_no_bundle(tmp_path):
    for path in (tmp_path, tmp_path / "absent"):
        with pytest.raises(BundleNotFound, match="is not a bundle"):
            open_bundle(path)


def test_a_bundle_without_encoder_weights_opens_with_the_encoder(fitted, tmp_path):
    folder = fitted.export(tmp_path / "out", "raw-pixels", decoder_only=True)
    assert not (folder / "torchscript_model.pt").exists()
    tiles = some_tiles(2)
    found = open_bundle(folder)(tiles)[0]
    np.testing.assert_allclose(found, probabilities_of_the_study(fitted, tiles, "raw-pixels"), atol=ROUNDING)


def test_a_bundle_without_encoder_weights_refuses_another_encoder(fitted, tmp_path):
    fitted.export(tmp_path / "own", decoder_only=True)
    with pytest.raises(SpecError, match="has no card of its encoder"):  # a card file of the user's own does not travel
        open_bundle(tmp_path / "own")
    folder = fitted.export(tmp_path / "raw", "raw-pixels", decoder_only=True)
    text = (folder / "bundle.json").read_text()
    (folder / "bundle.json").write_text(text.replace('"card": "raw-pixels"', '"card": "colour-texture"'))
    write_checksums(folder)
    with pytest.raises(WeightsMismatch, match=r"encoder\.kind"):
        open_bundle(folder)
