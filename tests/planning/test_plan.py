import re

import msgspec
import numpy as np
import pytest
import torch
import yaml
from rich.console import Console

from fmcache.cache.encoding import COMPACT
from fmcache.commands.gpu_table import time_text
from fmcache.commands.plan_table import shown
from fmcache.decoders.arithmetic import multiply_adds, views_in_fit
from fmcache.decoders.decoder import Decoder
from fmcache.decoders.layers import Shape
from fmcache.demand import demand_of
from fmcache.encoders.cards import Card, read_card
from fmcache.errors import EncoderUnavailable, ManifestError
from fmcache.grid import GridGeometry
from fmcache.manifest import Manifest, Splits
from fmcache.planning import speed
from fmcache.planning.costs import cost_of, encoder_flop, images_through_decoder, total_of
from fmcache.planning.plan import HELPED, against_collapse, cheaper, plan
from fmcache.planning.speed import Speed
from fmcache.runtime.devices import using_threads
from fmcache.scores.missed import WHAT_HELPS
from fmcache.settings import with_setting
from fmcache.specs import DecoderSpec, FitSpec, Recipe, ViewSpec
from fmcache.stages.flags import Flags

MANIFEST = {
    "format": 1,
    "default": "toy",
    "datasets": {
        "toy": {
            "format": "demo", "seed": 1, "size_px": 64,
            "labels": [{"name": n, "colour": c} for n, c in (("a", "#ff0000"), ("b", "#00ff00"))],
            "tiles": [{"id": f"t{i}"} for i in range(8)],  # t6 and t7 are in no split
            "splits": {"train": ["t0", "t1", "t2"], "val": ["t3"], "test": ["t4", "t5"]},
        }
    },
}  # fmt: skip
CARD = Card(name="toy", title="Toy", architecture="any", patch=16, width=10, prefix_tokens=1, depth=3, params=1000,
            mean=(0, 0, 0), std=(1, 1, 1))  # fmt: skip
RECIPE = Recipe(
    encoders=("raw-pixels", "random-vits16"),
    tile_px=64,
    views=ViewSpec(count=4),
    decoder=DecoderSpec(width=6),
    fit=FitSpec(seeds=2, epochs=5, batch=2, validate_epochs=2, passes_per_epoch=3),
)


@pytest.fixture
def manifest(tmp_path):
    (tmp_path / "data_manifest.yaml").write_text(yaml.safe_dump(MANIFEST))
    return Manifest(tmp_path / "data_manifest.yaml")


def cost(recipe, dataset):
    return cost_of(recipe, demand_of(recipe, "d", dataset), CARD)


def text_of(renderable):
    console = Console(width=250, record=True, file=open("/dev/null", "w"))  # noqa: SIM115, PTH123
    console.print(renderable)
    return console.export_text()


def test_costs_are_those_counted_by_hand(manifest):
    counted = cost(RECIPE, manifest.dataset())
    views = 3 * 5 + 1 + 2  # training tiles have view 0 and 4 more; tiles in no split have none
    assert counted.forward_passes == views
    assert counted.raw_bytes == views * (10 * 4 * 4) * 2
    assert counted.disk_bytes == round(views * (10 * 4 * 4) * 4 * 0.447)
    assert counted.fit_bytes == (3 * 4 + 1 + 2) * (10 * 4 * 4 * 2 + 64 * 64)
    assert counted.encoder_flop == views * (2 * 1000 * 17 + 4 * 3 * 17 * 17 * 10)
    # 3 tiles x 3 passes x 5 epochs, forward and backward; val after epochs 2, 4 and 5; test once
    forward = 2 * (10 * 6 * 16 + 9 * 36 * (64 + 256 + 1024 + 4096) + 6 * 2 * 4096)
    assert counted.decoder_flop == 2 * (3 * 45 + 3 * 1 + 2) * forward
    assert counted.logits == 2 * 45 * 2 * 64**2  # seeds, images trained on, labels, pixels
    assert (counted.objects, counted.runs) == (6, 2)  # small grids: all views of a tile are one shard


