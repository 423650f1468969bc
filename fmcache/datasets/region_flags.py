"""Parse flags on annotated regions: the classes of each label, and the drawing order."""

from __future__ import annotations

from fmcache.datasets.label_flags import (
    IGNORED,
    classes_of,
    parse_classes,
    parse_fill,
    parse_labels,
    parse_order,
    refuse_twice,
)
from fmcache.manifest import IGNORE, Label
from fmcache.slides.regions import Rules
from fmcache.tiles.classes import Selection, parse_objects, parse_property


def parse_rules(
    labels: str, *, order: str, fill: str, ignore: str, skip: str, objects: str = "", class_property: str = ""
) -> Rules:
    """Return the rules that flags describe.

    Parameters
    ----------
    labels, order
        Texts in the form that `parse_labels` and `parse_order` read.
    fill
        A label, or ``ignore``, for pixels under no region.
    ignore, skip
        Classes separated by ``|``: drawn as ignored pixels, or left out.
    objects, class_property
        Texts in the form that `parse_objects` and `parse_property` read.

    Raises
    ------
    SpecError
        When a label or class is named more than once, or order or fill name an unknown label.
    """
    drawn, ignored, skipped = parse_labels(labels, regions=True), parse_classes(ignore), parse_classes(skip, "--skip")
    refuse_twice(drawn, ignored, skipped)
    filled = parse_fill(fill, drawn)
    ids = {name: i for i, label in enumerate(drawn) for name in classes_of(label)}
    return Rules(
        tuple(Label(label.name, label.colour, (i,)) for i, label in enumerate(drawn)),
        ids | dict.fromkeys(ignored, IGNORE),
        Selection(frozenset(skipped), frozenset(parse_objects(objects)), parse_property(class_property)),
        parse_order(order, drawn, ignored),
        IGNORE if filled == IGNORED else [label.name for label in drawn].index(filled),
    )
