import pytest

from fmcache.errors import TileError
from fmcache.manifest import FolderDataset, Label
from fmcache.tiles.rims import with_rim


def dataset(*values, ignored=()):
    labels = tuple(Label(name, "#000000", its) for name, its in zip("ab", values, strict=True))
    return FolderDataset(labels=labels, root=".", ignore_values=ignored)


FEFEFE = -1 - 0xFEFEFE


@pytest.mark.parametrize(
    ("found", "number", "colour", "listed"),
    [
        (dataset((0,), (1,), ignored=(255,)), 255, None, (255,)),
        (dataset((0,), (1,)), 255, None, (255,)),
        (dataset((), ()), 255, None, (255,)),
        (dataset((0,), (1,), ignored=(9, "20-")), 9, None, (9, "20-")),
        (dataset((0,), (1,), ignored=(1000,)), 255, None, (1000, 255)),
        (dataset((0,), (255,)), 254, None, (254,)),
        (dataset(("#ffffff",), ("#000000",), ignored=(255,)), None, FEFEFE, (255, "#fefefe")),
        (dataset(("#ffffff",), ("#000000",), ignored=("#00ff00",)), None, -1 - 0x00FF00, ("#00ff00",)),
        (dataset((0,), ("#ffffff", 1)), 254, FEFEFE, (254, "#fefefe")),
    ],
)
def test_a_rim_is_a_value_that_is_ignored_and_one_is_found_where_none_is(found, number, colour, listed):
    rim = with_rim(found)
    assert (rim.number, rim.colour, rim.dataset.ignore_values) == (number, colour, listed)


def test_a_range_without_end_is_ended_where_it_leaves_no_value_for_a_rim():
    rim = with_rim(dataset((0,), ("1-",)))
    assert rim.number == 65535
    assert [label.values for label in rim.dataset.labels] == [(0,), ("1-65534",)]
    assert rim.dataset.ignore_values == (65535,)


def test_no_value_left_for_a_rim_is_an_error_only_where_one_is_needed():
    rim = with_rim(dataset((0,), ("1-70000",)))
    with pytest.raises(TileError, match="no mask value is free") as caught:
        rim.key(in_colour=False)
    assert "nucleus=1-65534" in caught.value.next_step
