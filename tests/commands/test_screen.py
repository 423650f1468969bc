"""fmcache screen: the recipe, and from cached grids to the command that fits the encoders that may be best."""

import contextlib
import re
import shlex
import shutil
from pathlib import Path

import msgspec
import polars as pl
import pytest
import torch
import yaml
from typer.testing import CliRunner

from fmcache.cli import app
from fmcache.commands import screen
from fmcache.scores.records import EncoderInfo
from fmcache.scores.run_files import find_runs, read_record
from fmcache.specs import FitSpec, ViewSpec, read_recipe
from fmcache.stages.flags import Flags

RECIPE = Path(__file__).parents[2] / "pipelines" / "screen.yaml"
CARD = {"kind": "pixels", "patch": 16, "width": 768, "mean": [0.5, 0.5, 0.5], "std": [0.2, 0.2, 0.2]}
SEES = CARD | {"name": "sees", "title": "Seeing [bold]"}
LIKE = CARD | {"name": "like", "title": "Like the first", "std": [0.21, 0.2, 0.2]}
BLIND = CARD | {"name": "blind", "title": "Blind", "std": [1e6, 1e6, 1e6]}  # all its tokens are nearly 0


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def invoke(*arguments, code=0):
    done = CliRunner().invoke(app, [*map(str, arguments)])
    assert done.exit_code == code, (done.output, done.exception)
    return done.output


@pytest.fixture(scope="module")
def extracted(tmp_path_factory):
    """A folder with a manifest of two datasets, and small caches of four encoders on both."""
    folder = tmp_path_factory.mktemp("screened")
    labels = [{"name": n, "colour": c} for n, c in (("a", "#ff0000"), ("b", "#00ff00"), ("c", "#0000ff"))]
    datasets = {}
    for name, (train, val, test) in {"toy": (4, 1, 7), "other": (2, 1, 2)}.items():
        ids = [f"t{i}" for i in range(train + val + test)]
        splits = {"train": ids[:train], "val": ids[train : train + val], "test": ids[train + val :]}
        tiles = [{"id": one} for one in ids]
        datasets[name] = {
            "format": "demo",
            "seed": 1,
            "size_px": 64,
            "labels": labels,
            "tiles": tiles,
            "splits": splits,
        }
    manifest = {"format": 1, "default": "toy", "datasets": datasets}
    (folder / "data_manifest.yaml").write_text(yaml.safe_dump(manifest))
    chosen = ["--encoder", "raw-pixels"]
    for card in (SEES, LIKE, BLIND):
        (folder / f"{card['name']}.yaml").write_text(yaml.safe_dump(card))
        chosen += ["--encoder", f"{card['name']}.yaml"]
    paper = {"tile_px": 64, "views": {"count": 2}, "decoder": {"width": 2}, "fit": {"epochs": 1}}
    (folder / "small.yaml").write_text(yaml.safe_dump(paper))
    with contextlib.chdir(folder):
        both = ("--dataset", "toy", "--dataset", "other")
        invoke("extract", *chosen, *both, "--recipe", "small.yaml", "--device", "cpu", "--threads", 1)
    return folder


@pytest.fixture
def study(tmp_path, extracted, monkeypatch):
    """The folder of a test, with the caches; in it, `screen` is small."""
    small = msgspec.structs.replace(
        screen.screening(), tile_px=64, views=ViewSpec(count=2),
        fit=FitSpec(seeds=3, epochs=20, batch=4, learning_rate=1e-2),
    )  # fmt: skip
    monkeypatch.setattr(screen, "screening", lambda: small)
    monkeypatch.setattr("fmcache.stages.report.figures", lambda _: {})  # they take most of the time
    folder = tmp_path / "study"
    shutil.copytree(extracted, folder)
    monkeypatch.chdir(folder)
    monkeypatch.delenv("COLUMNS", raising=False)
    return folder


def records_of(folder, study):
    return [read_record(run) for run in find_runs(folder / "work" / "results", study)]


