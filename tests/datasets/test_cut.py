import json

import numpy as np
import pytest
import tifffile
from PIL import Image

from fmcache.datasets import cut as stage
from fmcache.datasets.check import check
from fmcache.datasets.cut import cut
from fmcache.datasets.cut_search import CutRequest
from fmcache.datasets.show import show
from fmcache.errors import ManifestError, NoRoom, SpecError, TileError
from fmcache.manifest import Manifest
from fmcache.tiles.images import read_tile

GRAIN = 3
COLOURS = {"Tumor": (120, 30, 140), "Stroma": (240, 150, 190)}


def feature(name, x0, y0, x1, y1):
    ring = [[x0, y0], [x1, y0], [x1, y1], [x0, y1], [x0, y0]]
    return {
        "type": "Feature",
        "geometry": {"type": "Polygon", "coordinates": [ring]},
        "properties": {"classification": {"name": name}},
    }


@pytest.fixture
def slides(tmp_path):
    """Four slides of 320 x 256 px at 0.5 um/px: upper half tumour, lower half stroma, right end unannotated glass."""
    (tmp_path / "geojson").mkdir()
    paths = []
    for i in range(4):
        pixels = np.full((256, 320, 3), 240 - i)
        pixels[:128, :256], pixels[128:, :256] = COLOURS["Tumor"], COLOURS["Stroma"]
        # a grain of its own: tiles of two slides are never the same image
        grain = np.random.default_rng(i).integers(-GRAIN, GRAIN + 1, pixels.shape)
        pixels = (pixels + grain).astype("uint8")
        paths.append(tmp_path / f"p{i // 2}_s{i}.tif")
        tifffile.imwrite(
            paths[-1], pixels, tile=(64, 64), photometric="rgb", resolution=(2e4, 2e4), resolutionunit="CENTIMETER"
        )
        drawn = [feature("Tumor", 0, 0, 256, 128), feature("Stroma", 0, 128, 256, 256)]
        (tmp_path / "geojson" / f"{paths[-1].stem}.geojson").write_text(
            json.dumps({"type": "FeatureCollection", "features": drawn})
        )
    return paths


def wanted(made, **changes):
    folder = made[0].parent
    plain = CutRequest(made, folder / "geojson", folder / "tiles", 0.5, 64, "tumour=Tumor,stroma=Stroma", split="4/2/2")
    return plain._replace(**changes)


def listed(slides):
    return Manifest(slides[0].parent / "m.yaml")


def do(made, replace=False, name="cut", **changes):
    said = []
    text = cut(made[0].parent / "m.yaml", name, wanted(made, **changes), replace, said.append)
    return text, said


def test_tiles_lie_on_their_annotations_and_no_slide_is_in_two_splits(slides):
    text, said = do(slides)
    dataset = listed(slides).dataset("cut")
    assert "8 tiles of 64 px at 0.5 um/px from 4 slides (80 on the grid, 64 annotated" in said[0]
    assert "train: 4 tiles of 2 slides, tumour 50 %, stroma 50 %" in text
    assert [len(dataset.splits.of(part)) for part in ("train", "val", "test")] == [4, 2, 2]
    assert dataset.mpp == 0.5
    for entry in dataset.tiles:
        tile = read_tile(dataset, entry, slides[0].parent)
        name, x, y = entry.id.rsplit("_", 2)
        assert entry.group == name
        assert int(x[1:]) < 256
        label = int(int(y[1:]) >= 128)
        assert (tile.mask == label).all()
        assert (abs(tile.image - np.array(list(COLOURS.values())[label])) <= GRAIN).all()
    assert check(listed(slides), "cut").problems == []
    assert show(listed(slides), "cut", slides[0].parent / "sheet.png").exists()


def test_positions_are_listed_and_masks_show_in_label_colours(slides):
    do(slides, labels="tumour=Tumor|#ff0000,stroma=Stroma")
    rows = (slides[0].parent / "tiles" / "positions.csv").read_text().splitlines()
    assert rows[0].startswith("tile,slide,split,x,y,edge_px,level,mpp,share_tumour,share_stroma,share_unannotated")
    assert len(rows) == 9
    tile = rows[1].split(",")[0]
    assert tile == f"{rows[1].split(',')[1]}_x{int(rows[1].split(',')[3]):06d}_y{int(rows[1].split(',')[4]):06d}"
    mask = Image.open(slides[0].parent / "tiles" / "masks" / f"{tile}.png")
    assert mask.mode == "P"
    assert mask.getpalette()[:3] == [255, 0, 0]


