import re
import subprocess
import sys
from pathlib import Path
from typing import Literal, get_args, get_origin, get_type_hints

import msgspec
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from fmcache.commands import recipe_text as page
from fmcache.commands.init import init_command
from fmcache.errors import EncoderUnavailable, ManifestError, SpecError
from fmcache.specs import EncoderChoice, Recipe, read_recipe

ROOT = Path(__file__).parents[2]
LINE = re.compile(r"(#   |  |)(\w+):(.*?)\s*# (.*)")


def fields(kind=Recipe, path=""):
    """Yield every field of a recipe: its path in the file, its default, its type."""
    hints = get_type_hints(kind)
    for field in msgspec.structs.fields(kind):
        key = f"{path}{field.encode_name}"
        default = field.default if field.default_factory is msgspec.NODEFAULT else field.default_factory()
        yield key, default, hints[field.name]
        if isinstance(field.type, type) and issubclass(field.type, msgspec.Struct):
            yield from fields(field.type, f"{key}.")
    if kind is Recipe:
        yield from fields(EncoderChoice, "encoders.")


def comments(text):
    """Return the text of a written recipe's comments by the path of the field they are beside."""
    found, outer, path = {}, "", ""
    for line in text.splitlines():
        if key := LINE.fullmatch(line):
            indent, name, _, comment = key.groups()
            outer = name if not indent else "encoders" if indent == "#   " else outer
            path = f"{outer}.{name}" if indent else name
            found[path] = comment
        elif path and line.lstrip().startswith("# "):
            found[path] += " " + line.lstrip(" #")
    return found


def default_text():
    return page.recipe_text(Recipe())


def test_every_field_has_words_and_no_words_are_left_over():
    assert set(page.WORDS) == {key for key, *_ in fields()}
    assert all(page.WORDS.values())


def test_every_field_is_written_with_its_default_and_its_words_beside_it():
    written, beside = yaml.safe_load(default_text()), comments(default_text())
    for key, default, _ in fields():
        assert beside[key].startswith(page.WORDS[key]), key
        if key.startswith("encoders."):
            continue  # told, not written: the default recipe has no entry
        value = written
        for part in key.split("."):
            value = value[part]
        assert value == yaml.safe_load(msgspec.yaml.encode(default)), key


def test_every_value_of_a_choice_is_told_beside_it():
    beside = comments(default_text())
    choices = {key: get_args(kind) for key, _, kind in fields() if get_origin(kind) is Literal}
    assert {"grid", "views.outside", "precision", "dice", "fit.standardise"} <= set(choices)
    for key, values in choices.items():
        told = beside[key].rpartition("One of: ")[2].split(", ")
        assert sorted(told) == sorted(values), key


def test_ranges_are_those_of_the_types():
    beside = comments(default_text())
    assert beside["tile_px"].endswith("(8 to 8192)")
    assert beside["fit.learning_rate"].endswith("(above 0)")
    assert beside["views.shear_deg"].endswith("(0 or more, below 60)")


def test_the_words_on_the_store_name_its_limits():
    for most, more in (("float16-round9", "float16-round10"), ("float32-round19", "float32-round20")):
        assert most in page.WORDS["store"]
        assert Recipe(store=most)
        with pytest.raises(ValueError, match="store"):
            Recipe(store=more)


def test_examples_in_the_words_are_read(tmp_path):
    for key in ("encoders", "taps", "datasets"):
        *outer, name = key.split(".")
        example = re.search(r"for example (\[[^]]+\])", page.WORDS[key])[1]
        path = tmp_path / "recipe.yaml"
        path.write_text(f"{outer[0]}: {{{name}: {example}}}" if outer else f"{name}: {example}")
        assert read_recipe(path) != Recipe()
    path.write_text(f"sweep: {re.search(r'({.*?})', page.WORDS['sweep'])[1]}")
    assert read_recipe(path).sweep == {"fit.passes_per_epoch": (1, 5), "decoder.width": (32, 256)}
    path.write_text(f"encoders: [{re.search(r'({.*})', page.WORDS['encoders'])[1]}]")
    assert read_recipe(path).encoder_choices[0].alias == "uni-mine"


def test_a_new_field_without_words_cannot_be_written(monkeypatch):
    monkeypatch.delitem(page.WORDS, "fit.dice_weight")
    with pytest.raises(KeyError, match=r"fit\.dice_weight"):
        default_text()


