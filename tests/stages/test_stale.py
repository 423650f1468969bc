"""Every field of every identity, changed in turn where a user changes it: what reads the cache or run next names it.

The rows are made from the identities on disk. A field that is added to one and for which nothing here says how it
changes fails the test that collects them.
"""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import pytest
import yaml
from PIL import Image

from fmcache.cache.header import read_header
from fmcache.cache.reader import open_cache
from fmcache.cache.writer import open_writer
from fmcache.demand import Demand
from fmcache.encoders.cards import read_card
from fmcache.errors import CacheMismatch, CacheNotFound, ManifestError, ResultsMismatch
from fmcache.manifest import AnyDataset, Manifest, TileEntry
from fmcache.scores.run_files import find_runs, read_record
from fmcache.specs import DecoderSpec, FitSpec, Recipe, ViewSpec
from fmcache.stages import identities, places
from fmcache.stages.extract import extract
from fmcache.stages.fit import fit
from fmcache.stages.flags import Flags
from fmcache.strict import builtins

SIDE, TILES = 32, "abcd"


def replaced(struct, **fields):
    return msgspec.structs.replace(struct, **fields)


class Inputs(NamedTuple):
    """What a user can change: recipe, dataset and its name, the encoder's card and weights."""

    recipe: Recipe
    dataset: AnyDataset
    name: str
    card: dict[str, Any]
    weights_sha256: str = ""
    random_weights: bool = False
    precision: str = "float32"
    tap: str = "last"

    def identity(self, kind):
        hashes = Demand(self.name, self.dataset, {}, dict.fromkeys(TILES, 1)).listed_hashes
        if kind == "view_bank":
            return identities.mask_identity(self.recipe, self.name, self.dataset, hashes)
        known = identities.tokens_identity(self.recipe, self.name, hashes, self.tap)
        return identities.with_encoder(known, self.card, self.weights_sha256, self.random_weights, self.precision)


class Extracted(NamedTuple):
    """A study that was extracted and fitted."""

    folder: Path
    inputs: Inputs

    @property
    def work(self):
        return self.folder / "work"

    def path(self, kind):
        recipe = self.inputs.recipe
        if kind == "view_bank":
            return places.mask_cache_path(self.work, "toy", recipe)
        return places.tokens_path(self.work, "toy", "raw-pixels", recipe, "last")

    def run(self, stage, inputs):
        """Run a stage on changed inputs; raise what it refuses."""
        manifest = Manifest(self.folder / "data_manifest.yaml")
        manifest.datasets = {inputs.name: inputs.dataset}
        recipe = replaced(inputs.recipe, datasets=(inputs.name,))
        for failure in stage(recipe, manifest, Flags(self.work, device="cpu", threads=1), lambda _: None):
            raise failure.error

    def on_disk(self):
        """The identities that are there, by kind; of the run, what it does not share with the caches."""
        found = {kind: read_header(self.path(kind)).identity for kind in ("view_bank", "tokens")}
        (place,) = find_runs(places.results(self.work), "toy")
        run = read_record(place).identity
        for kind, identity in found.items():
            assert run[kind] == identity
        return found | {"run": {key: value for key, value in run.items() if key not in found}}


