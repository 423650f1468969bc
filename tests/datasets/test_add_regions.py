"""Datasets whose masks are annotated regions: added from a folder, checked, extracted, and known by what draws them."""

import json
import re
import shlex

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner

from fmcache.cli import app
from fmcache.datasets.add import FileRules, add
from fmcache.datasets.check import check
from fmcache.errors import ManifestError, SpecError, TileError
from fmcache.manifest import FolderDataset, Label, Manifest
from fmcache.specs import Recipe
from fmcache.stages.identities import mask_identity
from fmcache.tiles.images import Tile, check_view_mpp, read_tile

SIDE = 32
LABELS = "tumour=Tumor|Tumor: invasive,stroma=Stroma,rest=Necrosis"


def square(name, x0, y0, x1, y1, **properties):
    ring = [[x0, y0], [x1, y0], [x1, y1], [x0, y1], [x0, y0]]
    properties |= {"classification": {"name": name}} if name else {}
    return {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [ring]}, "properties": properties}


def regions(i):
    """Tumour left, stroma right, necrosis under both below, seen in t3; the top rows are in no region."""
    below = SIDE - (i == 3)
    return [
        square("Necrosis", 0, 24, SIDE, SIDE + 8),
        square("Tumor" if i % 2 else "Tumor: invasive", -4, 4, 14 + i, below),
        square("Stroma", 14 + i, 4, SIDE, below),
    ]


@pytest.fixture
def folder(tmp_path):
    for i in range(4):
        pixels = np.full((SIDE, SIDE, 3), 50 * i, "uint8")
        Image.fromarray(pixels).save(tmp_path / f"t{i}.png")
        (tmp_path / f"t{i}.geojson").write_text(json.dumps(regions(i)))
    return tmp_path


def add_to(folder, labels=LABELS, ignore="255", order="", fill="ignore", **flags):
    manifest = folder / "data_manifest.yaml"
    add(
        manifest,
        "mine",
        folder,
        folder,
        labels=labels,
        ignore=ignore,
        mpp=0.5,
        groups="",
        split="2/1/1",
        seed=0,
        replace=True,
        order=order,
        fill=fill,
        **flags,
    )
    listed = Manifest(manifest)
    return listed, listed.dataset("mine")


def mask_of(listed, dataset, tile="t0"):
    return read_tile(dataset, next(t for t in dataset.tiles if t.id == tile), listed.folder).mask


def test_geojson_beside_the_images_is_drawn_in_file_order_and_the_rest_ignored(folder):
    listed, dataset = add_to(folder)
    mask = mask_of(listed, dataset)
    assert (mask[:4] == 255).all()
    assert (mask[4:, :14] == 0).all()
    assert (mask[4:, 14:] == 1).all()
    result = check(listed, "mine")
    assert result.problems == []
    assert any("overlap in 4 of 4 tiles" in note and "later region in the file" in note for note in result.notes)


def test_an_order_of_labels_and_a_fill_change_the_mask_and_the_identity_of_its_bank(folder):
    listed, dataset = add_to(folder)
    before = mask_identity(Recipe(), "mine", dataset, {})
    listed, dataset = add_to(folder, order="tumour,stroma,rest", fill="stroma")
    assert dataset.order == ("Tumor", "Tumor: invasive", "Stroma", "Necrosis")
    mask = mask_of(listed, dataset)
    assert (mask[:4] == 1).all()
    assert (mask[24:] == 2).all()
    after = mask_identity(Recipe(), "mine", dataset, {})
    assert {key for key in after if after[key] != before[key]} == {"order", "fill"}
    regrouped = add_to(folder, labels="tumour=Tumor,stroma=Stroma|Tumor: invasive,rest=Necrosis")[1]
    assert mask_identity(Recipe(), "mine", regrouped, {})["labels"] != before["labels"]


def test_ignored_classes_are_drawn_as_no_truth(folder):
    listed, dataset = add_to(folder, labels="tumour=Tumor|Tumor: invasive,Stroma", ignore="Necrosis", fill="Stroma")
    assert dataset.ignore_values == ("Necrosis",)
    assert dataset.classes() == {"Tumor": 0, "Tumor: invasive": 0, "Stroma": 1, "Necrosis": 255}
    listed, dataset = add_to(
        folder, "tumour=Tumor|Tumor: invasive,Stroma", "Necrosis", "tumour,Stroma,Necrosis", "Stroma"
    )
    assert (mask_of(listed, dataset)[24:] == 255).all()