def test_the_same_cut_gives_the_same_bytes(slides):
    do(slides)
    do(slides, name="again", into=slides[0].parent / "tiles2")
    datasets = listed(slides).datasets
    assert datasets["cut"].tiles == datasets["again"].tiles
    assert datasets["cut"].splits == datasets["again"].splits


def test_an_interrupted_cut_leaves_whole_files_and_resumes(slides, monkeypatch):
    calls = []

    def stopping(*arguments):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return stage_read(*arguments)

    stage_read = stage.read_slide_tile
    monkeypatch.setattr(stage, "read_slide_tile", stopping)
    with pytest.raises(KeyboardInterrupt):
        do(slides)
    tiles = slides[0].parent / "tiles"
    assert not (slides[0].parent / "m.yaml").exists()
    assert len(list((tiles / "images").iterdir())) == 3
    for path in (tiles / "images").iterdir():
        Image.open(path).load()
    do(slides)
    assert len(calls) == 4 + 5
    do(slides, name="fresh", into=slides[0].parent / "fresh")
    assert listed(slides).datasets["cut"].tiles == listed(slides).datasets["fresh"].tiles


def test_tiles_cut_by_other_rules_are_never_mixed(slides):
    do(slides)
    with pytest.raises(ManifestError, match="cut by other rules") as caught:
        do(slides, name="other", mpp=1.0)
    assert "mpp: expected 0.5, found 1.0" in caught.value.found
    annotations = slides[0].parent / "geojson" / "p0_s0.geojson"
    annotations.write_text(annotations.read_text() + "\n")
    with pytest.raises(ManifestError, match="cut by other rules"):
        do(slides, name="other")
    do(slides, name="cut", mpp=1.0, tile_px=32, replace=True)
    assert len(list((slides[0].parent / "tiles" / "images").iterdir())) == 8
    assert check(listed(slides), "cut").problems == []
    (slides[0].parent / "full" / "images").mkdir(parents=True)
    (slides[0].parent / "full" / "images" / "mine.png").touch()
    with pytest.raises(ManifestError, match="holds other images"):
        do(slides, name="other", into=slides[0].parent / "full")


def test_without_sizes_the_split_is_scaled_to_what_is_annotated(slides):
    text, _ = do(slides, split="", tile_px=96, min_share=0.4)  # 24 tiles, 6 of each slide
    assert "19 tiles: split 10/3/6, 15/5/10 scaled" in text
    assert [len(listed(slides).dataset("cut").splits.of(part)) for part in ("train", "val", "test")] == [10, 3, 6]
    _, said = do(
        slides, split="", tile_px=96, min_share=0.4, group_by="tile", name="tiles", into=slides[0].parent / "t"
    )
    assert "cutting 24 tiles" in said[0]
    do(slides, split="", tiles=6, name="six", into=slides[0].parent / "six")
    assert [len(listed(slides).dataset("six").splits.of(part)) for part in ("train", "val", "test")] == [3, 1, 2]
    with pytest.raises(SpecError, match="--tiles 2 is less"):
        do(slides, split="", tiles=2, name="two")
    with pytest.raises(SpecError, match="are requested") as caught:
        do(slides, split="30/10/20", tile_px=96, min_share=0.4, name="many", into=slides[0].parent / "many")
    assert caught.value.next_step.startswith("pass --split 10/3/6, or")


def test_a_label_that_a_split_cannot_have_is_reported(slides):
    for slide in slides[1:]:
        path = slide.parent / "geojson" / f"{slide.stem}.geojson"
        path.write_text(path.read_text().replace("Stroma", "Tumor"))
    text, _ = do(slides)
    assert (
        "note: label 'stroma' is in 8 tiles of 1 group: test has it, train and val lack it; no split can avoid" in text
    )


@pytest.mark.parametrize(
    "flags", [{"name": "my cut"}, {"mpp": -0.5}, {"labels": "a=Tumor,a=Stroma"}, {"labels": "a=Tumor|Stroma"}]
)
def test_what_the_manifest_could_not_take_is_refused_before_anything_is_cut(slides, flags):
    before = sorted(slides[0].parent.rglob("*"))
    with pytest.raises((ManifestError, SpecError)):
        do(slides, **flags)
    assert sorted(slides[0].parent.rglob("*")) == before