def next_commands(output):
    return re.findall(r"next, .*: (fmcache fit .*)", output)


def test_the_command_runs_the_recipe_of_the_repository():
    assert screen.screening() == read_recipe(RECIPE)


def test_all_cached_encoders_are_screened_and_those_that_may_be_best_are_in_the_next_command(study):
    output = invoke("screen", "--device", "cpu", "--threads", 1)
    records = records_of(study, "screen")
    assert {(one.encoder.name, one.seed) for one in records} == {
        (name, seed) for name in ("sees", "like", "blind", "raw-pixels") for seed in range(3)
    }
    assert {one.identity["decoder"]["kind"] for one in records} == {"linear"}
    table = pl.read_parquet(study / "work" / "report" / "screen" / "toy" / "intervals.parquet")
    own = table.filter(pl.col("score") == "dice_pooled", pl.col("label") == "mean", pl.col("may_be_best"))
    leaders = own.sort("estimate", descending=True)["encoder"].to_list()
    assert sorted(leaders) == ["like", "sees"]  # the screening rules out the blind one
    (line,) = re.findall("toy: 2 encoders may still be best.*", output)
    assert "Seeing [bold]" in line
    assert "Blind" not in line
    (command,) = next_commands(output)
    flags = " --device cpu --threads 1"
    assert command == f"fmcache fit --encoder {leaders[0]} --encoder {leaders[1]}{flags}"
    assert "report: work/report/screen/report.md" in output
    # the command is valid: with the small recipe, it fits these two alone with the paper's decoder
    invoke(*shlex.split(command)[1:], "--recipe", "small.yaml", "--seeds", 1)
    paper = records_of(study, "paper")
    assert sorted(one.encoder.name for one in paper) == ["like", "sees"]
    assert {one.identity["decoder"].get("kind", "paper") for one in paper} == {"paper"}


def test_flags_choose_encoders_seeds_and_datasets(study):
    chosen = ("--encoder", "sees", "--encoder", "like", "--dataset", "other", "--seeds", 2, "--device", "cpu")
    output = invoke("screen", *chosen)
    assert {(one.dataset, one.encoder.name, one.seed) for one in records_of(study, "screen")} == {
        ("other", name, seed) for name in ("sees", "like") for seed in range(2)
    }
    (command,) = next_commands(output)
    assert command.endswith("--dataset other --device cpu")


def test_without_caches_the_next_step_is_to_extract(study):
    shutil.rmtree(study / "work")
    done = CliRunner().invoke(app, ["screen", "--device", "cpu"])
    assert done.exit_code == 1
    assert "fmcache extract" in str(done.exception)


def test_an_encoder_that_cannot_be_fitted_is_named_even_if_none_can(study):
    output = invoke("screen", "--encoder", "nobody", "--device", "cpu", code=1)
    assert "error: toy · nobody: " in output


def infos(*names):
    return tuple(EncoderInfo(name, name.upper(), 1, 8, 16, False, False, "") for name in names)


def test_datasets_with_the_same_leaders_share_a_command_and_others_have_their_own():
    leaders = {"x": infos("b", "a"), "y": infos("c"), "z": infos("b", "a"), "none": ()}
    flags = Flags(Path("my work"), workers=2)
    lines = list(screen.remaining(leaders, ("x", "y", "z"), Path("m.yaml"), flags))
    assert lines[:4] == [
        "x: 2 encoders may still be best, judged by a linear probe: B, A",
        "y: 1 encoder may still be best, judged by a linear probe: C",
        "z: 2 encoders may still be best, judged by a linear probe: B, A",
        "none: fewer than two encoders are ranked (controls and random weights never are), so the screening rules none "
        "out",
    ]
    rest = "--manifest m.yaml --work 'my work' --workers 2"
    assert next_commands("\n".join(lines)) == [
        f"fmcache fit --encoder b --encoder a --dataset x --dataset z {rest}",
        f"fmcache fit --encoder c --dataset y {rest}",
    ]