def test_unknown_classes_of_all_files_are_listed_with_their_counts(folder):
    with pytest.raises(TileError, match=r"Necrosis \(4\), Tumor: invasive \(2\)") as error:
        add_to(folder, labels="tumour=Tumor,stroma=Stroma")
    assert "Stroma (4)" in error.value.found
    assert not (folder / "data_manifest.yaml").exists()


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ({"order": "tumour,stroma"}, "does not name every class once"),
        ({"order": "tumour,stroma,rest,Tumor"}, "does not name every class once"),
        ({"fill": "white"}, "--fill 'white' is not a label"),
        ({"skip": "Stroma"}, "Stroma is named more than once"),
        ({"objects": "annotation|cells"}, "cells is not a kind of object"),
        ({"class_property": "type|label"}, "--class-property"),
    ],
)
def test_a_flag_that_means_nothing_or_two_things_is_refused(folder, flags, says):
    with pytest.raises(SpecError, match=says):
        add_to(folder, **flags)


def test_order_and_fill_are_for_regions_only(folder):
    (folder / "masks").mkdir()
    for i in range(4):
        Image.fromarray(np.zeros((SIDE, SIDE), "uint8")).save(folder / "masks" / f"t{i}.png")
    for flags in ({"order": "a,b"}, {"skip": "Tumor"}, {"objects": "annotation"}, {"class_property": "type"}):
        with pytest.raises(SpecError, match="annotated regions"):
            add(
                folder / "m.yaml",
                "mine",
                folder,
                folder / "masks",
                labels="a=0,b=1",
                ignore="",
                mpp=None,
                groups="",
                split="2/1/1",
                seed=0,
                replace=False,
                **flags,
            )


def test_annotations_of_another_picture_are_refused(folder):
    far = [square("Tumor", 5000, 5000, 5020, 5020)]
    (folder / "t2.geojson").write_text(json.dumps(far))
    with pytest.raises(TileError, match="no region lies on the image"):
        add_to(folder)


def test_what_was_repaired_or_left_out_is_in_the_notes_of_a_check(folder):
    bow_tie = square("Tumor", 0, 0, 8, 8)
    ring = bow_tie["geometry"]["coordinates"][0]
    ring[1], ring[2] = ring[2], ring[1]
    point = {"type": "Feature", "geometry": {"type": "Point", "coordinates": [1, 1]}, "properties": {}}
    (folder / "t1.geojson").write_text(json.dumps([*regions(1), bow_tie, point]))
    notes = " ".join(check(add_to(folder)[0], "mine").notes)
    assert "1 regions whose outline crossed itself were repaired" in notes
    assert "no region (Point) (1)" in notes


def test_links_to_files_elsewhere_are_listed_where_they_are(folder):
    (folder / "elsewhere").mkdir()
    (folder / "t0.png").rename(folder / "elsewhere" / "far.png")
    (folder / "t0.png").symlink_to(folder / "elsewhere" / "far.png")
    listed, dataset = add_to(folder)
    assert dataset.tiles[0].image == "t0.png"
    assert check(listed, "mine").problems == []


def test_a_changed_annotation_is_found(folder):
    listed, dataset = add_to(folder)
    (folder / "t0.geojson").write_text(json.dumps(regions(5)))
    with pytest.raises(ManifestError, match="not the file that was listed"):
        mask_of(listed, dataset)


def test_a_tile_size_that_gives_another_um_per_px_than_the_dataset_asks_for_is_refused():
    dataset = FolderDataset(labels=(Label("a", "#000000"), Label("b", "#ffffff")), root=".", mpp=0.22, view_mpp=0.44)
    tile = Tile("t", np.zeros((1024, 1024, 3), "uint8"), np.zeros((1024, 1024), "uint8"), "", "")
    check_view_mpp(dataset, tile, 512)
    with pytest.raises(TileError, match="tile_px: 512") as error:
        check_view_mpp(dataset, tile, 256)
    assert error.value.found == "0.88 um/px"
    check_view_mpp(msgspec.structs.replace(dataset, view_mpp=None), tile, 256)