def manifest_entry(folder, format_):
    """Draw four tiles, masks as pictures or as annotated regions, and return what the manifest says of them."""
    rng = np.random.default_rng(0)
    labels = [{"name": "a", "colour": "#ff0000", "values": [0]}, {"name": "b", "colour": "#00ff00", "values": [1]}]
    more: dict[str, Any] = {"ignore_values": [255]}
    if format_ == "geojson":
        labels[0]["values"], labels[1]["values"] = ["Tumor"], ["Stroma"]
        more = {
            "ignore_values": ["Necrosis"], "order": ["Stroma", "Tumor", "Necrosis"], "fill": "b", "skip": ["Vessel"],
            "objects": ["annotation"], "class_property": "kind",
        }  # fmt: skip
    tiles = []
    for name in TILES:
        image = rng.integers(0, 256, (SIDE, SIDE, 3)).astype("uint8")
        files = {"image": folder / f"{name}.png", "mask": folder / f"{name}.mask.{format_}"}
        Image.fromarray(image).save(files["image"])
        if format_ == "folder":
            files["mask"] = folder / f"{name}.mask.png"
            Image.fromarray((image[..., 0] > 127).astype("uint8")).save(files["mask"])
        else:
            ring = [[0, 0], [20, 0], [20, int(rng.integers(9, 30))], [0, 20], [0, 0]]
            region = {
                "type": "Feature", "geometry": {"type": "Polygon", "coordinates": [ring]},
                "properties": {"objectType": "annotation", "kind": "Tumor"},
            }  # fmt: skip
            files["mask"].write_text(json.dumps({"type": "FeatureCollection", "features": [region]}))
        paths = {key: path.name for key, path in files.items()}
        sums = {f"{key}_sha256": hashlib.sha256(path.read_bytes()).hexdigest() for key, path in files.items()}
        tiles.append({"id": name, **paths, **sums})
    splits = {"train": ["a", "b"], "val": ["c"], "test": ["d"]}
    return {"format": format_, "root": ".", "mpp": 0.5, "labels": labels, "tiles": tiles, "splits": splits, **more}


def make(folder, format_):
    document = {"format": 1, "default": "toy", "datasets": {"toy": manifest_entry(folder, format_)}}
    (folder / "data_manifest.yaml").write_text(yaml.safe_dump(document))
    recipe = Recipe(
        name="toy", encoders=("raw-pixels",), tile_px=SIDE, views=ViewSpec(count=1), decoder=DecoderSpec(width=2),
        fit=FitSpec(seeds=1, epochs=1, batch=2, validate_epochs=1),
    )  # fmt: skip
    dataset = Manifest(folder / "data_manifest.yaml").dataset()
    made = Extracted(folder, Inputs(recipe, dataset, "toy", builtins(read_card("raw-pixels"))))
    for stage in (extract, fit):
        made.run(stage, made.inputs)
    return made


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return {kind: make(tmp_path_factory.mktemp(kind), kind) for kind in ("folder", "geojson")}


def other(value):
    """Return another value of the same kind that a recipe allows in its place."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 1
    if isinstance(value, float):
        return value * 0.5 if value > 1 else value / 2 + 0.01
    return {"ignore": "reflect", "none": "channel", "fit": "pad", "pooled": "per_tile", "float16": "float32"}[value]


def of_struct(field):
    """The change of one field of a part of the recipe (views, decoder, fit)."""
    part, _, name = field.partition(".")

    def change(inputs):
        struct = getattr(inputs.recipe, part)
        value = other(getattr(struct, name))
        value = max(value, 1.1) if name == "scale" else value
        return inputs._replace(recipe=replaced(inputs.recipe, **{part: replaced(struct, **{name: value})}))

    return change


def of_recipe(name):
    return lambda inputs: inputs._replace(recipe=replaced(inputs.recipe, **{name: other(getattr(inputs.recipe, name))}))


def of_card(name):
    values = {
        "name": "x", "kind": "texture", "architecture": "x", "arguments": {"depth": 3}, "patch": 8, "width": 3,
        "prefix_tokens": 1, "mean": [0.1, 0.2, 0.3], "std": [0.1, 0.2, 0.3],
    }  # fmt: skip
    return lambda inputs: inputs._replace(card=inputs.card | {name: values[name]})


def of_dataset(**fields):
    return lambda inputs: inputs._replace(dataset=replaced(inputs.dataset, **fields))


def of_label(**fields):
    def change(inputs):
        first, *rest = inputs.dataset.labels
        more = {} if "order" not in inputs.dataset.__struct_fields__ else {"order": ()}
        assert not more or inputs.dataset.order
        labels = (replaced(first, **fields), *rest)
        # `order` lists the classes of the labels, so the two change together when a class gets another name
        both = {"labels": labels} | (more if "values" in fields else {})
        return inputs._replace(dataset=replaced(inputs.dataset, **both))

    return change


def of_tile(file):
    def change(inputs):
        first, *rest = inputs.dataset.tiles
        changed: TileEntry = replaced(first, **{f"{file}_sha256": "0" * 64})
        return inputs._replace(dataset=replaced(inputs.dataset, tiles=(changed, *rest)))

    return change


def of_splits(**splits):
    return lambda inputs: inputs._replace(
        dataset=replaced(inputs.dataset, splits=replaced(inputs.dataset.splits, **splits))
    )


CHANGES = {
    "dataset": [lambda inputs: inputs._replace(name="other")],
    "tile_px": [of_recipe("tile_px")],
    "grid": [of_recipe("grid")],
    "store": [of_recipe("store")],
    "dice": [of_recipe("dice")],
    "tap": [lambda inputs: inputs._replace(tap="1", recipe=replaced(inputs.recipe, taps=("1",)))],
    "precision": [
        lambda inputs: inputs._replace(precision="float16", recipe=replaced(inputs.recipe, precision="float16"))
    ],
    "labels": [of_label(name="z"), of_label(values=("Other",)), of_label(values=(0, 7))],
    "ignore_values": [of_dataset(ignore_values=(254,)), of_dataset(ignore_values=(), order=("Stroma", "Tumor"))],
    "order": [of_dataset(order=("Tumor", "Stroma", "Necrosis"))],
    "fill": [of_dataset(fill="ignore")],
    "skip": [of_dataset(skip=("Vessel", "Fold")), of_dataset(skip=())],
    "objects": [of_dataset(objects=("annotation", "cell")), of_dataset(objects=())],
    "class_property": [of_dataset(class_property="name"), of_dataset(class_property="")],
    "splits.train": [of_splits(train=("b", "a"))],
    "splits.val": [of_splits(val=("d",), test=("c",))],
    "splits.test": [of_splits(val=("d",), test=("c",))],
    "encoder.weights_sha256": [lambda inputs: inputs._replace(weights_sha256="0" * 64)],
    "encoder.random_weights": [lambda inputs: inputs._replace(random_weights=True)],
}  # fmt: skip
"""How each field changes; those of views, decoder, fit, the card and tiles are made by `changes_of`.

