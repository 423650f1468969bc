"""Regions in other coordinates than pixels of their image are refused, or told where they could be meant."""

from pathlib import Path

import pytest
import shapely

from fmcache.errors import TileError
from fmcache.tiles.annotations import Annotation
from fmcache.tiles.placement import check_place


def notes(*boxes):
    return dict(check_place(Path("a.geojson"), [Annotation("x", shapely.box(*box)) for box in boxes], (100, 50)))


@pytest.mark.parametrize(
    ("boxes", "way"),
    [
        ([(0, 0, 0.5, 1), (0.5, 0, 1, 1)], "multiply them by its width and height"),
        ([(0, -50, 100, 0)], "change its sign"),
        ([(5000, 60, 5010, 70), (100, 0, 200, 50)], "of exactly this image"),
    ],
)
def test_other_coordinates_are_refused_with_the_way_to_pixels(boxes, way):
    with pytest.raises(TileError) as refused:
        notes(*boxes)
    assert way in refused.value.next_step


def test_what_reaches_beyond_the_image_or_lies_in_its_corner_is_counted():
    assert notes((0, 0, 100, 50)) == {}
    assert notes((-2, -2, 102, 52)) == {}
    assert notes((0, 0, 400, 200), (0, 0, 10, 10)) == {"beyond": 1}
    assert notes((0, 0, 50, 25), (10, 10, 20, 20)) == {"corner": 1}