def with_cells(folder, *kinds):
    for i in range(4):
        cells = [square("Positive", 2, 6, 6, 10, objectType=kind) for kind in kinds]
        (folder / f"t{i}.geojson").write_text(json.dumps([*regions(i), *cells, square("", 0, 0, SIDE, SIDE)]))


def test_cells_and_unclassified_regions_over_tissue_can_be_as_if_not_drawn(folder):
    listed, dataset = add_to(folder)
    plain, before = mask_of(listed, dataset), mask_identity(Recipe(), "mine", dataset, {})
    assert not before.keys() & {"skip", "objects", "class_property"}  # identities of before these flags stay
    assert not {"skip", "objects", "class_property"} & set((folder / "data_manifest.yaml").read_text().split())
    with_cells(folder, "cell", "detection")
    with pytest.raises(TileError, match=r"Positive \(8\), \(no class\) \(4\)") as refused:
        add_to(folder)
    assert "cell (4), detection (4), with --objects annotation" in refused.value.next_step
    for flags in ({"skip": "Positive|(no class)"}, {"skip": "(no class)", "objects": "annotation"}):
        listed, dataset = add_to(folder, **flags)
        np.testing.assert_array_equal(mask_of(listed, dataset), plain)
        after = mask_identity(Recipe(), "mine", dataset, {})
        assert {key for key in after if after[key] != before.get(key)} == flags.keys()
        notes = " ".join(check(listed, "mine").notes)
        assert "skipped, as if not drawn: " in notes
        assert "(no class) (4)" in notes
    burnt = mask_of(*add_to(folder, ignore="Positive", skip="(no class)"))
    assert (burnt[6:10, 2:6] == 255).all()


def test_regions_without_a_class_can_have_a_label_and_a_class_of_that_look_is_another(folder):
    with_cells(folder)
    (folder / "t0.geojson").write_text(json.dumps([square("(no class)", 0, 0, 9, 9), square("", 9, 0, SIDE, SIDE)]))
    labels = LABELS + '|"(no class)",glass=(no class)'
    mask = mask_of(*add_to(folder, labels, order="glass,stroma,tumour,rest"))
    assert (mask[:9, :9] == 2).all()
    assert (mask[:, 9:] == 3).all()
    with pytest.raises(TileError, match=r'"\(no class\)" \(1\)'):
        add_to(folder, skip="(no class)")


def test_the_class_may_be_in_another_property_that_the_message_names(folder):
    plain = mask_of(*add_to(folder))
    for i in range(4):
        features = [
            f | {"properties": {"id": i, "type": f["properties"]["classification"]["name"]}} for f in regions(i)
        ]
        (folder / f"t{i}.geojson").write_text(json.dumps(features))
    with pytest.raises(TileError, match=r"no feature has properties\.classification") as refused:
        add_to(folder)
    assert "type (Necrosis" in refused.value.found
    assert "--class-property type;" in refused.value.next_step
    listed, dataset = add_to(folder, class_property="type")
    assert dataset.class_property == "type"
    np.testing.assert_array_equal(mask_of(listed, dataset), plain)
    with pytest.raises(TileError, match=r"no feature has properties\.label") as refused:
        add_to(folder, class_property="label")
    assert "type (" in refused.value.found


FOUND = re.compile(r'("(?:[^"\\]|\\.)*"|[^,]+?) \((\d+)\)(?:, |$)')
NAMES = st.text(max_size=8) | st.text('ab ,|=":\\#(', max_size=6) | st.just("(no class)")


@given(st.lists(NAMES, unique=True, min_size=1, max_size=3), st.sampled_from(["labels", "ignore", "skip"]))
@settings(max_examples=15)
def test_every_class_that_a_message_finds_can_be_given_back(tmp_path_factory, names, flag):
    folder = tmp_path_factory.mktemp("found")
    for i in range(4):
        Image.fromarray(np.full((SIDE, SIDE, 3), 50 * i, "uint8")).save(folder / f"t{i}.png")
        features = [*regions(i), *(square(name, 0, 0, 9, 9) for name in names)]
        (folder / f"t{i}.geojson").write_text(json.dumps(features))
    try:
        add_to(folder)
    except TileError as refused:
        found = {name for name, _ in FOUND.findall(refused.found)}
        new = "|".join(sorted(found - {"Tumor", "Tumor: invasive", "Stroma", "Necrosis"}))
        given_back = {"labels": f"{LABELS},odd={new}"} if flag == "labels" else {flag: new}
        _, dataset = add_to(folder, **given_back)
        meant = (
            dataset.skip if flag == "skip" else dataset.ignore_values if flag == "ignore" else dataset.labels[-1].values
        )
        assert set(meant) == set(names) - {"Tumor", "Tumor: invasive", "Stroma", "Necrosis"}


