import numpy as np
import pytest
import shapely

from fmcache.datasets.region_flags import parse_rules
from fmcache.errors import SpecError
from fmcache.slides.regions import BARE, Regions
from fmcache.slides.slide import plan_grid
from fmcache.tiles.annotations import Annotation


def box(name, x0, y0, x1, y1):
    return Annotation(name, shapely.box(x0, y0, x1, y1))


def rules_of(labels="tumour=Tumor,stroma=Stroma|Fibrous", order="", fill="ignore", ignore="", skip=""):
    return parse_rules(labels, order=order, fill=fill, ignore=ignore, skip=skip)


def test_labels_hold_classes_and_colours_and_ids_follow_their_order():
    rules = rules_of("tumour=Tumor|#FF0000,Stroma", ignore="Artefact", skip="ROI")
    assert [(label.name, label.values) for label in rules.labels] == [("tumour", (0,)), ("Stroma", (1,))]
    assert rules.labels[0].colour == "#ff0000"
    assert rules.ids == {"Tumor": 0, "Stroma": 1, "Artefact": 255}
    assert (rules.fill, rules.order, rules.selection.skip) == (255, (), frozenset({"ROI"}))


def test_an_order_of_labels_becomes_one_of_classes():
    assert rules_of(order="stroma,tumour,Ink", ignore="Ink").order == ("Stroma", "Fibrous", "Tumor", "Ink")


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ({"labels": "=Tumor"}, "no name"),
        ({"labels": "a=X,a=Y"}, "a is named more than once"),
        ({"labels": "a=X,b=X"}, "X is named more than once"),
        ({"labels": "a=X,b=#12"}, "#rrggbb"),
        ({"ignore": "Tumor"}, "Tumor is named more than once"),
        ({"fill": "other"}, "'other' is not a label"),
        ({"order": "tumour"}, "every class once"),
        ({"order": "tumour,stroma,nobody"}, "every class once"),
    ],
)
def test_rules_that_cannot_be_meant_are_refused(flags, says):
    with pytest.raises(SpecError, match=says):
        rules_of(**flags)


def test_shares_of_every_tile_are_counted_on_the_grid_of_the_slide():
    regions = Regions(
        [
            box("Tumor", 0, 0, 64, 64),
            box("Stroma", 64, 0, 96, 64),
            box("Ink", 0, 64, 64, 96),
        ],
        rules_of(ignore="Ink"),
    )
    rows = []
    shares = regions.counts(plan_grid((200, 130), 0.5, (1.0,), 0.5, 64), rows.append)
    assert rows == [1, 1]
    assert shares.shape == (2, 3, 4)
    assert shares[0].tolist() == [[1, 0, 0, 0], [0, 0.5, 0.5, 0], [0, 0, 1, 0]]
    assert shares[1].tolist() == [[0, 0, 0.5, 0.5], [0, 0, 1, 0], [0, 0, 1, 0]]
    assert BARE != 255


def test_counts_agree_with_whole_masks_at_another_scale():
    rng = np.random.default_rng(1)
    corners = rng.integers(0, 900, (30, 2))
    drawn = [box(("Tumor", "Stroma")[i % 2], x, y, x + 150, y + 90) for i, (x, y) in enumerate(corners.tolist())]
    regions = Regions(drawn, rules_of())
    grid = plan_grid((1000, 800), 0.25, (1.0, 4.0), 0.44, 128)
    shares = regions.counts(grid, lambda n: None)
    for column in range(grid.columns):
        for row in range(grid.rows):
            mask = regions.mask(grid, column, row).mask
            slow = [(mask == value).mean() for value in (0, 1, 255)]
            assert np.abs(shares[row, column, :3] - slow).max() < 0.03


def test_the_mask_lies_on_the_place_and_scale_of_its_tile_and_regions_keep_their_order():
    drawn = [box("Tumor", 100, 100, 300, 300), box("Stroma", 200, 100, 400, 300)]
    grid = plan_grid((400, 400), 0.5, (1.0,), 1.0, 100)  # tiles of 200 px of level 0
    upper = Regions(drawn, rules_of()).mask(grid, 1, 0)
    assert (upper.mask[:50] == 255).all()
    assert (upper.mask[50:] == 1).all()
    assert upper.overlap == pytest.approx(0.25)
    turned = Regions(drawn, rules_of(order="stroma,tumour", fill="stroma")).mask(grid, 1, 0).mask
    assert (turned[:50] == 1).all()
    assert (turned[50:, :50] == 0).all()
    assert (turned[50:, 50:] == 1).all()
