import json
import threading

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from fmcache.cli import app
from fmcache.datasets.add import add
from fmcache.datasets.entries import edited
from fmcache.datasets.split import split
from fmcache.errors import FmcacheError, ManifestError
from fmcache.manifest import Manifest

THERE = """\
# ours
format: 1
default: d
datasets:
  d:
    format: demo
    seed: 1
    labels: [{name: a, colour: '#ffffff'}, {name: b, colour: '#000000'}]
    tiles: [{id: x}, {id: y}, {id: z}]
    splits: {train: [x], val: [y], test: [z]}
"""


@pytest.fixture
def folder(tmp_path):
    """Six tiles of three patients with masks of values 0 and 1, and the same as annotated regions."""
    square = [[0, 0], [8, 0], [8, 4], [0, 4], [0, 0]]
    drawn = {
        "type": "Feature",
        "geometry": {"type": "Polygon", "coordinates": [square]},
        "properties": {"classification": {"name": "Tumor"}},
    }
    for kind in ("images", "masks", "regions"):
        (tmp_path / kind).mkdir()
    for i in range(6):
        Image.fromarray(np.full((8, 8, 3), 20 * i, "uint8")).save(tmp_path / "images" / f"p{i // 2}_{i}.png")
        Image.fromarray(np.repeat([[0, 1]], 8, 0).astype("uint8").repeat(4, 1)).save(
            tmp_path / "masks" / f"p{i // 2}_{i}.png"
        )
        text = json.dumps({"type": "FeatureCollection", "features": [drawn]})
        (tmp_path / "regions" / f"p{i // 2}_{i}.geojson").write_text(text)
    return tmp_path


def call(folder, name="mine", masks="masks", **flags):
    flags = {"labels": "a=0,b=1", "split": "2/2/2"} | flags
    arguments = ["data", "add", name, "--images", folder / "images", "--masks", folder / masks]
    arguments += ["--manifest", folder / "m.yaml", *(f"--{key}={value}" for key, value in flags.items())]
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


REFUSED = [
    {"name": "my set"},
    {"name": ""},
    {"name": "../mine"},
    {"name": ".mine"},
    {"name": "nul"},
    {"labels": "a=0,a=1"},
    {"labels": "a=0,b=0|1"},
    {"labels": "a=0-,b=3"},
    {"labels": "all=0-"},
    {"labels": "a=0"},
    {"labels": ""},
    {"labels": "a=0,=1"},
    {"labels": "a=zero,b=1"},
    {"labels": "a=#0000,b=1"},
    {"labels": ",".join(f"l{i}={i}" for i in range(255))},
    {"labels": "a,b", "ignore": "1"},
    {"ignore": "1"},
    {"ignore": "1-9"},
    {"ignore": "none"},
    {"split": "2/2"},
    {"split": "2/2/0"},
    {"split": "two/2/2"},
    {"mpp": "0"},
    {"mpp": "-0.5"},
    {"mpp": "nan"},
    {"mpp": "inf"},
    {"order": "a,b"},
    {"fill": "a"},
    {"groups": "(p"},
    {"groups": "p"},
    {"groups": "(q)"},
    {"masks": "regions", "labels": "t=Tumor,o=Other", "fill": "x"},
    {"masks": "regions", "labels": "t=Tumor,o=Other", "order": "t"},
    {"masks": "regions", "labels": "t=Tumor,o=Tumor"},
    {"masks": "regions", "labels": "t=Tumor,o=Other", "ignore": "Other"},
]


@pytest.mark.parametrize("flags", REFUSED, ids=str)
def test_refused_flags_leave_the_manifest_as_it_was_and_no_tile_is_read(folder, flags):
    for path in (folder / "images").iterdir():
        path.write_bytes(b"whoever reads this stumbles")
    before = sorted(folder.rglob("*"))
    result = call(folder, **flags)
    assert isinstance(result.exception, FmcacheError)
    assert "stumbles" not in str(result.exception)
    assert "cannot be read" not in str(result.exception)
    assert sorted(folder.rglob("*")) == before  # no manifest where there was none
    (folder / "m.yaml").write_text(THERE)
    assert str(call(folder, **flags).exception) == str(result.exception)
    assert (folder / "m.yaml").read_text() == THERE


@pytest.mark.parametrize(
    "flags", [{"split": "20/5/10"}, {"split": "1/2/3", "groups": r"^(p\d)"}, {"labels": "a=0,b=9"}]
)
def test_what_only_the_tiles_show_leaves_the_manifest_as_it_was_too(folder, flags):
    assert isinstance(call(folder, **flags).exception, FmcacheError)
    assert not (folder / "m.yaml").exists()
    (folder / "m.yaml").write_text(THERE)
    assert isinstance(call(folder, **flags).exception, FmcacheError)
    assert (folder / "m.yaml").read_text() == THERE


