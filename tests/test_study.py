"""fmcache from Python: the README's code runs, tables have the documented columns, and no global setting changes."""

import importlib
import io
import re
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import cv2
import numpy as np
import polars as pl
import pytest
import torch
import yaml
from torch.utils.data import DataLoader

import fmcache
from fmcache.scores.counts import count
from fmcache.scores.dice import dice

ROOT = Path(__file__).parents[1]
RECIPE = {
    "name": "toy", "encoders": ["raw-pixels", "colour-texture"], "tile_px": 64, "views": {"count": 2},
    "decoder": {"width": 4},
    "fit": {"seeds": 2, "epochs": 2, "batch": 2, "validate_epochs": 1, "learning_rate": 0.01, "standardise": "channel"},
}  # fmt: skip
KEYS = ["dataset", "encoder", "fold", "seed"]


def manifest_of(folder):
    labels = [{"name": n, "colour": c} for n, c in (("a", "#ff0000"), ("b", "#00ff00"), ("c", "#0000ff"))]
    demo = {
        "format": "demo", "seed": 1, "size_px": 64, "labels": labels, "tiles": [{"id": f"t{i}"} for i in range(4)],
        "splits": {"train": ["t0", "t1"], "val": ["t2"], "test": ["t3"]},
    }  # fmt: skip
    path = folder / "data_manifest.yaml"
    path.write_text(yaml.safe_dump({"format": 1, "default": "toy", "datasets": {"toy": demo}}))
    return path


def study_in(folder, recipe=RECIPE, **options):
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return fmcache.Study(folder / "recipe.yaml", folder / "work", manifest_of(folder), device="cpu", **options)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    made = study_in(tmp_path_factory.mktemp("study"))
    made.extract()
    made.fit()
    return made


def test_results_hold_every_run_tile_and_label_and_dice_is_derived_from_them(study):
    results = study.results()
    assert results.columns == [*KEYS, "split", "tile", "label", "tp", "fp", "fn"]
    assert results.height == 2 * 2 * 2 * 3  # encoders, seeds, tiles of val and test, labels
    assert results["fold"].is_null().all()
    table = study.dice()
    assert table.columns == [*KEYS, "label", "dice"]
    assert table.height == 2 * 2 * 3
    for row in table.iter_rows(named=True):
        mine = results.filter(
            (pl.col("encoder") == row["encoder"]) & (pl.col("seed") == row["seed"])
            & (pl.col("label") == row["label"]) & (pl.col("split") == "test")
        )  # fmt: skip
        expected = float(dice(mine.select("tp", "fp", "fn").to_numpy().sum(axis=0)))
        assert row["dice"] is None if np.isnan(expected) else row["dice"] == pytest.approx(expected)


def test_a_loaded_decoder_reproduces_the_counts_of_its_run(study):
    data = study.grids("toy", "raw-pixels", "test")
    assert len(data) == 1
    decoder = study.decoder("toy", "raw-pixels", seed=1)
    assert not decoder.training
    assert decoder.labels == ("a", "b", "c")
    assert decoder.standardised
    ((tokens, mask),) = data
    predicted = decoder(tokens[None]).argmax(1)[0].to(torch.uint8).numpy()
    stored = study.results().filter(
        (pl.col("encoder") == "raw-pixels") & (pl.col("seed") == 1) & (pl.col("split") == "test")
    )
    assert count(predicted, mask.numpy(), 3).tolist() == stored.select("tp", "fp", "fn").to_numpy().tolist()


def test_a_torch_loader_gives_grids_view_by_view(study):
    data = study.grids("toy", "colour-texture", "train")
    assert len(data) == 2 * 2
    tokens, masks = next(iter(DataLoader(data, batch_size=3)))
    assert (tokens.dtype, masks.dtype) == (torch.float32, torch.uint8)
    assert tokens.shape[0] == masks.shape[0] == 3
    assert masks.shape[1:] == (64, 64)


def test_grids_of_tiles_that_changed_since_are_refused(study, tmp_path):
    shutil.copytree(study._flags.work, tmp_path / "work")
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    text = manifest_of(tmp_path).read_text()
    for change in (("name: a", "name: other"), ("'#ff0000'", "'#fe0000'")):
        (tmp_path / "data_manifest.yaml").write_text(text.replace(*change))
        changed = fmcache.Study(tmp_path / "recipe.yaml", tmp_path / "work", tmp_path / "data_manifest.yaml")
        if change[0].startswith("name"):
            with pytest.raises(fmcache.FmcacheError, match="made from other inputs"):
                changed.grids("toy", "raw-pixels", "train")
        else:  # a colour is for people: no pixel depends on it
            assert len(changed.grids("toy", "raw-pixels", "train")) == 4


