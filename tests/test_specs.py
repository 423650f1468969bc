"""Recipes: defaults, refusals, paths."""

import msgspec
import pytest

from fmcache.errors import SpecError
from fmcache.specs import NOT_SWEPT, OF_SWEEP, Recipe, Variant, cache_recipes, is_name, read_recipe, variants


def write(folder, text):
    (folder / "f.yaml").write_text(text)
    return folder / "f.yaml"


def test_a_recipe_with_only_a_name_is_the_papers_protocol(tmp_path):
    recipe = read_recipe(write(tmp_path, "name: paper"))
    assert recipe == Recipe()
    fit = recipe.fit
    assert (recipe.tile_px, recipe.views.count, recipe.decoder.width, recipe.grid, recipe.taps) == (
        512,
        50,
        256,
        "fit",
        ("last",),
    )
    assert (fit.seeds, fit.epochs, fit.batch, fit.learning_rate, fit.restart_epochs) == (10, 50, 8, 1e-4, 10)
    assert (fit.passes_per_epoch, fit.standardise, recipe.dice, recipe.store) == (1, "none", "pooled", "float16")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("fit: {epochs: 0}", "fit.epochs"),
        ("fit:\n  bogus: 1", "f.yaml:2: fit.bogus"),
        ("encoders: [a, {name: a}]", "listed twice"),
        ("name: a/b", "recipe name"),
        ("decoder: {kind: multi-tap}", "multi-tap needs at least two taps"),
        ("decoder:\n  width: 8\n  kind: conv", "f.yaml:3: decoder.kind: Invalid enum value 'conv'"),
        ("boundary: 2 mm", "expected a length such as '2 um' or '4 px'"),
        ("boundary: -2 um", "expected a length"),
        ("boundary: 4", "f.yaml:1: boundary: Expected `str`"),
        ("[: ", "not valid YAML"),
        ("- 1", "Expected `object`"),
    ],
)
def test_a_wrong_recipe_is_refused_with_line_and_key(tmp_path, text, says):
    with pytest.raises(SpecError, match=r"f\.yaml") as error:
        read_recipe(write(tmp_path, text))
    assert says in str(error.value)


VIEWS_AND_WIDTH = """
name: toy
tile_px: 64
sweep:
  decoder.width: [8, 16]
  views.count: [4, 2]
"""


def test_a_sweep_is_a_study_for_every_combination_that_knows_where_it_belongs(tmp_path):
    recipe = read_recipe(write(tmp_path, VIEWS_AND_WIDTH))
    swept = variants(recipe)
    assert [(one.decoder.width, one.views.count) for one in swept] == [(8, 4), (8, 2), (16, 4), (16, 2)]
    assert [one.name for one in swept][:2] == ["toy.width-8.count-4", "toy.width-8.count-2"]
    last = swept[-1]
    assert isinstance(last, Variant)
    assert (last.sweep_of, last.setting) == ("toy", (("decoder.width", 16), ("views.count", 2)))
    assert last.swept == (("decoder.width", (8, 16)), ("views.count", (4, 2)))
    assert (last.sweep, last.tile_px) == ({}, 64)
    assert variants(last) == (last,)
    assert variants(msgspec.structs.replace(recipe, sweep={})) == (msgspec.structs.replace(recipe, sweep={}),)


@pytest.mark.parametrize(
    ("sweep", "names"),
    [
        ({"fit.learning_rate": (1e-5, 1)}, ["toy.learning_rate-1e-5", "toy.learning_rate-1"]),
        ({"folds": (False, True), "grid": ("pad",)}, ["toy.folds-false.grid-pad", "toy.folds-true.grid-pad"]),
        ({"views.seed": (0,), "fit.seeds": (3,)}, ["toy.seed-0.seeds-3"]),
    ],
)  # fmt: skip
def test_variants_have_names_for_folders(sweep, names):
    found = [one.name for one in variants(Recipe(name="toy", sweep=sweep))]
    assert found == names
    assert all(map(is_name, found))


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("views: [1, 2]", ["f.yaml:3: sweep.views", "such as views.count"]),
        ("views: []", ["f.yaml:3: sweep.views", "views.count", "delete the line"]),
        ("passes_per_epoch: [1, 2]", ["f.yaml:3: sweep.passes_per_epoch", "such as fit.passes_per_epoch"]),
        ("fit.epochs: [1, x]", ["f.yaml:3: sweep.fit.epochs[1]", "'x' is not a value"]),
        ("grid: [fit, cut]", ["f.yaml:3: sweep.grid[1]", "fit, pad, crop"]),
        ("fit.learning_rate: [1e-4]", ["f.yaml:3: sweep.fit.learning_rate[0]", "write 0.0001 with a point"]),
        ("taps: [[last]]", ["f.yaml:3: sweep.taps", "each is a row"]),
        ("store: [float16, float16-round12]", ["f.yaml:2: sweep", "with store float16-round12", "1 to 9 bits"]),
        ("fit.epochs: []", ["f.yaml:3: sweep.fit.epochs", "is empty"]),
    ],
)
def test_a_wrong_sweep_is_refused_with_line_and_what_to_write(tmp_path, line, says):
    with pytest.raises(SpecError) as error:
        read_recipe(write(tmp_path, f"name: toy\nsweep:\n  {line}\n"))
    for text in says:
        assert text in str(error.value)
    assert error.value.next_step


def test_a_recipe_file_cannot_claim_to_be_a_variant(tmp_path):
    for field in OF_SWEEP:
        with pytest.raises(SpecError, match=f"unknown key '{field}'"):
            read_recipe(write(tmp_path, f"{field}: x"))


def test_only_fields_that_change_caches_give_more_sets_of_caches():
    sweep = {"views.count": (1, 5), "tile_px": (64, 32), "fit.epochs": (1, 2), "views.hue": (0.0, 0.1)}
    found = cache_recipes(Recipe(sweep=sweep))
    assert [(one.tile_px, one.views.hue) for one in found] == [(64, 0.0), (64, 0.1), (32, 0.0), (32, 0.1)]
    assert all(set(one.sweep) == {"views.count", "fit.epochs"} for one in found)
    plain = Recipe(name="x")
    assert cache_recipes(plain) == (plain,)


def test_every_field_of_a_recipe_can_be_swept_or_says_why_not():
    assert set(NOT_SWEPT) < set(Recipe.__struct_fields__)
    for field, value in {
        "tile_px": 64,
        "dice": "puma",
        "fit.dice_weight": 0.5,
        "views.flip": False,
        "subset": 3,
    }.items():
        (one,) = variants(Recipe(sweep={field: (value,)}))
        outer, _, inner = field.partition(".")
        assert (getattr(getattr(one, outer), inner) if inner else getattr(one, outer)) == value


def test_a_tolerance_of_boundaries_has_a_unit_and_is_absent_by_default(tmp_path):
    assert Recipe().boundary_length is None
    found = [read_recipe(write(tmp_path, f"boundary: {text}")).boundary_length for text in ("2 um", "0.5um", "4 px")]
    assert found == [(2.0, "um"), (0.5, "um"), (4.0, "px")]


def test_paths_in_a_recipe_are_relative_to_it(tmp_path):
    recipe = read_recipe(write(tmp_path, "encoders: [mine.yaml, {name: virchow2, weights: w.bin}]"))
    mine, virchow = recipe.encoder_choices
    assert (mine.name, virchow.name, virchow.weights) == (
        str(tmp_path / "mine.yaml"),
        "virchow2",
        str(tmp_path / "w.bin"),
    )
