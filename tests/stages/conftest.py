"""A study in small on tiles that are files: what stands on disk is what a user has."""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import yaml
from PIL import Image

from fmcache.datasets.add import add
from fmcache.manifest import Manifest
from fmcache.specs import DecoderSpec, FitSpec, Recipe, ViewSpec
from fmcache.stages.extract import extract
from fmcache.stages.fit import fit
from fmcache.stages.flags import Flags

SIDE = 32


class Study(NamedTuple):
    """Four tiles of two labels in files below `folder`, a recipe for them, and what the stages say of both."""

    folder: Path
    recipe: Recipe

    @property
    def path(self):
        return self.folder / "data_manifest.yaml"

    @property
    def work(self):
        return self.folder / "work"

    @property
    def manifest(self):
        return Manifest(self.path)

    def draw(self, names, seed=0):
        """Draw images and masks of two labels."""
        rng = np.random.default_rng(seed)
        images, masks = self.folder / "images", self.folder / "masks"
        for kind in (images, masks):
            kind.mkdir(exist_ok=True)
        for name in names:
            image = rng.integers(0, 256, (SIDE, SIDE, 3)).astype("uint8")
            Image.fromarray(image).save(images / f"{name}.png")
            Image.fromarray((image[..., 0] > 127).astype("uint8")).save(masks / f"{name}.png")

    def add(self, replace=False):
        """List what was drawn in the manifest."""
        images, masks = self.folder / "images", self.folder / "masks"
        add(
            self.path,
            "toy",
            images,
            masks,
            labels="a=0,b=1",
            ignore="255",
            mpp=0.5,
            groups="",
            split="2/1/1",
            seed=0,
            replace=replace,
        )

    def edit(self, change):
        """Let `change` do what it likes with the dataset's entry in the manifest."""
        document = yaml.safe_load(self.path.read_text())
        change(document["datasets"]["toy"])
        self.path.write_text(yaml.safe_dump(document))

    def extract(self, recipe=None, **flags):
        return self._run(extract, recipe, flags)

    def fit(self, recipe=None, **flags):
        return self._run(fit, recipe, flags)

    def _run(self, stage, recipe, flags):
        lines = []
        failures = stage(
            recipe or self.recipe, self.manifest, Flags(self.work, device="cpu", threads=1, **flags), lines.append
        )
        if failures:
            raise failures[0].error
        return lines


def _make_study(folder, seed=0):
    """Return a study whose tiles are drawn and listed, and of which nothing has been extracted."""
    recipe = Recipe(
        name="toy", encoders=("raw-pixels",), tile_px=SIDE, views=ViewSpec(count=1), decoder=DecoderSpec(width=2),
        fit=FitSpec(seeds=1, epochs=1, batch=2, validate_epochs=1),
    )  # fmt: skip
    study = Study(folder, recipe)
    study.draw("abcd", seed)
    study.add()
    return study


@pytest.fixture(scope="session")
def make_study():
    """The function that makes a `Study` in an empty folder."""
    return _make_study


@pytest.fixture
def study(tmp_path):
    return _make_study(tmp_path)


@pytest.fixture(scope="session")
def drawn():
    """The function that writes a manifest of a dataset `toy` of drawn tiles t0, t1, ... and returns it."""

    def write(folder, train, val, test, side=64):
        ids = [f"t{i}" for i in range(train + val + test)]
        labels = [{"name": n, "colour": c} for n, c in (("a", "#ff0000"), ("b", "#00ff00"), ("c", "#0000ff"))]
        splits = {"train": ids[:train], "val": ids[train : train + val], "test": ids[train + val :]}
        toy = {"format": "demo", "seed": 1, "size_px": side, "labels": labels, "tiles": [{"id": id_} for id_ in ids]}
        manifest = {"format": 1, "default": "toy", "datasets": {"toy": toy | {"splits": splits}}}
        (folder / "data_manifest.yaml").write_text(yaml.safe_dump(manifest))
        return Manifest(folder / "data_manifest.yaml")

    return write


def _content(path):
    if path.name != "zarr.json":
        return path.read_bytes()
    said = json.loads(path.read_text())
    if header := said.get("attributes", {}).get("fmcache"):
        del header["checksum"]
        header["about"].pop("extraction", None)
    return json.dumps(said).encode()


@pytest.fixture(scope="session")
def contents():
    """The function that returns the content of all files below a folder by path, but not the times that headers state.

    Locks are left out.
    """

    def read(root):
        files = (path for path in root.rglob("*") if path.is_file() and not path.name.endswith(".lock"))
        return {str(path.relative_to(root)): _content(path) for path in files}

    return read