def test_folds_and_swept_values_share_a_cache_and_add_up_in_training(manifest):
    dataset = manifest.dataset()
    once = cost(RECIPE, dataset)
    swept = cost(msgspec.structs.replace(RECIPE, sweep={"views.count": (1, 2, 8)}), dataset)
    assert swept.forward_passes == 3 * 9 + 3  # those of the largest value, which hold those of the others
    assert swept.decoder_flop == 3 * once.decoder_flop
    assert swept.fit_bytes == (3 * 8 + 3) * (10 * 4 * 4 * 2 + 64**2)  # one value's grids at a time
    passes = cost(msgspec.structs.replace(RECIPE, sweep={"fit.passes_per_epoch": (3, 6)}), dataset)
    assert passes[:4] == once[:4]
    assert once.decoder_flop * 2 < passes.decoder_flop < once.decoder_flop * 3  # validation is not done twice as often

    halves = [
        Splits(train=(a, b), val=(c,), test=(d,)) for a, b, c, d in (("t0", "t1", "t2", "t3"), ("t2", "t3", "t0", "t1"))
    ]
    folded = msgspec.structs.replace(dataset, folds=tuple(halves))
    folds = cost(msgspec.structs.replace(RECIPE, folds=True), folded)
    assert folds.forward_passes == 4 * 5  # each of four tiles is trained on in some fold
    assert folds.fit_bytes == (2 * 4 + 2) * (10 * 4 * 4 * 2 + 64**2)


def test_a_sweep_over_what_changes_caches_adds_up_the_costs_of_its_variants(manifest):
    dataset = manifest.dataset()
    both = cost(msgspec.structs.replace(RECIPE, sweep={"tile_px": (64, 32), "decoder.width": (6, 12)}), dataset)
    each = [
        cost(msgspec.structs.replace(RECIPE, tile_px=px, decoder=DecoderSpec(width=width)), dataset)
        for px in (64, 32)
        for width in (6, 12)
    ]
    assert both.decoder_flop == sum(one.decoder_flop for one in each)
    assert both.disk_bytes == each[0].disk_bytes + each[2].disk_bytes
    assert both.encoder_flop == each[0].encoder_flop + each[2].encoder_flop
    assert both.fit_bytes == max(one.fit_bytes for one in each)


def test_a_sweep_over_subsets_is_planned_with_the_tiles_of_each(manifest):
    dataset = manifest.dataset()
    nested = msgspec.structs.replace(dataset, splits=msgspec.structs.replace(dataset.splits, subsets=(("t0",),)))
    both = cost(msgspec.structs.replace(RECIPE, sweep={"subset": (1, 0)}), nested)
    each = [cost(msgspec.structs.replace(RECIPE, subset=n), nested) for n in (1, 0)]
    assert both.decoder_flop == sum(one.decoder_flop for one in each)
    assert both[:4] == each[1][:4]


def test_the_plan_of_a_sweep_states_how_many_runs_it_is(manifest, tmp_path):
    swept = msgspec.structs.replace(RECIPE, sweep={"fit.epochs": (1, 2, 3), "decoder.width": (4, 8)})
    made = plan(swept, manifest, Flags(tmp_path), measure=False)
    assert "6 variants x 4 runs = 24 runs" in text_of(shown(made, tmp_path))
    assert {"sweep: {fit.epochs: [1, 2]}", "sweep: {decoder.width: [4]}"} <= set(cheaper(swept))
    assert not any(text.startswith("decoder:") for text in cheaper(swept))


def test_a_sweep_is_made_cheaper_by_its_largest_value(manifest):
    swept = msgspec.structs.replace(RECIPE, sweep={"views.count": (1, 2, 50)}, views=ViewSpec(count=50))
    changes = cheaper(swept)
    assert changes["sweep: {views.count: [1, 2]}"].sweep == {"views.count": (1, 2)}
    assert not any(text.startswith("views:") for text in changes)  # the sweep says how many there are


def test_a_linear_probe_costs_its_convolution_and_has_no_width_to_narrow(manifest):
    linear = msgspec.structs.replace(RECIPE, decoder=DecoderSpec(kind="linear"))
    counted, papers = cost(linear, manifest.dataset()), cost(RECIPE, manifest.dataset())
    assert counted._replace(decoder_flop=0) == papers._replace(decoder_flop=0)
    assert counted.decoder_flop == 2 * (3 * 45 + 3 * 1 + 2) * 2 * (10 * 2 * 16)
    assert cheaper(RECIPE)["decoder: {width: 3}"].decoder == DecoderSpec(width=3)
    norm = msgspec.structs.replace(RECIPE, decoder=DecoderSpec(kind="paper-norm", width=6))
    assert "decoder: {kind: paper-norm, width: 3}" in cheaper(norm)
    assert not any(line.startswith("decoder:") for line in cheaper(linear))


