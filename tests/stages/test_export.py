"""fmcache export: the right run, whole or not at all, and a message for every wrong choice."""

import contextlib
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from fmcache.bundles import tracing
from fmcache.bundles.contents import checked_facts
from fmcache.bundles.opening import open_bundle
from fmcache.cli import app
from fmcache.errors import ResultsCorrupt, ResultsNotFound, SpecError
from fmcache.manifest import Manifest
from fmcache.specs import DecoderSpec, FitSpec, Recipe, ViewSpec
from fmcache.stages.export import export
from fmcache.stages.exported_run import Wanted
from fmcache.stages.extract import extract
from fmcache.stages.fit import fit
from fmcache.stages.flags import Flags

SIDE = 32


def quiet(line):
    pass


class Place:
    """A fitted study of drawn tiles in a folder."""

    def __init__(self, folder, **changes):
        self.folder, self.work = folder, folder / "work"
        settings = {
            "name": "quickstart", "encoders": ("raw-pixels",), "tile_px": SIDE, "views": ViewSpec(count=1),
            "decoder": DecoderSpec("linear"), "fit": FitSpec(seeds=2, epochs=1, batch=2, validate_epochs=1),
        }  # fmt: skip
        recipe, flags = Recipe(**settings | changes), Flags(self.work, "cpu", threads=1)
        manifest = Manifest(folder / "data_manifest.yaml")
        for stage in (extract, fit):
            assert stage(recipe, manifest, flags, quiet) == []

    def export(self, to="out", encoder="raw-pixels", seed=0, say=quiet, **choices):
        return export(
            Wanted(choices.pop("study", "quickstart"), encoder, seed, **choices), self.work, self.folder / to, say
        )

    def run(self, seed=0, encoder="raw-pixels"):
        return self.work / "results" / "quickstart" / "toy" / encoder / f"seed-{seed:03d}"


@pytest.fixture
def manifest(drawn, tmp_path):
    """Write a manifest of drawn tiles with um/px; return a function that changes its dataset."""
    path = drawn(tmp_path, 2, 1, 2, side=64).path

    def change(**fields):
        document = yaml.safe_load(path.read_text())
        document["datasets"]["toy"] |= fields
        path.write_text(yaml.safe_dump(document))

    change(mpp=0.25)
    return change


@pytest.fixture
def place(manifest, tmp_path):
    return Place(tmp_path)


def test_the_um_per_pixel_of_a_tile_follow_from_the_side_of_the_images(place):
    assert checked_facts(place.export()).mpp == pytest.approx(0.25 * 64 / SIDE)
    with pytest.raises(SpecError, match=r"--mpp 0\.25 contradicts the results"):
        place.export("other", mpp=0.25)


def test_unknown_um_per_pixel_are_asked_for(manifest, tmp_path):
    manifest(mpp=None)
    place = Place(tmp_path)
    with pytest.raises(SpecError, match="um per pixel of a tile of 'toy' are unknown") as error:
        place.export()
    assert "--mpp" in error.value.next_step
    assert checked_facts(place.export(mpp=0.5)).mpp == 0.5


def test_without_pictures_of_tiles_the_um_per_pixel_are_asked_for(place):
    (place.run().parents[1] / "tiles.parquet").unlink()
    with pytest.raises(SpecError, match="um per pixel") as error:
        place.export()
    assert "no pictures of test tiles" in error.value.found


def test_the_same_export_again_changes_nothing_and_another_is_refused(place):
    lines = []
    folder = place.export(say=lines.append)
    before = {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.iterdir()}
    assert place.export(say=lines.append) == folder
    assert {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.iterdir()} == before
    assert "holds this bundle already" in lines[-1]
    with pytest.raises(SpecError, match="holds something other") as error:
        place.export(seed=1)
    assert "seed 0" in error.value.found
    (folder / "README.md").write_text("mine")
    with pytest.raises(SpecError, match="holds something other") as error:
        place.export()
    assert "README.md was changed" in error.value.found