def test_the_written_file_is_the_default_recipe_and_says_what_to_do_next(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    init_command()
    assert read_recipe(Path("recipe.yaml")) == Recipe()
    assert [path.name for path in tmp_path.iterdir()] == ["recipe.yaml"]
    told = capsys.readouterr().out
    assert "fmcache encoders list" in told
    assert "fmcache run recipe.yaml" in told


def test_no_line_is_wider_than_a_page():
    assert max(map(len, default_text().splitlines())) <= page.WIDTH


NAMES = [
    "yes",
    "null",
    "123",
    "1e3",
    "0x1f",
    "2024-01-01",
    "~",
    "-",
    "a: b",
    "a #b",
    "[x]",
    "{a}",
    "肿瘤",
    "'",
    "é\u00a0b",
    "\x85",
    "a\u2028b",
]


@given(st.lists(st.one_of(st.sampled_from(NAMES), st.text(min_size=1)), unique=True, min_size=1, max_size=4))
def test_whatever_names_are_filled_in_are_read_back(names):
    recipe = Recipe(question=names[0], datasets=tuple(names), encoders=tuple(names))
    assert msgspec.convert(yaml.safe_load(page.recipe_text(recipe)), Recipe, strict=True) == recipe


def test_datasets_and_encoders_are_filled_in(tmp_path, capsys):
    path = tmp_path / "study.yaml"
    manifest = ROOT / "data_manifest.yaml"
    init_command(path, ["demo", "puma"], ["raw-pixels", "timm:resnet50"], manifest=manifest)
    recipe = read_recipe(path)
    assert recipe.datasets == ("demo", "puma")  # one that is not fetched yet may be named
    assert [choice.name for choice in recipe.encoder_choices] == ["raw-pixels", "timm:resnet50"]
    assert "encoders list" not in capsys.readouterr().out


def test_a_card_file_is_named_as_seen_from_the_recipe(tmp_path, monkeypatch):
    card = tmp_path / "cards" / "mine.yaml"
    card.parent.mkdir()
    card.write_bytes((ROOT / "fmcache" / "encoders" / "cards" / "raw-pixels.yaml").read_bytes())
    monkeypatch.chdir(tmp_path)
    init_command(Path("studies/one.yaml"), encoder=["cards/mine.yaml"])
    (choice,) = read_recipe(Path("studies/one.yaml")).encoder_choices
    assert Path(choice.name).resolve() == card.resolve()


def test_a_minus_prints_the_recipe_and_writes_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    init_command(Path("-"))
    assert capsys.readouterr().out == default_text()
    assert not list(tmp_path.iterdir())


def test_a_file_that_exists_stays_unless_it_is_to_be_replaced(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("name: mine\n")
    with pytest.raises(SpecError, match="exists already") as caught:
        init_command(path)
    assert "--replace" in caught.value.next_step
    assert path.read_text() == "name: mine\n"
    init_command(path, replace=True)
    assert read_recipe(path) == Recipe()


def test_a_link_stays_a_link(tmp_path):
    link = tmp_path / "link.yaml"
    link.symlink_to(tmp_path / "real.yaml")
    init_command(link)
    assert link.is_symlink()
    assert read_recipe(tmp_path / "real.yaml") == Recipe()


@pytest.mark.parametrize(
    ("flags", "error", "says"),
    [
        ({"dataset": ["dmeo"]}, ManifestError, "demo"),
        ({"dataset": ["demo", "demo"]}, SpecError, "listed twice"),
        ({"encoder": ["virchow3"]}, EncoderUnavailable, "virchow2"),
        ({"encoder": ["uni", "uni"]}, SpecError, "listed twice"),
        ({"encoder": ["absent.yaml"]}, SpecError, "does not exist"),
        ({"dataset": ["demo"], "manifest": Path("absent.yaml")}, ManifestError, "there is no manifest absent.yaml"),
    ],
)
def test_a_wrong_name_is_refused_with_those_there_are_and_nothing_is_written(tmp_path, flags, error, says):
    path = tmp_path / "recipe.yaml"
    with pytest.raises(error) as caught:
        init_command(path, **{"manifest": ROOT / "data_manifest.yaml"} | flags)
    assert says in str(caught.value)
    assert caught.value.next_step
    assert not path.exists()


def test_a_folder_is_refused_with_a_file_to_name_in_it(tmp_path):
    with pytest.raises(SpecError, match="is a folder") as caught:
        init_command(tmp_path)
    assert "recipe.yaml" in caught.value.next_step


def test_init_loads_nothing_heavy(tmp_path):
    script = (
        "import sys; from fmcache.commands.init import init_command as init; from pathlib import Path\n"
        f"init(Path({str(tmp_path / 'r.yaml')!r}), ['demo'], ['uni'], manifest=Path('data_manifest.yaml'))\n"
        "heavy = {'torch', 'timm', 'zarr', 'numpy', 'polars', 'dask', 'PIL', 'cv2', 'matplotlib', 'ruamel'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