def test_the_way_that_the_message_names_works_when_it_is_typed(folder, monkeypatch):
    for i in range(4):
        (folder / f"t{i}.geojson").write_text(json.dumps([*regions(i), square('Tumor, "in situ"', 0, 0, 9, 9)]))
    monkeypatch.chdir(folder)
    typed = ["data", "add", "mine", "--images", ".", "--masks", ".", "--labels", LABELS, "--split", "2/1/1"]
    with pytest.raises(TileError) as refused:
        CliRunner().invoke(app, typed, catch_exceptions=False)
    way = shlex.split(refused.value.next_step.partition("such as ")[2].partition(";")[0])
    assert CliRunner().invoke(app, [*typed, *way]).exit_code == 0
    assert Manifest(folder / "data_manifest.yaml").dataset("mine").skip == ('Tumor, "in situ"',)
    assert CliRunner().invoke(app, ["data", "check", "mine"]).exit_code == 0


def test_adding_reports_once_what_was_left_out_repaired_or_never_there(folder):
    for i in range(4):
        cross = square("Tumor", 0, 0, 9, 9)
        cross["geometry"]["coordinates"] = [[[0, 0], [9, 9], [9, 0], [0, 9], [0, 0]]]
        point = {"type": "Feature", "geometry": {"type": "Point", "coordinates": [1, 1]}, "properties": {}}
        cell = square("Stroma", 0, 0, 2, 2, objectType="cell")
        drawn = [*regions(i), cross, point, cell, square("Fold", 0, 0, 3, 3)]
        (folder / f"t{i}.geojson").write_text(json.dumps(drawn))
    said = []
    add_to(folder, LABELS + "|Necrotic", ignore="Blood", skip="Fold|Pen", say=said.append)
    for line in (
        "note: 4 regions whose outline crossed itself were repaired",
        "note: features skipped, as if not drawn: Fold (4)",
        "note: features left out: no region (Point) (4)",
        "note: 8 regions reach beyond their image: check that their unit is pixels of this image, not of another level",
        "note: no region is of class Necrotic (--labels), Blood (--ignore), Pen (--skip): check the spelling",
        "note: regions are annotation (16), cell (4) objects, and all are drawn; choose some of them with --objects",
    ):
        assert said.count(line) == 1, said
    squares = []
    add_to(folder, LABELS, skip="Fold|Pen", say=squares.append, files=FileRules(square="crop", into=folder / "squares"))
    assert "note: features skipped, as if not drawn: Fold (4)" in squares


@pytest.mark.parametrize(
    ("drawn", "way"),
    [
        ("tumor", "give one label both, as Tumor|tumor"),
        ("Tumor ", 'give one label both, as Tumor|"Tumor "'),
        ("Tumor, Stroma", "--labels 'LABEL=\"Tumor, Stroma\",...'"),
    ],
)
def test_a_class_that_labels_nearly_have_is_reported_with_how_to_write_it(folder, drawn, way):
    for i in range(4):
        (folder / f"t{i}.geojson").write_text(json.dumps([*regions(i), square(drawn, 0, 0, 9, 9)]))
    with pytest.raises(TileError) as refused:
        add_to(folder)
    assert way in refused.value.next_step


def test_regions_that_all_lie_in_the_upper_left_quarter_are_reported(folder):
    for i in range(4):
        small = [square("Tumor", 0, 0, 8, 16), square("Stroma", 8, 0, 16, 16)]
        (folder / f"t{i}.geojson").write_text(json.dumps(small))
    said = []
    add_to(folder, "tumour=Tumor,stroma=Stroma", say=said.append)
    assert any("upper left quarter" in line for line in said)
