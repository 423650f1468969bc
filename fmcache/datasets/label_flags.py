"""Parse flags on labels: names, their mask values or classes, drawing order, and ignored values or classes."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Sequence

from fmcache.errors import SpecError
from fmcache.manifest import IGNORE, Label, check_mask_values, mask_span
from fmcache.quoting import COLON, Word, alternatives, quoted, refuse_signs, split_at, tokens_of, with_whole_name

# Okabe & Ito 2008: distinguishable also with colour vision deficiency
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#f0e442", "#999999")

IGNORED = "ignore"
TAKEN = {IGNORED: "ignore means no label", "mean": "reports use mean for the mean over labels"}
"""Names that a flag cannot give to a label, with the reason."""


def parse_labels(text: str, regions: bool = False) -> tuple[Label, ...]:
    """Return labels from ``name=value|value,name=#rrggbb,...``; without values, a label's position is its value.

    With `regions`, values are names of classes, and an unquoted ``#rrggbb`` among them is the label's colour. A label
    without classes has its own name as its class.

    Raises
    ------
    SpecError
        When a part cannot be read.
    """
    parts = list(split_at(tokens_of(text, "--labels"), ","))
    if len(parts) > 1 and not parts[-1]:
        del parts[-1]  # a comma at the end
    labels = tuple(_label(i, part, text, regions) for i, part in enumerate(parts))
    bare = [label.name for label in labels if not label.values]
    if not regions and 0 < len(bare) < len(labels):
        raise SpecError(
            f"--labels {text!r}: {', '.join(map(quoted, bare))} without a mask value, others with one",
            expected="a value for each label, or for none (then a label's position is its value)",
            next_step=f"add the missing values, such as {quoted(bare[0])}=0",
        )
    return labels


def parse_values(text: str) -> tuple[int | str, ...]:
    """Return mask values from ``0|2``, ``1-`` or ``#ff0000|#00ff00``.

    Raises
    ------
    SpecError
        When one is not a number, range or ``#rrggbb``.
    """
    return _values("--ignore", (word.text for word in alternatives(text, "--ignore")))


def parse_classes(text: str, flag: str = "--ignore") -> tuple[str, ...]:
    """Return names of classes from ``Tumor|Tumor: invasive|"Tumor, other"``; empty for ``(no class)``.

    Raises
    ------
    SpecError
        When the text cannot be read.
    """
    return tuple(word.as_class for word in alternatives(text, flag))


def parse_order(text: str, labels: Sequence[Label], ignored: Sequence[str]) -> tuple[str, ...]:
    """Return all classes from lowest to highest; the text may name labels (their classes keep their order) or classes.

    Raises
    ------
    SpecError
        When a class is named twice, is unknown, or is missing.
    """
    classes = {label.name: classes_of(label) for label in labels}
    known = {name for names in classes.values() for name in names} | set(ignored)
    tokens = tokens_of(text, "--order")
    refuse_signs(tokens, text, "--order", "|=", ",")
    words = [token for token in tokens if isinstance(token, Word)]
    order = tuple(
        name
        for word in words
        for name in ([""] if word.as_class == "" and "" in known else classes.get(word.text, [word.as_class]))
    )
    if order and sorted(order) != sorted(known):
        raise SpecError(
            f"--order {text!r} does not name every class once",
            expected=f"labels or classes, from lowest to highest, for all of "
            f"{', '.join(quoted(name) for name in sorted(known))}",
            found=", ".join(quoted(name) for name in order),
            next_step="name every class once",
        )
    return order


def parse_fill(text: str, labels: Sequence[Label]) -> str:
    """Return the label that `--fill` names for pixels in no region, or ``ignore``.

    Raises
    ------
    SpecError
        When no label has that name.
    """
    names = [label.name for label in labels]
    words = [token for token in tokens_of(text, "--fill") if isinstance(token, Word)]
    fill = words[0] if len(words) == 1 else Word(text)
    if fill.text == IGNORED and fill.quoted:
        raise SpecError(f"--fill {text!r}: ignore means no label", next_step="give that label another name")
    if fill.text not in (*names, IGNORED):
        raise SpecError(
            f"--fill {text!r} is not a label",
            expected=", ".join([*(quoted(name) for name in names), IGNORED]),
            next_step="name one of them",
        )
    return fill.text


def refuse_twice(labels: Sequence[Label], ignored: Sequence[str], skipped: Sequence[str]) -> None:
    """Raise SpecError when two labels have the same name, or a class is named twice: in labels, ignored or skipped."""
    names = [label.name for label in labels]
    classes = [name for label in labels for name in classes_of(label)]
    for twice in (name for group in (names, [*classes, *ignored, *skipped]) for name in group if group.count(name) > 1):
        raise SpecError(
            f"{quoted(twice)} is named more than once", next_step="name it once in --labels, --ignore and --skip"
        )


def ignored_values(text: str, labels: Sequence[Label]) -> tuple[int | str, ...]:
    """Return the values to ignore; 255, the default, is left out if it is the value of a label."""
    used = [value for label in labels for value in label.values] or list(range(len(labels)))
    taken = any(low <= IGNORE <= high for low, high in map(mask_span, used))
    return tuple(value for value in parse_values(text) if value != IGNORE or not taken)


def classes_of(label: Label) -> tuple[str, ...]:
    """Return the names of the classes that belong to a label of annotated regions."""
    return tuple(str(value) for value in label.values) or (label.name,)


def _label(place: int, part: list[Word | str], text: str, regions: bool) -> Label:
    part = with_whole_name(part, text)
    if not part or not isinstance(part[0], Word) or not part[0].text:
        raise SpecError(
            f"--labels {text!r}: a label has no name",
            expected="such as 'other=0,tumour=1|2'",
            next_step="put a name before each '=', and remove extra commas",
        )
    name, values = part[0], part[2:]
    if len(part) == 1 and not name.quoted and (colon := COLON.search(name.text)):
        left, right = name.text[: colon.start()].strip(), name.text[colon.start() + 1 :].strip()
        raise SpecError(
            f"--labels {text!r}: {name.text!r} has a ':' where '=' is expected",
            expected=f"{quoted(left)}={right}",
            next_step=f"write '='; if this is the whole name of a label, write {quoted(name.text)}",
        )
    if name.text.lower() in TAKEN and (not name.quoted or name.text.lower() != IGNORED):
        raise SpecError(
            f"--labels {text!r}: {TAKEN[name.text.lower()]}",
            next_step="give that label another name"
            + (
                "; to leave pixels out, name their values or classes in --ignore"
                if name.text.lower() == IGNORED
                else ""
            ),
        )
    parted = re.sub(r"\s*[;\n]\s*", ",", text.strip())
    if "=" in values and parted != text.strip():
        raise SpecError(
            f"--labels {text!r}: labels must be separated by ','",
            expected=parted,
            next_step=f"--labels {shlex.quote(parted)}; put a name that contains ; or a line break into double quotes",
        )
    if (len(part) > 1 and part[1] != "=") or "=" in values:
        raise SpecError(
            f"--labels {text!r}: cannot be read",
            expected="name=value|value,name=value,...",
            next_step="put a name that contains '=' or '|' into double quotes, such as 'tumour=\"a=b\"'",
        )
    words = [word for word in values if isinstance(word, Word)]
    colours = [word.text for word in words if word.text.startswith("#") and not word.quoted]
    if regions:
        _values("--labels", colours)
        parsed: tuple[int | str, ...] = tuple(w.as_class for w in words if w.quoted or not w.text.startswith("#"))
        if not parsed and not name.as_class:
            parsed = ("",)
    else:
        parsed = _values("--labels", (word.text for word in words))
        colours = [value for value in parsed if isinstance(value, str) and value.startswith("#")]
    return Label(name.text, colours[0].lower() if colours else PALETTE[place % len(PALETTE)], parsed)


def _values(flag: str, texts: Iterable[str]) -> tuple[int | str, ...]:
    try:
        values = tuple(int(value) if value.isdecimal() else value.lower() for value in texts)
        check_mask_values(values)
    except ValueError as reason:
        written = "NAME=VALUE|VALUE,..., such as 'other=0,tumour=1|2'" if flag == "--labels" else "such as '0|255'"
        raise SpecError(f"{flag}: {reason}"[:250], next_step=f"write {written}") from None
    return values
