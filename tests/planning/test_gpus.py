"""The arithmetic of a plan on GPUs, by hand; nothing is measured."""

import pytest
import yaml

from fmcache.cli import app
from fmcache.errors import SpecError
from fmcache.planning import gpus
from fmcache.planning.costs import Cost
from fmcache.planning.gpus import GPUS, Fleet, Gpu, fleet_of
from fmcache.stages import shards

PLAIN = Gpu("plain", half=200.0, tf32=100.0, single=50.0, memory_bytes=1e9, bandwidth=480.0, source="nowhere")
COST = Cost(
    forward_passes=1, raw_bytes=1, disk_bytes=1, fit_bytes=1, encoder_flop=8000, decoder_flop=4000, logits=100,
    objects=5, runs=5,
)  # fmt: skip


@pytest.fixture(autouse=True)
def assumptions(monkeypatch):
    """Round numbers: half of the peaks."""
    monkeypatch.setattr(gpus, "SHARE_ENCODER", 0.5)
    monkeypatch.setattr(gpus, "SHARE_DECODER", 0.5)
    monkeypatch.setattr(gpus, "LOGIT_BYTES", 240)


def test_encoders_use_the_peak_of_their_precision_and_share_out_views_evenly():
    assert Fleet(PLAIN, 4).encoder_s(COST, "float16") == 8000 / (200 / 2) / 4
    assert Fleet(PLAIN, 4).encoder_s(COST, "float32") == 8000 / (50 / 2) / 4


def test_a_run_is_on_one_gpu_so_that_more_gpus_than_runs_change_nothing():
    run_s = (4000 / (100 / 2) + 100 * 240 / 480) / 5
    assert Fleet(PLAIN, 1).one_run_s(COST) == run_s == 26
    assert [Fleet(PLAIN, n).fit_s([COST]) for n in (1, 2, 4, 5, 64)] == [5 * 26, 3 * 26, 2 * 26, 26, 26]
    # five runs of 26 s: 78 and 52 s; five of 13 s: 26 + 26 s beside the 52 s, 13 + 13 s beside the 78 s, and one more
    short = COST._replace(decoder_flop=2000, logits=50)
    assert Fleet(PLAIN, 2).fit_s([short, COST]) == 26 * 3 + 13 * 2
    assert Fleet(PLAIN, 2).fit_s([]) == 0


@pytest.mark.parametrize(
    ("objects", "number", "tasks"), [(5, 8, 5), (128, 2, 16), (10**6, 8, 15625), (0, 8, 0), (130, 2, 17)]
)
def test_tasks_are_the_bundles_that_extract_makes(objects, number, tasks):
    assert Fleet(PLAIN, number).tasks(COST._replace(objects=objects)) == tasks
    assert len(shards.bundles([shards.ShardTask("x", (), None)] * min(objects, 200), number)) == tasks or objects > 200
    assert (gpus.BUNDLES_EACH, gpus.MOST_SHARDS) == (shards.BUNDLES_EACH, shards.MOST_SHARDS)


def test_published_peaks_are_plausible_and_an_unknown_gpu_is_refused():
    for gpu in GPUS.values():
        assert gpu.half > gpu.tf32 > 0
        assert 1.5 < gpu.half / gpu.tf32 < 2.5
        assert gpu.source.startswith("nvidia.com/")
    with pytest.raises(SpecError, match="abacus") as error:
        fleet_of("abacus", 2)
    assert "h100" in error.value.expected


def test_the_command_prints_the_plan_of_a_recipe_on_gpus_and_says_that_it_is_assumed(tmp_path):
    from typer.testing import CliRunner

    labels = [{"name": n, "colour": c} for n, c in (("a", "#ff0000"), ("b", "#00ff00"))]
    toy = {"format": "demo", "seed": 1, "size_px": 64, "labels": labels, "tiles": [{"id": f"t{i}"} for i in range(4)]}
    toy["splits"] = {"train": ["t0", "t1"], "val": ["t2"], "test": ["t3"]}
    (tmp_path / "m.yaml").write_text(yaml.safe_dump({"format": 1, "default": "toy", "datasets": {"toy": toy}}))
    (tmp_path / "r.yaml").write_text("name: r\nencoders: [uni, phikon]\ntile_px: 224\nfit: {seeds: 3}\n")
    command = ["plan", str(tmp_path / "r.yaml"), "--manifest", str(tmp_path / "m.yaml"), "--gpus", "8", "--gpu", "a100"]
    said = " ".join(CliRunner().invoke(app, command, env={"COLUMNS": "250"}).output.split())
    assert "on 8 x NVIDIA A100 80 GB SXM, by assumption (nothing was measured)" in said
    assert "ASSUMED, not measured: encoders reach" in said
    assert "of the published peak (312 TFLOP/s in 16 bit, 20 in float32)" in said
    assert "uni float16 0 s" in said  # the precision that its card states for a GPU
    assert "phikon float32" in said
    assert "measured for a few seconds" not in said