def test_an_empty_folder_is_filled_and_a_folder_with_other_files_or_a_file_is_refused(place):
    (place.folder / "empty").mkdir()
    assert (place.export("empty") / "bundle.json").exists()
    (place.folder / "full").mkdir()
    (place.folder / "full" / "notes.txt").write_text("mine")
    (place.folder / "file").write_text("mine")
    for name in ("full", "file"):
        with pytest.raises(SpecError, match="holds something other"):
            place.export(name)
    assert (place.folder / "full" / "notes.txt").read_text() == "mine"


def test_an_export_that_fails_leaves_nothing(place, monkeypatch):
    def fail(*_):
        raise OSError(28, "No space left on device")

    before = sorted(place.folder.iterdir())
    monkeypatch.setattr(tracing, "save", fail)
    with pytest.raises(OSError, match="the disk is full"):
        place.export()
    assert sorted(place.folder.iterdir()) == before


def test_a_missing_run_is_answered_with_what_there_is(place):
    with pytest.raises(ResultsNotFound, match="no results of study 'other'"):
        place.export(study="other")
    for choices, known in (
        ({"encoder": "raw-pixel"}, "raw-pixels"), ({"seed": 5}, "0, 1"), ({"dataset": "demo"}, "toy"),
        ({"fold": 3}, "the fixed split"),
    ):  # fmt: skip
        with pytest.raises(ResultsNotFound) as error:
            place.export(**choices)
        assert error.value.expected == known


def test_a_damaged_run_is_refused_and_a_damaged_neighbour_is_left_out(place):
    whole = shutil.copytree(place.run(1), place.folder / "kept")
    (place.run(1) / "counts.parquet").write_bytes(b"")
    assert checked_facts(place.export()).dice[-1].seeds == 1
    with pytest.raises(ResultsCorrupt, match=r"counts\.parquet was changed"):
        place.export("other", seed=1)
    assert whole.exists()


def test_a_run_of_a_fold_needs_its_fold(manifest, tmp_path):
    ids = [f"t{i}" for i in range(5)]
    folds = [{"train": ids[:2], "val": ids[2:3], "test": ids[3:]}, {"train": ids[3:], "val": ids[2:3], "test": ids[:2]}]
    manifest(folds=folds)
    place = Place(tmp_path, folds=True)
    with pytest.raises(ResultsNotFound) as error:
        place.export()
    assert error.value.expected == "0, 1"
    assert checked_facts(place.export(fold=1)).fold == 1


def test_taps_that_one_decoder_joins_are_exported_together(manifest, tmp_path):
    place = Place(
        tmp_path, encoders=("random-vits16",), taps=("1", "last"), decoder=DecoderSpec("multi-tap", 2),
        fit=FitSpec(seeds=1, epochs=1, batch=2, validate_epochs=1),
    )  # fmt: skip
    folder = place.export(encoder="random-vits16@1+last")
    assert checked_facts(folder).taps == ("1", "last")
    assert open_bundle(folder).tile_px == SIDE


def test_the_command_writes_a_bundle_and_explains_a_mistake(place):
    def fmcache(*arguments):
        command = [sys.executable, "-m", "fmcache", "export", "--study", "quickstart", *arguments]
        return subprocess.run(command, cwd=place.folder, capture_output=True, text=True, check=False)

    done = fmcache("--encoder", "raw-pixels", "--seed", "0", "--to", "bundle")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1] == "bundle: bundle"
    assert open_bundle(place.folder / "bundle").mpp == pytest.approx(0.5)
    wrong = fmcache("--encoder", "raw-pixels", "--seed", "9", "--to", "other")
    assert wrong.returncode == 1
    assert wrong.stderr.startswith("error: the study has no results of seed '9'")
    assert "Traceback" not in wrong.stderr


def test_the_commands_of_the_readme_write_bundles(manifest, tmp_path):
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    section = readme.partition("## A bundle that travels")[2].partition("\n## ")[0]
    (block,) = re.findall(r"```sh\n(.*?)```", section, re.S)
    Place(tmp_path, encoders=("raw-pixels", "random-vits16"))
    folders = []
    for line in block.splitlines():
        with contextlib.chdir(tmp_path), pytest.raises(SystemExit) as end:
            app(shlex.split(line)[1:])
        assert end.value.code == 0
        folders.append(tmp_path / shlex.split(line)[shlex.split(line).index("--to") + 1])
    assert [checked_facts(folder).holds_encoder_weights for folder in folders] == [True, False]