`format`, `kind`, the number of `views` and the `seed` of a run have tests of their own below.
"""
OWN_TEST = {"format", "kind", "views", "seed"}
TOGETHER = {
    "splits.val": {"splits.test"}, "splits.test": {"splits.val"}, "ignore_values": {"order"}, "labels": {"order"}
}  # fmt: skip
"""What cannot change without the other."""


def changes_of(kind, field):
    if field.startswith("tiles."):
        return [of_tile(file) for file in (("image",) if kind == "tokens" else ("image", "mask"))]
    if field.startswith(("views.", "decoder.", "fit.")):
        return [of_struct(field)]
    if field.startswith("encoder.") and field not in CHANGES:
        return [of_card(field.partition(".")[2])]
    return CHANGES[field]


def leaves(identity, at=""):
    """Names of the fields of an identity, as a refusal names them; of tiles the first alone."""
    for key, value in identity.items():
        if at == "tiles." and key != TILES[0]:
            continue
        if isinstance(value, dict) and value and at != "encoder.":
            yield from leaves(value, f"{at}{key}.")
        else:
            yield f"{at}{key}"


def named(error, field=""):
    """The fields that a refusal names; a part of `field` counts as `field`."""
    found = {line.partition(":")[0].strip() for line in error.problem.splitlines()[1:]}
    return {field if name.startswith(f"{field}.") else name for name in found}


def test_every_field_of_every_identity_that_changes_is_named_by_what_comes_next(made):
    seen = set()
    for format_, study in made.items():
        for kind, identity in study.on_disk().items():
            for field in leaves(identity):
                if field in OWN_TEST:
                    continue
                done = 0
                for change in changes_of(kind, field):
                    try:
                        inputs = change(study.inputs)
                    except (TypeError, ValueError):  # of masks of the other format
                        continue
                    allowed = {field} | TOGETHER.get(field, set())
                    done += _is_named(study, kind, inputs, field, allowed)
                assert done, f"{format_}, {kind}: nothing here changes {field}"
                seen.add((kind, field))
    assert len(seen) > 60


def _is_named(study, kind, inputs, field, allowed):
    """Check that a change is refused by name; return whether it was one."""
    path = study.path("view_bank" if kind == "run" else kind)
    if kind == "run":
        with pytest.raises(ResultsMismatch) as refused:
            study.run(fit, inputs)
        assert field in named(refused.value, field) <= allowed
        return True
    expected = inputs.identity(kind)
    if expected == study.inputs.identity(kind):
        return False
    with pytest.raises(CacheMismatch) as refused:
        open_cache(path, kind, expected)
    assert field in named(refused.value, field) <= allowed
    demand = dict.fromkeys(TILES, 1)
    if inputs.name == "toy" and read_header(path).identity["tile_px"] == inputs.recipe.tile_px:
        with pytest.raises(CacheMismatch) as writing, open_writer(path, kind, expected, (1, 1), "uint8", demand, {}):
            pass
        assert named(writing.value) == named(refused.value)
    if not field.startswith("encoder."):  # fit leaves the encoder to what is stored
        with pytest.raises((CacheMismatch, CacheNotFound)) as refused:
            study.run(fit, inputs)
        # a cache of another recipe or dataset has another path: none is there, and none is taken for it
        assert isinstance(refused.value, CacheNotFound) or field in named(refused.value, field)
    return True


def test_the_version_of_the_format_and_the_kind_are_named(made, monkeypatch):
    study = made["folder"]
    with pytest.raises(CacheMismatch, match="another kind"):
        open_cache(study.path("tokens"), "view_bank", {})
    monkeypatch.setattr(identities, "FORMAT_VERSION", 2)
    for kind in ("tokens", "view_bank"):
        with pytest.raises(CacheMismatch, match="format: expected 2, found 1"):
            open_cache(study.path(kind), kind, study.inputs.identity(kind))
    with pytest.raises(CacheMismatch, match="format: expected 2, found 1"):
        study.run(fit, study.inputs)


def test_the_number_of_views_and_the_seed_of_a_run_are_named(made, tmp_path):
    study = Extracted(tmp_path / "study", made["folder"].inputs)
    shutil.copytree(made["folder"].folder, study.folder)
    inputs = study.inputs
    fewer = replaced(inputs.recipe, views=replaced(inputs.recipe.views, count=2))
    with pytest.raises(ResultsMismatch, match="views: expected 2, found 1"):
        study.run(fit, inputs._replace(recipe=fewer))
    (place,) = find_runs(places.results(study.work), "toy")
    shutil.copytree(place, place.with_name("seed-001"))
    two = replaced(inputs.recipe, fit=replaced(inputs.recipe.fit, seeds=2))
    with pytest.raises(ResultsMismatch, match="seed: expected 1, found 0"):
        study.run(fit, inputs._replace(recipe=two))


def test_a_file_that_changed_is_named_by_extract_and_one_that_is_listed_anew_by_both(made, tmp_path):
    study = Extracted(tmp_path / "study", made["geojson"].inputs)
    shutil.copytree(made["geojson"].folder, study.folder)
    with (study.folder / "a.mask.geojson").open("a") as file:
        file.write(" ")
    with pytest.raises(ManifestError, match="1 of 8 files"):
        study.run(extract, study.inputs)
    sha256 = hashlib.sha256((study.folder / "a.mask.geojson").read_bytes()).hexdigest()
    first, *rest = study.inputs.dataset.tiles
    anew = replaced(study.inputs.dataset, tiles=(replaced(first, mask_sha256=sha256), *rest))
    for stage in (extract, fit):
        with pytest.raises(CacheMismatch, match=r"tiles\.a"):
            study.run(stage, study.inputs._replace(dataset=anew))


@pytest.mark.parametrize(
    "change",
    [
        of_dataset(title="Another", source="x", licence="y"),
        of_label(colour="#123456"),
        lambda inputs: inputs._replace(recipe=replaced(inputs.recipe, question="?", expect="!")),
        lambda inputs: inputs._replace(card=inputs.card | {"title": "x", "licence": "y", "notes": "z"}),
    ],
    ids=["words of the dataset", "colour of a label", "words of the recipe", "words of the card"],
)
def test_what_is_in_no_identity_stops_nothing_and_results_keep_what_they_recorded(made, change):
    for study in made.values():
        inputs = change(study.inputs)
        for kind in ("view_bank", "tokens"):
            assert inputs.identity(kind) == study.inputs.identity(kind)
        (place,) = find_runs(places.results(study.work), "toy")
        before = read_record(place)
        study.run(fit, inputs)
        assert read_record(place) == before