def test_a_decoder_that_joins_taps_holds_the_grids_of_all_and_has_one_projection_for_each(manifest):
    two = msgspec.structs.replace(RECIPE, taps=("last", "2"))
    joined = msgspec.structs.replace(two, decoder=DecoderSpec(kind="multi-tap", width=6))
    apart, together = cost(two, manifest.dataset()), cost(joined, manifest.dataset())
    assert together[:3] == apart[:3]
    assert together.logits == apart.logits / 2
    assert together.fit_bytes == (3 * 4 + 1 + 2) * (2 * 10 * 4 * 4 * 2 + 64 * 64)
    forward = 2 * (2 * 10 * 6 * 16 + 9 * 36 * (64 + 256 + 1024 + 4096) + 6 * 2 * 4096)
    assert together.decoder_flop == 2 * (3 * 45 + 3 * 1 + 2) * forward


def test_taps_share_forward_passes_but_each_has_a_cache_and_its_decoders(manifest):
    one, two = (cost(msgspec.structs.replace(RECIPE, taps=taps), manifest.dataset()) for taps in
                (("last",), ("last", "2")))  # fmt: skip
    assert (two.forward_passes, two.encoder_flop, two.fit_bytes) == (
        one.forward_passes,
        one.encoder_flop,
        one.fit_bytes,
    )
    assert two.raw_bytes == 2 * one.raw_bytes
    assert (two.decoder_flop, two.logits) == (2 * one.decoder_flop, 2 * one.logits)


@pytest.mark.parametrize(("tile_px", "patch"), [(64, 16), (70, 14), (64, 14), (32, 8)])
def test_decoder_arithmetic_is_what_torch_counts(tile_px, patch):
    from torch.utils.flop_counter import FlopCounterMode

    grid = GridGeometry(tile_px, patch)
    decoder = Decoder(Shape((10,), 6, 2, grid), form="direct").requires_grad_(False)
    with FlopCounterMode(display=False) as counter:
        decoder(torch.zeros(1, 10, grid.side, grid.side))
    assert 2 * multiply_adds(Shape((10,), 6, 2, grid)) == counter.get_total_flops()


def test_the_papers_decoder_and_sweep_have_the_known_arithmetic():
    shapes = [Shape((1024,), 256, 3, GridGeometry(512, patch)) for patch in (16, 14)]
    assert [multiply_adds(shape) for shape in shapes] == pytest.approx([0.21e12, 0.27e12], rel=0.03)
    assert encoder_flop(read_card("uni"), GridGeometry(512, 16)) == pytest.approx(0.73e12, rel=0.01)
    assert encoder_flop(read_card("raw-pixels"), GridGeometry(512, 16)) == 0


def test_an_unknown_number_of_parameters_is_estimated_from_depth_and_width():
    card = read_card("random-vits16")
    without_params = msgspec.structs.replace(card, params=0)
    assert encoder_flop(without_params, GridGeometry(512, 16)) == pytest.approx(
        encoder_flop(card, GridGeometry(512, 16)), rel=0.03
    )


def test_images_and_views_are_those_training_walks(manifest):
    assert images_through_decoder(RECIPE.fit, manifest.dataset().splits) == (45, 3 * 1 + 2)
    assert views_in_fit(RECIPE, manifest.dataset().splits) == 15


