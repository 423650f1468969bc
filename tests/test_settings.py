"""Settings: typed values of dotted fields, their combinations, and names for people."""

import msgspec
import pytest

from fmcache import settings
from fmcache.errors import SpecError
from fmcache.settings import field_types, settings_of, short_name, typed_sweep, value_text, with_setting


class Inner(msgspec.Struct, frozen=True):
    low: int = 0
    high: int = 9
    rate: float = 0.5

    def __post_init__(self):
        if self.low > self.high:
            raise ValueError("low is above high")


class Outer(msgspec.Struct, frozen=True):
    name: str = "x"
    on: bool = False
    inner: Inner = Inner()


TYPES = field_types(Outer)


def typed(sweep):
    return typed_sweep(sweep, TYPES, {"name": "use another"}, lambda *at: f"file:3: {at}")


def test_fields_of_structs_are_named_with_dots_and_structs_themselves_are_not_listed():
    assert {"name": str, "on": bool, "inner.low": int, "inner.high": int, "inner.rate": float} == TYPES


def test_settings_are_all_combinations_and_the_last_field_changes_fastest():
    assert settings_of({"a": (1, 2), "b": ("x", "y")}) == [
        (("a", 1), ("b", "x")), (("a", 1), ("b", "y")), (("a", 2), ("b", "x")), (("a", 2), ("b", "y")),
    ]  # fmt: skip
    assert settings_of({}) == [()]


def test_a_setting_changes_its_fields_only_and_all_of_them_in_one_step():
    changed = with_setting(Outer(), [("inner.low", 20), ("on", True), ("inner.high", 30)])  # 20 alone would be refused
    assert changed == Outer(on=True, inner=Inner(20, 30, 0.5))
    with pytest.raises(ValueError, match="above"):
        with_setting(Outer(), [("inner.low", 20)])


def test_values_get_the_type_of_their_field():
    (values,) = typed({"inner.rate": [1, 0.5]}).values()
    assert [type(value) for value in values] == [float, float]


@pytest.mark.parametrize(
    ("sweep", "says"),
    [
        ({"inner.lwo": [1]}, ["no field 'inner.lwo'", "inner.low"]),
        ({"rate": [1]}, ["no field 'rate'", "such as inner.rate"]),
        ({"inner": [1]}, ["no field 'inner'", "such as inner.low"]),
        ({"name": ["x"]}, ["cannot be swept", "use another"]),
        ({3: [1]}, ["3 is not the name of a field"]),
        ({"on": True}, ["a list of values", "on: [True]"]),
        ({"on": "ab"}, ["a list of values"]),
        ({"on": []}, ["is empty", "delete the line"]),
        ({"on": [True, 1]}, ["('on', 1)", "'1' is not a value of on", "bool"]),
        ({"inner.low": [1, 2.5]}, ["('inner.low', 1)", "'2.5' is not a value of inner.low"]),
        ({"inner.low": [[1, 2]]}, ["'[1, 2]' is not a value of inner.low"]),
        ({"inner.rate": ["1e-4"]}, ["write 0.0001 with a point"]),
        ({"inner.rate": [1, 1.0]}, ["('inner.rate', 1)", "1 is listed twice"]),
        ({"inner.low": range(101), "inner.high": range(100)}, ["101 x 100 = 10,100 settings", "10,000"]),
    ],
)
def test_a_wrong_sweep_is_refused_with_its_place_and_what_to_do(sweep, says):
    with pytest.raises(SpecError) as error:
        typed(sweep)
    assert "file:3" in str(error.value)
    for text in says:
        assert text in str(error.value)
    assert error.value.next_step


def test_the_allowed_number_of_settings_is_still_allowed(monkeypatch):
    monkeypatch.setattr(settings, "MOST_SETTINGS", 6)
    assert len(settings_of(typed({"inner.low": [1, 2], "inner.high": [3, 4, 5]}))) == 6
    with pytest.raises(SpecError, match="2 x 4 = 8"):
        typed({"inner.low": [1, 2], "inner.high": [3, 4, 5, 6]})


def test_a_field_is_called_by_its_last_part_unless_another_field_ends_in_it():
    fields = ["views.seed", "fit.seeds", "fit.rate", "decoder.rate"]
    assert [short_name(field, fields) for field in fields] == ["seed", "seeds", "fit.rate", "decoder.rate"]


def test_values_are_written_short():
    values = (True, 5, 1e-4, 1e-5, 2.0, 1e22, 0.25, "float16-round5")
    assert [value_text(one) for one in values] == ["true", "5", "0.0001", "1e-5", "2", "1e22", "0.25", "float16-round5"]
