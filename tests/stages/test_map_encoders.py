"""A study of an encoder that gives a map, through all stages, in small and with random weights."""

import numpy as np
import pytest
import torch
import yaml
from typer.testing import CliRunner

from fmcache.cache.reader import open_cache
from fmcache.cli import app
from fmcache.demand import demand_of
from fmcache.encoders.load import load_encoder
from fmcache.encoders.tokens import tapped_grids
from fmcache.errors import SpecError
from fmcache.grid import GridGeometry
from fmcache.planning.costs import cost_of
from fmcache.planning.plan import plan
from fmcache.specs import DecoderSpec, EncoderChoice, FitSpec, Recipe, ViewSpec
from fmcache.stages import filling, places
from fmcache.stages.extract import extract
from fmcache.stages.flags import Flags
from fmcache.tiles.images import read_tile, resize_tile
from fmcache.tiles.views import render_view

RESNET = EncoderChoice("timm:resnet10t", random_weights=True)
SHAPES = {"last": (512, 2, 2), "4": (256, 4, 4), "3": (128, 8, 8)}
RECIPE = Recipe(
    name="toy", encoders=(RESNET,), tile_px=64, views=ViewSpec(count=2), taps=tuple(SHAPES), store="float32",
    decoder=DecoderSpec(width=4), fit=FitSpec(seeds=2, epochs=2, batch=2, validate_epochs=1),
)  # fmt: skip


@pytest.fixture
def manifest(tmp_path, drawn):
    return drawn(tmp_path, 2, 1, 1)


@pytest.fixture(autouse=True)
def threads_as_they_were():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def quiet(_):
    pass


def test_an_extraction_that_was_stopped_ends_with_the_tokens_of_the_encoder_itself(tmp_path, manifest, monkeypatch):
    flags = Flags(tmp_path / "work", device="cpu", threads=1)
    write = filling.write_token_shards

    def stopped(encoding, tasks, tick):
        write(encoding, tasks[:2], tick)
        raise KeyboardInterrupt

    monkeypatch.setattr(filling, "write_token_shards", stopped)
    with pytest.raises(KeyboardInterrupt):
        extract(RECIPE, manifest, flags, quiet)
    monkeypatch.undo()
    said = []
    assert extract(RECIPE, manifest, flags, said.append) == []
    assert any("2 of 8 views of 512x2x2 + 256x4x4 + 128x8x8" in line for line in said)
    encoder, dataset = load_encoder(RESNET, torch.device("cpu")), manifest.dataset()
    for i, (tap, shape) in enumerate(SHAPES.items()):
        path = places.tokens_path(flags.work, "toy", "timm-resnet10t-random", RECIPE, tap)
        cache = open_cache(path, "tokens", {})
        about = cache.header.about["encoder"]
        assert (about["width"], about["patch"]) == (shape[0], 64 // shape[1])
        for entry in dataset.tiles:
            image = resize_tile(read_tile(dataset, entry, manifest.folder), 64).image
            views = range(3 if entry.id in dataset.splits.train else 1)
            rendered = np.stack([render_view(RECIPE.views, "toy", entry.id, view, image) for view in views])
            direct = tapped_grids(encoder, rendered, GridGeometry(64, 32), "float32", tuple(SHAPES))[i]
            assert np.allclose(cache.read(entry.id, 0, len(views)), direct.numpy(), atol=1e-5)


def test_a_whole_study_of_a_map_names_its_random_weights_and_its_stages(tmp_path, manifest):
    recipe = {
        "name": "toy", "tile_px": 64, "views": {"count": 2}, "taps": ["last", "3"], "decoder": {"width": 4},
        "encoders": [{"name": "timm:resnet10t", "random_weights": True}],
        "fit": {"seeds": 1, "epochs": 2, "batch": 2, "validate_epochs": 1},
    }  # fmt: skip
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(recipe))
    command = ["run", str(tmp_path / "r.yaml"), "--manifest", str(manifest.folder / "data_manifest.yaml")]
    ran = CliRunner().invoke(app, [*command, "--work", str(tmp_path / "work"), "--device", "cpu", "--threads", "1"])
    assert ran.exit_code == 0, ran.output
    (table,) = (tmp_path / "work" / "report").rglob("table.csv")
    assert "resnet10t (random weights)" in table.read_text()
    assert '"resnet10t, stage 3 (random weights)"' in table.read_text()


def test_a_stage_that_is_not_there_is_refused_before_anything_is_written(tmp_path, manifest):
    recipe = Recipe(encoders=(RESNET,), tile_px=64, views=ViewSpec(count=2), taps=("7",))
    (failure,) = extract(recipe, manifest, Flags(tmp_path / "work", device="cpu", threads=1), quiet)
    assert "no stage 7 to tap" in str(failure.error)
    assert not list((tmp_path / "work").iterdir())


def test_a_plan_counts_stages_by_their_own_shapes(tmp_path, manifest):
    (item,) = plan(RECIPE, manifest, Flags(tmp_path), measure=False).items
    values = sum(channels * rows * cols for channels, rows, cols in SHAPES.values())
    assert item.cost.raw_bytes == item.cost.forward_passes * values * 4
    assert 0 < item.cost.encoder_flop < 1e12
    with pytest.raises(SpecError, match="has no block or stage 7"):
        seventh = Recipe(taps=("7",), tile_px=64)
        cost_of(seventh, demand_of(seventh, "toy", manifest.dataset()), item.card)