def test_cheaper_recipes_cost_less_where_they_say(manifest):
    dataset = manifest.dataset()
    before = cost(RECIPE, dataset)
    many = msgspec.structs.replace(RECIPE, views=ViewSpec(count=50))
    variants = {change: cost(other, dataset) for change, other in cheaper(many).items()}
    assert list(variants) == ["views: {count: 10}", f"store: {COMPACT}", "decoder: {width: 3}", "fit: {seeds: 1}"]
    full = cost(many, dataset)
    assert variants["views: {count: 10}"].forward_passes == 3 * 11 + 3
    assert variants[f"store: {COMPACT}"].disk_bytes < 0.65 * full.disk_bytes
    assert variants["decoder: {width: 3}"].decoder_flop < 0.3 * full.decoder_flop
    assert variants["fit: {seeds: 1}"].decoder_flop * 2 == full.decoder_flop
    assert cheaper(msgspec.structs.replace(RECIPE, store=COMPACT)).keys().isdisjoint({f"store: {COMPACT}"})
    assert total_of([before, full]).fit_bytes == max(before.fit_bytes, full.fit_bytes)
    assert total_of([before, full]).forward_passes == before.forward_passes + full.forward_passes


def test_a_plan_needs_no_weights_and_shows_every_encoder_the_sums_and_cheaper_recipes(manifest, tmp_path):
    named = msgspec.structs.replace(RECIPE, encoders=("raw-pixels", "virchow2"))
    made = plan(named, manifest, Flags(tmp_path / "not yet there"), measure=False)
    text = text_of(shown(made, tmp_path / "not yet there"))
    for word in ("raw-pixels", "virchow2", "total", "1280x5x5", "store: float16-round5", "free on disk"):
        assert word in text
    assert made.speed is None
    everyone = plan(msgspec.structs.replace(RECIPE, encoders=()), manifest, Flags(tmp_path), measure=False)
    assert len(everyone.items) == 15


def test_measured_speed_turns_arithmetic_into_time_and_touches_no_global_generator(manifest, tmp_path, monkeypatch):
    monkeypatch.setattr("fmcache.planning.speed.SECONDS", 0.01)
    monkeypatch.setitem(__import__("fmcache.planning.speed", fromlist=["x"]).FLOP_PER_TRY, "cpu", 1)
    threads, before = torch.get_num_threads(), torch.random.get_rng_state()
    made = plan(RECIPE, manifest, Flags(tmp_path, device="cpu", threads=1))
    torch.set_num_threads(threads)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert set(made.speed.encoder) == {"float32"}
    assert np.isfinite([made.speed.encoder["float32"], made.speed.decoder]).all()
    assert 1e6 < made.speed.decoder < 1e14
    assert 1e-13 < made.speed.logit_s < 1e-4
    loss_s, decoder_s = (made.items[0].cost.logits * made.speed.logit_s, made.speed.decoder_s(made.items[0].cost))
    assert decoder_s == pytest.approx(loss_s + made.items[0].cost.decoder_flop / made.speed.decoder)
    assert "GFLOP/s" in text_of(shown(made, tmp_path))


def test_what_helped_against_collapse_is_what_the_messages_of_fit_and_report_name():
    changes = against_collapse(RECIPE)
    assert changes == {
        "fit: {learning_rate: 0.001}": with_setting(RECIPE, [("fit.learning_rate", 1e-3)]),
        "fit: {passes_per_epoch: 5}": with_setting(RECIPE, [("fit.passes_per_epoch", 5)]),
        "fit: {standardise: channel}": with_setting(RECIPE, [("fit.standardise", "channel")]),
        "decoder: {kind: linear}": with_setting(RECIPE, [("decoder.kind", "linear")]),
    }
    named = {"fit.learning_rate": "learning_rate 1e-3", "fit.passes_per_epoch": "more passes_per_epoch"}
    named |= {"fit.standardise": "standardise: channel", "decoder.kind": "another decoder"}
    assert {field for field, _ in HELPED} == set(named)
    assert len(WHAT_HELPS.split(", ")) == len(named)
    assert all(words in WHAT_HELPS for words in named.values())


def test_a_change_that_a_recipe_has_or_sweeps_is_not_proposed():
    screen = with_setting(RECIPE, [("fit.learning_rate", 1e-2), ("decoder.kind", "linear")])
    assert list(against_collapse(screen)) == ["fit: {passes_per_epoch: 5}", "fit: {standardise: channel}"]
    swept = msgspec.structs.replace(RECIPE, sweep={"fit.passes_per_epoch": (1, 2), "decoder.kind": ("paper", "linear")})
    assert list(against_collapse(swept)) == ["fit: {learning_rate: 0.001}", "fit: {standardise: channel}"]