def test_patients_are_kept_together(slides):
    with pytest.raises(SpecError, match="needs 3 annotated") as caught:
        do(slides, groups=r"^(p\d)")
    assert caught.value.found == "2"
    (slides[0].parent / "who.csv").write_text("tile,group\np0_s0,a\np0_s1,a\np1_s2,b\np1_s3,c\n")
    do(slides, groups=str(slides[0].parent / "who.csv"))
    dataset = listed(slides).dataset("cut")
    part = {tile: part for part in ("train", "val", "test") for tile in dataset.splits.of(part)}
    assert len({part[tile.id] for tile in dataset.tiles if tile.id.startswith("p0")}) == 1


def test_tiles_beyond_the_split_are_cut_and_left_out_of_it(slides):
    do(slides, tiles=14)
    dataset = listed(slides).dataset("cut")
    assert len(dataset.tiles) == 14
    assert sum(len(dataset.splits.of(part)) for part in ("train", "val", "test")) == 8
    with pytest.raises(SpecError, match="less than the split"):
        do(slides, name="few", tiles=3)


def test_one_slide_is_refused_unless_tiles_may_be_split_and_then_a_warning_is_given(slides):
    one = {"slides": slides[:1], "annotations": slides[0].parent / "geojson" / "p0_s0.geojson"}
    with pytest.raises(SpecError, match="--group-by tile"):
        do(slides, **one)
    _, said = do(slides, **one, group_by="tile")
    assert "WARNING: tiles of one slide are in several splits" in said[0]
    assert {tile.group for tile in listed(slides).dataset("cut").tiles} == {""}


def test_unknown_classes_of_all_slides_are_listed_with_counts_before_anything_is_written(slides):
    with pytest.raises(TileError, match=r"Stroma \(4\)") as caught:
        do(slides, labels="tumour=Tumor,necrosis=Necrosis")
    assert "--skip" in caught.value.next_step
    assert not (slides[0].parent / "tiles").exists()


def test_unannotated_pixels_become_the_fill_label(slides):
    do(slides, labels="tumour=Tumor,other=Stroma", fill="other", tile_px=96, min_share=0.4, split="2/1/1")
    result = check(listed(slides), "cut")
    assert result.pixels[:, 2].sum() == 0
    with pytest.raises(SpecError, match="19 tiles are requested") as caught:
        do(slides, name="other", min_share=1.0, tile_px=96, split="15/2/2", into=slides[0].parent / "x")
    assert caught.value.found.startswith("16 tiles of 96 px")


def test_enlarged_tiles_are_reported(slides):
    _, said = do(slides, mpp=0.25)
    assert sum("are enlarged and" in line for line in said) == 4


def test_mistakes_in_naming_are_answered(slides):
    folder = slides[0].parent
    with pytest.raises(SpecError, match="one file for 4 slides"):
        do(slides, annotations=folder / "geojson" / "p0_s0.geojson")
    (folder / "geojson" / "p1_s3.geojson").unlink()
    with pytest.raises(SpecError, match="1 of 4 slides have no annotations"):
        do(slides)
    with pytest.raises(SpecError, match="cannot be named"):
        do(slides, slides=[slides[0], slides[0]])
    with pytest.raises(SpecError, match="--split"):
        do(slides, split="4/2")
    for odd in (0.0, -0.5, float("nan"), float("inf")):
        with pytest.raises(SpecError, match=r"^--mpp: "):
            do(slides, mpp=odd)
        with pytest.raises(SpecError, match=r"^--mpp-of-slide "):
            do(slides, mpp_of_slide=odd)


def test_one_slide_under_two_names_is_found(slides):
    twin = slides[0].with_name("twin.tif")
    twin.write_bytes(slides[0].read_bytes())
    (twin.parent / "geojson" / "twin.geojson").write_bytes((twin.parent / "geojson" / "p0_s0.geojson").read_bytes())
    with pytest.raises(SpecError, match=r"twin.tif is the same slide as p0_s0"):
        do([*slides, twin])


def test_a_full_disk_is_reported_in_advance(slides, monkeypatch):
    monkeypatch.setattr(stage.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 1000})())
    with pytest.raises(NoRoom, match="too small for 8 tiles"):
        do(slides)
    assert not (slides[0].parent / "tiles" / "images").exists()