def test_a_cache_opens_without_an_identity(study, tmp_path):
    paths = sorted((Path(str(study._flags.work)) / "cache").glob("*/*/*.zarr"))
    assert len(paths) == 3
    for path in paths:
        cache = fmcache.open_cache(str(path))
        assert cache.read("t0", 0, 3).shape == (3, *cache.item)
    with pytest.raises(fmcache.FmcacheError):
        fmcache.open_cache(tmp_path / "none.zarr")


def test_no_global_setting_changes_and_nothing_is_printed(tmp_path, capfd):
    for library in ("scipy.stats", "sympy"):  # they add warning filters of their own when they are first imported
        importlib.import_module(library)
    torch.manual_seed(3)
    np.random.seed(3)  # noqa: NPY002 - the global generator must not change
    before = torch.get_num_threads(), cv2.getNumThreads(), list(warnings.filters), torch.get_rng_state()
    drawn = np.random.get_state()[1].copy()  # noqa: NPY002
    made = study_in(tmp_path, threads=1)
    made.extract()
    made.fit()
    made.report()
    made.decoder("toy", "raw-pixels", seed=0)
    after = torch.get_num_threads(), cv2.getNumThreads(), list(warnings.filters), torch.get_rng_state()
    assert before[:3] == after[:3]
    assert torch.equal(before[3], after[3])
    assert np.array_equal(drawn, np.random.get_state()[1])  # noqa: NPY002
    assert capfd.readouterr() == ("", "")


def test_importing_every_public_name_changes_no_setting():
    script = (
        "import warnings, torch, cv2\n"
        "before = list(warnings.filters), torch.get_num_threads(), cv2.getNumThreads()\n"
        "import fmcache\n[getattr(fmcache, name) for name in fmcache.__all__]\n"
        "import fmcache.stages.extract, fmcache.stages.fit, fmcache.tiles.annotations, fmcache.tiles.views\n"
        "assert before[1:] == (torch.get_num_threads(), cv2.getNumThreads())\n"
        "assert not [one for one in warnings.filters if 'fmcache' in str(one) or 'Georeferenced' in str(one)]\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_lines_and_progress_go_to_the_given_places_only(tmp_path, capfd):
    lines, stream = [], io.StringIO()
    made = study_in(tmp_path, say=lines.append, progress=stream)
    made.extract()
    assert any("mask cache" in line for line in lines)
    assert "views/s" in stream.getvalue()
    assert capfd.readouterr() == ("", "")


def test_an_encoder_that_fails_is_raised_after_the_others_ran(tmp_path):
    broken = RECIPE | {"encoders": ["uni", "raw-pixels"]}
    made = study_in(tmp_path, broken, offline=True)
    with pytest.raises(fmcache.FmcacheError, match="UNI") as error:
        made.extract()
    assert any("uni" in note for note in error.value.__notes__)
    assert fmcache.open_cache(next((tmp_path / "work" / "cache" / "toy" / "raw-pixels").glob("*.zarr"))).item


def test_missing_results_and_folds_are_reported_with_a_next_step(study, tmp_path):
    with pytest.raises(fmcache.FmcacheError, match="nothing was fitted"):
        study_in(tmp_path).results()
    with pytest.raises(fmcache.FmcacheError, match="no results"):
        study.decoder("toy", "raw-pixels", seed=7)
    with pytest.raises(fmcache.FmcacheError, match="no fold 3"):
        study.grids("toy", "raw-pixels", "train", fold=3)
    with pytest.raises(fmcache.FmcacheError, match="sweep") as error:
        study_in(tmp_path, RECIPE | {"sweep": {"views.count": [1, 2]}}).results()
    assert "variants()" in error.value.next_step


def test_a_sweep_gives_a_study_for_each_value(tmp_path):
    made = study_in(tmp_path, RECIPE | {"encoders": ["raw-pixels"], "sweep": {"views.count": [1, 2]}})
    made.extract()
    made.fit()
    one, two = made.variants()
    assert one.results().shape == two.results().shape
    assert len(one.grids("toy", "raw-pixels", "train")) == 2
    assert len(two.grids("toy", "raw-pixels", "train")) == 4


def test_the_python_code_of_the_readme_runs(tmp_path):
    code, of_bundle = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert "fmcache.Study(" in code
    assert "\nmodel = open_bundle(" in of_bundle  # tests/bundles opens bundles
    exec(of_bundle.partition("\nmodel = ")[0], {})  # noqa: S102 - the imports of this example
    quick = yaml.safe_load((ROOT / "pipelines" / "quickstart.yaml").read_text())
    quick["views"], quick["fit"] = {"count": 1}, quick["fit"] | {"seeds": 1, "epochs": 1, "validate_epochs": 1}
    (tmp_path / "pipelines").mkdir()
    (tmp_path / "pipelines" / "quickstart.yaml").write_text(yaml.safe_dump(quick))
    (tmp_path / "data_manifest.yaml").write_text((ROOT / "data_manifest.yaml").read_text())
    code += "\nassert logits.shape == (1, 3, *mask.shape), logits.shape\n"
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, timeout=300)
