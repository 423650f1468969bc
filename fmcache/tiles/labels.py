"""What flags say of labels: their names, the mask values or classes that mean them, their order, what is ignored."""

from __future__ import annotations

from collections.abc import Sequence

from fmcache.errors import SpecError
from fmcache.manifest import IGNORE, Label, check_mask_values, mask_span

# Okabe & Ito 2008: told apart by people of all colour vision
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#f0e442", "#999999")


def parse_labels(text: str, regions: bool = False) -> tuple[Label, ...]:
    """Return labels from ``name=value|value,name=#rrggbb,...``; without values, a label's position is its value.

    With `regions`, values are names of classes (a ``#rrggbb`` among them is the label's colour), and the name of a
    label without any is its class.

    Raises
    ------
    SpecError
        When a part cannot be read.
    """
    labels = []
    for i, part in enumerate(text.split(",")):
        name, _, values = part.strip().partition("=")
        parsed = parse_classes(values) if regions else parse_values(values)
        colours = [value for value in parsed if isinstance(value, str) and value.startswith("#")]
        if regions:
            parse_values("|".join(colours))
            parsed = tuple(value for value in parsed if value not in colours)
        if not name:
            raise SpecError(f"--labels {text!r}: a label has no name", expected="such as 'other=0,tumour=1|2'")
        labels.append(Label(name, colours[0].lower() if colours else PALETTE[i % len(PALETTE)], parsed))
    return tuple(labels)


def parse_values(text: str) -> tuple[int | str, ...]:
    """Return mask values from ``0|2``, ``1-`` or ``#ff0000|#00ff00``.

    Raises
    ------
    SpecError
        When one is no number, range or ``#rrggbb``.
    """
    values = tuple(int(value) if value.isdecimal() else value.lower() for value in text.split("|") if value)
    try:
        check_mask_values(values)
    except ValueError as reason:
        raise SpecError(str(reason)) from None
    return values


def parse_classes(text: str) -> tuple[str, ...]:
    """Return names of classes from ``Tumor|Tumor: invasive``."""
    return tuple(name.strip() for name in text.split("|") if name.strip())


def parse_order(text: str, labels: Sequence[Label], ignored: Sequence[str]) -> tuple[str, ...]:
    """Return all classes from lowest to highest, from labels (whose classes keep their order) and classes.

    Raises
    ------
    SpecError
        When one is named twice, is unknown, or is left out.
    """
    classes = {label.name: tuple(str(v) for v in label.values) or (label.name,) for label in labels}
    known = {name for names in classes.values() for name in names} | set(ignored)
    parts = [part.strip() for part in text.split(",") if part.strip()]
    order = tuple(name for part in parts for name in classes.get(part, (part,)))
    if order and sorted(order) != sorted(known):
        raise SpecError(
            f"--order {text!r} does not name every class once",
            expected=f"from lowest to highest, labels or classes: {', '.join(sorted(known))}",
            found=", ".join(order),
            next_step="complete it",
        )
    return order


def ignored_values(text: str, labels: Sequence[Label]) -> tuple[int | str, ...]:
    """Return the values to ignore, less those that are a label's (so that the default 255 may be a label)."""
    used = [value for label in labels for value in label.values] or list(range(len(labels)))
    taken = any(low <= IGNORE <= high for low, high in map(mask_span, used))
    return tuple(value for value in parse_values(text) if value != IGNORE or not taken)