def test_the_plan_shows_what_each_change_against_collapse_costs(manifest, tmp_path):
    named = msgspec.structs.replace(RECIPE, encoders=("raw-pixels", "virchow2"))
    text = text_of(shown(plan(named, manifest, Flags(tmp_path), measure=False), tmp_path))
    _, below = text.split("if labels are never predicted")
    ratios = dict(re.findall(r"^ *(\S+: {.*?}) +\S+ {2,}(\S.*?) *$", below, re.M))
    # passes 3 -> 5: 3 x (3 tiles x 5 epochs x passes) forward and backward, 3 validations of 1 tile, a test of 2
    passes = (3 * 3 * 5 * 5 + 3 + 2) / (3 * 3 * 5 * 3 + 3 + 2)
    assert ratios == {
        "fit: {learning_rate: 0.001}": "the same",
        "fit: {passes_per_epoch: 5}": f"{passes:.2g} x",
        "fit: {standardise: channel}": "the same",
        "decoder: {kind: linear}": ratios["decoder: {kind: linear}"],
    }
    assert ratios["decoder: {kind: linear}"].startswith(("0.0", "below"))
    assert "leave out the loss" in text


def test_a_change_of_the_decoder_is_timed_with_its_own_speed(manifest, tmp_path, monkeypatch):
    speeds = {"paper": Speed("here", {"float32": 1e9}, 1e6, 0.0), "linear": Speed("here", {}, 1e3, 0.0)}
    monkeypatch.setattr("fmcache.planning.speed.measure_speed", lambda recipe, *_: speeds[recipe.decoder.kind])
    made = plan(RECIPE, manifest, Flags(tmp_path, device="cpu"))
    changes = made.against_collapse
    assert changes["decoder: {kind: linear}"].speed == speeds["linear"]._replace(encoder={"float32": 1e9})
    assert made.speed == speeds["paper"]
    assert all(changes[line].speed == speeds["paper"] for line in changes if "linear" not in line)
    before, after = (
        sum(
            cost_of(recipe, demand_of(recipe, "toy", manifest.dataset()), item.card).decoder_flop for item in made.items
        )
        for recipe in (RECIPE, changes["decoder: {kind: linear}"].recipe)
    )
    assert f"{(after / 1e3) / (before / 1e6):.2g} x" in text_of(shown(made, tmp_path))


@pytest.mark.parametrize(("width", "threads_of_a_step", "concurrent"), [(6, 1, 2), (100_000, 4, 1)])
def test_a_decoder_is_timed_on_the_threads_that_fit_gives_a_seed(monkeypatch, width, threads_of_a_step, concurrent):
    used = []

    def timed(act, device):
        used.append(torch.get_num_threads())
        return 0.5

    monkeypatch.setattr(speed, "_seconds", timed)
    monkeypatch.setattr(speed, "Decoder", lambda *_: torch.nn.Linear(1, 1))
    monkeypatch.setattr(speed, "initialise", lambda *_: None)
    recipe = with_setting(RECIPE, [("decoder.width", width), ("fit.seeds", 2), ("tile_px", 32)])
    with using_threads(4):
        flop_per_s, logit_s = speed._decoder_speed(recipe, CARD, 2, torch.device("cpu"))
        assert torch.get_num_threads() == 4
    assert used == [threads_of_a_step] * 2
    shape = Shape((10,), width, 2, GridGeometry(32, 16))
    batch = max(1, min(2, speed.FLOP_PER_TRY["cpu"] // (6 * multiply_adds(shape))))
    assert flop_per_s == concurrent * batch * 6 * multiply_adds(shape) / 0.5
    assert logit_s == 0.5 / (batch * 2 * 32**2) / concurrent


def test_what_is_not_there_is_named(manifest, tmp_path):
    with pytest.raises(EncoderUnavailable, match="nobody"):
        plan(msgspec.structs.replace(RECIPE, encoders=("nobody",)), manifest, Flags(tmp_path), measure=False)
    with pytest.raises(ManifestError, match="elsewhere"):
        plan(msgspec.structs.replace(RECIPE, datasets=("elsewhere",)), manifest, Flags(tmp_path), measure=False)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.2, "0 s"), (119, "119 s"), (120, "2 min"), (7200, "2 h"), (2e5, "2 days")]
)
def test_times_are_printed_roughly(seconds, text):
    assert time_text(seconds) == text