def test_a_manifest_that_would_not_be_read_again_is_never_written(folder):
    (folder / "m.yaml").write_text(THERE)
    with pytest.raises(ManifestError, match=r"two splits|again in"), edited(folder / "m.yaml") as document:
        document["datasets"]["d"]["splits"]["val"] = ["x"]
    assert (folder / "m.yaml").read_text() == THERE


@pytest.mark.parametrize(
    "text", ["", "a: [", "- 1", "datasets: 3", "format: 1\ndefault: x\ndatasets:\n", "\x00", "a: &b [*b]"]
)
def test_a_manifest_that_cannot_be_read_is_named_and_left_alone(folder, text):
    (folder / "m.yaml").write_text(text)
    for more in ({}, {"replace": True}):
        with pytest.raises(ManifestError, match=r"m\.yaml"):
            add_to(folder, "mine", **more)
    assert (folder / "m.yaml").read_text() == text


def test_an_entry_that_spoils_the_manifest_can_be_replaced(folder):
    (folder / "m.yaml").write_text(THERE.replace("name: b", "name: a"))
    with pytest.raises(ManifestError, match="listed twice"):
        add_to(folder, "d")
    add_to(folder, "d", replace=True)
    assert Manifest(folder / "m.yaml").dataset("d").label_names == ("a", "b")


def add_to(folder, name, replace=False):
    facts = {"labels": "a=0,b=1", "ignore": "255", "mpp": None, "groups": "", "split": "2/2/2", "seed": 0}
    return add(folder / "m.yaml", name, folder / "images", folder / "masks", **facts, replace=replace)


def test_names_that_yaml_takes_for_numbers_dates_or_truths_are_kept_as_they_are(folder):
    names = ["007", "no", "1e3", "2024-02-31", "0x_", "null", "mine"]
    for name in names:
        add_to(folder, name)
    split(folder / "m.yaml", "no", "", 3, "", 0)
    add_to(folder, "007", replace=True)
    listed = Manifest(folder / "m.yaml")
    assert list(listed.datasets) == names
    assert listed.default == "007"
    assert len(listed.dataset("no").folds) == 3


def while_edited(folder, name):
    """Add `name` from another thread while the manifest is being edited, which adds the dataset e."""
    (folder / "m.yaml").write_text(THERE)
    caught = []

    def other():
        try:
            add_to(folder, name)
        except ManifestError as error:
            caught.append(error)

    thread = threading.Thread(target=other)
    with edited(folder / "m.yaml") as document:
        thread.start()
        thread.join(0.5)
        document["datasets"]["e"] = document["datasets"]["d"]
    thread.join()
    return caught


def test_of_two_commands_at_once_neither_loses_its_entry(folder):
    assert not while_edited(folder, "mine")
    assert set(Manifest(folder / "m.yaml").datasets) == {"d", "e", "mine"}


def test_of_two_additions_of_one_name_at_once_the_second_is_refused(folder):
    (error,) = while_edited(folder, "e")
    assert "already" in str(error)
    assert Manifest(folder / "m.yaml").dataset("e").label_names == ("a", "b")


def test_a_manifest_that_is_a_link_stays_one(folder):
    (folder / "real").mkdir()
    (folder / "real" / "m.yaml").write_text(THERE)
    (folder / "m.yaml").symlink_to(folder / "real" / "m.yaml")
    with edited(folder / "m.yaml") as document:
        document["datasets"]["d"]["title"] = "new"
    assert (folder / "m.yaml").is_symlink()
    assert "title: new" in (folder / "real" / "m.yaml").read_text()


@pytest.mark.parametrize("text", ["", "# ours\n", "format: 1\ndefault: d\ndatasets:\n"])
def test_a_manifest_without_datasets_is_refused_with_the_way_on(folder, text):
    (folder / "m.yaml").write_text(text)
    with pytest.raises(ManifestError, match="lists no datasets") as refused:
        Manifest(folder / "m.yaml")
    assert "remove it" in refused.value.next_step


def test_what_a_killed_command_left_of_the_manifest_is_swept_by_the_next_and_nothing_else_is(folder):
    assert call(folder).exit_code == 0
    left, others = folder / ".m.yaml.4242.partial", [folder / ".m.yaml.old.4242.partial", folder / "x.zip.partial"]
    for file in (left, *others):
        file.write_text("format: 1")
    done = CliRunner().invoke(app, ["data", "split", "mine", "--folds", "3", "--manifest", str(folder / "m.yaml")])
    assert done.exit_code == 0
    assert not left.exists()
    assert all(file.exists() for file in others)
