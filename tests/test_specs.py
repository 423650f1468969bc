"""Recipes: defaults, refusals, paths."""

import pytest

from fmcache.errors import SpecError
from fmcache.specs import Recipe, read_recipe


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
        ("[: ", "not valid YAML"),
        ("- 1", "Expected `object`"),
    ],
)
def test_a_wrong_recipe_is_refused_with_line_and_key(tmp_path, text, says):
    with pytest.raises(SpecError, match=r"f\.yaml") as error:
        read_recipe(write(tmp_path, text))
    assert says in str(error.value)


def test_paths_in_a_recipe_are_relative_to_it(tmp_path):
    recipe = read_recipe(write(tmp_path, "encoders: [mine.yaml, {name: virchow2, weights: w.bin}]"))
    mine, virchow = recipe.encoder_choices
    assert (mine.name, virchow.name, virchow.weights) == (
        str(tmp_path / "mine.yaml"),
        "virchow2",
        str(tmp_path / "w.bin"),
    )
