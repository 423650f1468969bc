"""Settings: values of fields by dotted name, such as ``fit.passes_per_epoch`` 5; a sweep lists several of each.

The module knows no recipe: `fmcache.specs` says which fields there are.
"""

from __future__ import annotations

import difflib
import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, TypeVar, get_args, get_origin

import msgspec

from fmcache.errors import SpecError

Value = bool | int | float | str
Setting = tuple[tuple[str, Value], ...]
"""(field, value) of each swept field, in the order of the sweep."""

MOST_SETTINGS = 10_000
"""A sweep with more settings is refused."""

S = TypeVar("S", bound=msgspec.Struct)


def field_types(kind: type[msgspec.Struct], before: str = "") -> dict[str, Any]:
    """Return the types of all fields of a struct by dotted name; a field that is itself a struct gives its fields."""
    found: dict[str, Any] = {}
    for field in msgspec.structs.fields(kind):
        name = f"{before}{field.encode_name}"
        inner = isinstance(field.type, type) and issubclass(field.type, msgspec.Struct)
        found |= field_types(field.type, f"{name}.") if inner else {name: field.type}
    return found


def typed_sweep(
    sweep: Mapping[str, Sequence[object]],
    types: Mapping[str, Any],
    refused: Mapping[str, str],
    where: Callable[..., str],
) -> dict[str, tuple[Value, ...]]:
    """Return a sweep with its values as the types of their fields.

    Parameters
    ----------
    types
        Types of all fields by dotted name.
    refused
        Fields that cannot be swept, with what to do instead.
    where
        Returns the place of a field, or of its value at a position, for messages.

    Raises
    ------
    SpecError
        When there is no such field, it cannot be swept, it has no value, a value has another type or stands there
        twice, or there are more than `MOST_SETTINGS` settings.
    """
    for field in sweep:
        _check_field(field, types, refused, where)
        _check_list(field, sweep[field], where)
    sizes = [len(values) for values in sweep.values()]
    if (n := math.prod(sizes)) > MOST_SETTINGS:
        raise SpecError(
            f"{where()}: {' x '.join(map(str, sizes))} = {n:,} settings are too many",
            expected=f"at most {MOST_SETTINGS:,}",
            next_step="list fewer values, or sweep fewer fields; several recipes can share the caches",
        )
    return {field: _typed(field, values, types[field], where) for field, values in sweep.items()}


def settings_of(sweep: Mapping[str, Sequence[Value]]) -> list[Setting]:
    """Return all combinations of the values of a sweep; the last field changes fastest. Without fields: one, empty."""
    return [tuple(zip(sweep, values, strict=True)) for values in itertools.product(*sweep.values())]


def with_setting(struct: S, setting: Iterable[tuple[str, Value]]) -> S:
    """Return a struct with the values of a setting; raises ValueError when the struct refuses them."""
    own: dict[str, object] = {}
    of_inner: dict[str, list[tuple[str, Value]]] = {}
    for field, value in setting:
        name, _, rest = field.partition(".")
        if rest:
            of_inner.setdefault(name, []).append((rest, value))
        else:
            own[name] = value
    # all fields are replaced in one step, because a struct may refuse combinations of them
    inner = {name: with_setting(getattr(struct, name), values) for name, values in of_inner.items()}
    return msgspec.structs.replace(struct, **own, **inner)


def short_name(field: str, fields: Iterable[str]) -> str:
    """Return the last part of a field's name; its whole name if another of `fields` ends in the same part."""
    last = field.rpartition(".")[2]
    return field if any(other != field and other.rpartition(".")[2] == last for other in fields) else last


def value_text(value: object) -> str:
    """Return a value as short text for tables and folders: ``true``, ``0.0001``, ``1e-5``, ``linear``."""
    if isinstance(value, bool):
        return str(value).lower()
    return (
        repr(value).replace("e-0", "e-").replace("e+", "e").removesuffix(".0")
        if isinstance(value, float)
        else str(value)
    )


def _check_field(
    field: object, types: Mapping[str, Any], refused: Mapping[str, str], where: Callable[..., str]
) -> None:
    if not isinstance(field, str):
        step = "put the name of a field there, such as fit.passes_per_epoch"
        raise SpecError(f"{where(field)}: {field!r} is not the name of a field", next_step=step)
    if field in refused:
        raise SpecError(f"{where(field)}: this field cannot be swept", next_step=refused[field])
    if field in types:
        return
    inner = [name for name in types if name.startswith(f"{field}.") or name.endswith(f".{field}")]
    near = inner or difflib.get_close_matches(field, types) or _near_parts(field, types)
    raise SpecError(
        f"{where(field)}: a recipe has no field {field!r} that could be swept",
        expected=f"the dotted name of a field{f', such as {_listed(near)}' if near else ''}",
        next_step="correct the name, or delete the line; fmcache init - lists all fields",
    )


def _near_parts(field: str, types: Mapping[str, Any]) -> list[str]:
    """Return the fields whose last part is nearly that of `field`."""
    lasts = difflib.get_close_matches(field.rpartition(".")[2], [name.rpartition(".")[2] for name in types])
    return [name for name in types if name.rpartition(".")[2] in lasts]


def _listed(names: Sequence[str]) -> str:
    # of the fields of `views`, the number of views is the one that was swept before dotted names existed
    first = sorted(names, key=lambda name: not name.endswith(".count"))[:3]
    return " or ".join(first)


def _check_list(field: str, values: object, where: Callable[..., str]) -> None:
    if isinstance(values, str) or not isinstance(values, Sequence):
        step = f"write {field}: [{values}]"
        raise SpecError(f"{where(field)}: expected a list of values", found=str(values), next_step=step)
    if not values:
        step = f"list at least one, such as {field}: [VALUE, VALUE], or delete the line"
        raise SpecError(f"{where(field)}: the list of values is empty", next_step=step)


def _typed(field: str, values: Sequence[object], kind: Any, where: Callable[..., str]) -> tuple[Value, ...]:
    typed: dict[Value, None] = {}
    for i, value in enumerate(values):
        try:
            one = msgspec.convert(value, kind, strict=True)
        except msgspec.ValidationError as reason:
            raise SpecError(
                f"{where(field, i)}: {str(value)[:60]!r} is not a value of {field}: {reason}",
                expected=", ".join(map(str, get_args(kind))) if get_origin(kind) is Literal else "",
                next_step=_number_step(value),
            ) from None
        if one in typed:
            step = "keep one of them"
            raise SpecError(f"{where(field, i)}: {value_text(one)} is listed twice", next_step=step)
        typed[one] = None
    return tuple(typed)


def _number_step(value: object) -> str:
    """Return how to write a number that YAML reads as text: 1e-4 lacks the point."""
    try:
        number = float(value) if isinstance(value, str) else math.nan
    except ValueError:
        number = math.nan
    if math.isnan(number):
        return "correct the value"
    return f"write {number} with a point and without quotes: YAML reads {value} as text"