def test_annotations_of_another_image_are_refused_and_those_reaching_beyond_the_slide_reported(slides):
    path = slides[0].parent / "geojson" / "p0_s0.geojson"
    document = json.loads(path.read_text())
    beyond = {**document, "features": [*document["features"], feature("Tumor", 300, 0, 900, 9)]}
    path.write_text(json.dumps(beyond))
    _, said = do(slides)
    assert "1 of 3 regions reach beyond the slide (p0_s0 has 320 x 256 px)" in said[0]
    path.write_text(json.dumps({**document, "features": [feature("Tumor", 400, 0, 900, 9)]}))
    with pytest.raises(TileError, match="no annotation lies on the slide"):
        do(slides, name="other")


def test_cells_are_left_out_by_their_kind_and_the_rule_is_kept_with_the_tiles(slides):
    do(slides)
    folder = slides[0].parent
    rules = json.loads((folder / "tiles" / "cut.json").read_text())
    assert not rules.keys() & {"objects", "class_property"}  # folders cut before these flags go on as they are
    for path in (folder / "geojson").iterdir():
        document = json.loads(path.read_text())
        for one in document["features"]:
            one["properties"]["label"] = one["properties"].pop("classification")["name"]
        cell = feature("", 0, 0, 256, 256)
        cell["properties"] = {"objectType": "cell", "label": "Positive"}
        path.write_text(json.dumps(document | {"features": [*document["features"], cell]}))
    with pytest.raises(TileError, match=r"no feature has properties\.classification") as refused:
        do(slides, name="other", into=folder / "tiles2")
    assert "--class-property label" in refused.value.next_step
    with pytest.raises(TileError, match=r"Positive \(4\)") as refused:
        do(slides, name="other", into=folder / "tiles2", class_property="label")
    assert "--objects annotation" in refused.value.next_step
    _, said = do(slides, name="other", into=folder / "tiles2", class_property="label", objects="annotation")
    assert sum("features skipped, as if not drawn: cell objects (1)" in line for line in said) == 4
    datasets = listed(slides).datasets
    assert [tile.mask_sha256 for tile in datasets["other"].tiles] == [
        tile.mask_sha256 for tile in datasets["cut"].tiles
    ]
    rules = json.loads((folder / "tiles2" / "cut.json").read_text())
    assert (rules["objects"], rules["class_property"]) == (["annotation"], "label")


def test_slides_of_one_name_in_patient_folders_are_cut_and_patients_kept_together(slides):
    folder = slides[0].parent
    moved = []
    for i, slide in enumerate(slides):
        patient = folder / f"patient{i // 2 + i // 3}"  # two slides of the first patient
        patient.mkdir(exist_ok=True)
        moved.append(slide.rename(patient / ("b.tif" if i == 1 else "a.tif")))
        (folder / "geojson" / f"{slide.stem}.geojson").rename(patient / f"{moved[-1].name}.geojson")
    _, said = do(slides, slides=moved, annotations=folder)
    assert "folders are used as patients: patient0, patient1, patient2" in said[0]
    tiles = listed(slides).dataset("cut").tiles
    names = {(tile.id.rsplit("_", 2)[0], tile.group) for tile in tiles}
    assert names == {
        ("patient0-a", "patient0"),
        ("b", "patient0"),
        ("patient1-a", "patient1"),
        ("patient2-a", "patient2"),
    }
    who = folder / "who.csv"
    who.write_text("tile,group\npatient0-a,x\nb,y\npatient1-a,z\npatient2-a,z\n")
    do(slides, slides=moved, annotations=folder, groups=str(who), name="other", into=folder / "tiles2")
    assert {tile.group for tile in listed(slides).dataset("other").tiles} == {"x", "y", "z"}


def test_folders_that_may_be_patients_are_reported(slides):
    (slides[0].parent / "p").mkdir()
    moved = [slide.rename(slide.parent / "p" / slide.name) for slide in slides[:2]]
    _, said = do(slides, slides=[*moved, *slides[2:]])
    assert "slides lie in several folders" in said[0]
    assert "--groups" in said[0]


def test_a_class_that_no_slide_has_and_a_slide_without_regions_are_reported(slides):
    (slides[0].parent / "geojson" / f"{slides[3].stem}.geojson").write_text(
        '{"type": "FeatureCollection", "features": []}'
    )
    _, said = do(slides, split="2/2/2", skip="Necrosis")
    assert "note: no region is of class Necrosis (--skip): check the spelling" in said
    assert any("holds no regions: no tile is cut from" in line for line in said)
    assert len(listed(slides).dataset("cut").tiles) == 6


def test_a_label_that_a_small_split_lacks_is_not_called_rare(slides):
    text, _ = do(slides, split="2/1/2")
    assert "val lacks it; no split of these sizes" in text
