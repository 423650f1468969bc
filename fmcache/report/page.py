"""The report as one HTML page that needs no network: answers first, then tables, figures, pictures and the method.

Nothing is loaded from elsewhere. A Content-Security-Policy allows only the page's own style and script, by their
hashes, so that markup in a name can neither run nor load anything. The same results give the same bytes.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import io
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import resources
from typing import Any, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

from fmcache.report.facts import facts_tables, recipe_text
from fmcache.report.figures import caption
from fmcache.report.findings import Findings
from fmcache.report.picture_rows import Picture, PictureRow, PictureRows
from fmcache.report.report_table import ReportTable
from fmcache.report.sentences import opening
from fmcache.report.sweep import SweptDataset
from fmcache.scores.records import RunRecord

MAIN_FIGURES = ("intervals", "labels")
"""The figure of the first screen: the first of these that there is."""

LARGE_SVG_BYTES = 400_000
"""A larger SVG is replaced by its PNG if that is smaller: thousands of lines and points."""

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


class Group(NamedTuple):
    """A part of a dataset's section: the names of its tables and figures, in order."""

    id: str
    title: str
    tables: tuple[str, ...]
    figures: tuple[str, ...]


GROUPS = (
    Group("scores", "Scores", ("dice", "scores", "labels"), ("labels",)),
    Group("sure", "How sure", ("controls", "paper"), ("ranks", "pairs")),
    Group("cost", "Cost", ("costs",), ("cost", "size")),
    Group("pictures", "Pictures", (), ()),
    Group("training", "Training", (), ("curves",)),
    Group("facts", "How it was done", ("facts", "encoders"), ()),
)


class DatasetPart(NamedTuple):
    """What the page shows of one dataset. `figures` are files by name (``NAME.svg``, ``NAME.png``)."""

    findings: Findings
    tables: Sequence[ReportTable]
    figures: Mapping[str, bytes]
    pictures: PictureRows | None = None


class StudyPart(NamedTuple):
    """What the page shows of the whole study: tables and figures across datasets, the method, references, damage."""

    tables: Sequence[ReportTable] = ()
    figures: Mapping[str, bytes] = {}
    method: Sequence[str] = ()
    bibtex: str = ""
    damaged: Sequence[str] = ()


class SweepPart(NamedTuple):
    """What the page of a sweep shows of one dataset. `figures` are the files of one figure by name."""

    swept: SweptDataset
    sentences: Sequence[str]
    tables: Sequence[ReportTable]
    figures: Mapping[str, bytes]
    caption: str


def page(parts: Sequence[DatasetPart], study: StudyPart) -> bytes:
    """Return the page of a study as UTF-8; `parts` has at least one dataset."""
    summary = parts[0].findings.summary
    record = summary.record
    ends = [("study", "All datasets")] if study.tables or study.figures else []
    ends += [
        (id_, id_.capitalize()) for id_, there in (("method", study.method), ("references", study.bibtex)) if there
    ]
    ends.append(("recipe", "Recipe"))
    return _rendered(
        study=record.study,
        question=_question(record),
        sections=[_section(part, f"d{i}") for i, part in enumerate(parts)],
        tables=study.tables,
        figures=list(_drawings(study.figures, functools.partial(caption, summary=summary), "").items()),
        ends=ends,
        method=study.method,
        bibtex=study.bibtex,
        recipe=recipe_text(record.recipe),
        damaged=study.damaged,
    )


def sweep_page(parts: Sequence[SweepPart], recipe: str, damaged: Sequence[str]) -> bytes:
    """Return the page of a sweep as UTF-8; `parts` has at least one dataset, `recipe` is the recipe as YAML."""
    (first, *_) = parts
    return _rendered(
        study=first.swept.name,
        question=_question(first.swept.first.summary.record),
        sections=[_sweep_section(part, f"d{i}") for i, part in enumerate(parts)],
        tables=(),
        figures=(),
        ends=[("recipe", "Recipe")],
        method=(),
        bibtex="",
        recipe=recipe,
        damaged=damaged,
    )


def _question(record: RunRecord) -> list[str]:
    lines = [record.recipe["question"], f"Expected: {record.recipe['expect']}" if record.recipe["expect"] else ""]
    return [line for text in lines for line in text.splitlines() if line.strip()]


def _rendered(**content: Any) -> bytes:
    style, script = _text("report.css"), _text("report.js")
    text = (
        _environment()
        .get_template("report.html.j2")
        .render(
            style=Markup(style),  # noqa: S704 - files of this package
            script=Markup(script),  # noqa: S704
            style_hash=_hash(style),
            script_hash=_hash(script),
            numeric_columns=_numeric_columns,
            **content,
        )
    )
    return text.encode("utf-8", "replace")


def _sweep_section(part: SweepPart, id_: str) -> dict[str, Any]:
    record = part.swept.first.summary.record
    drawings = _drawings(part.figures, lambda _: part.caption, "")
    group = {"id": "settings", "title": "By setting", "tables": part.tables, "figures": (), "pictures": None}
    return {
        "id": id_,
        "title": record.dataset_title or record.dataset,
        "opening": None,
        "sentences": part.sentences,
        "main": next(iter(drawings.items()), None),
        "groups": [group],
    }


def _section(part: DatasetPart, id_: str) -> dict[str, Any]:
    record = part.findings.summary.record
    words = functools.partial(caption, summary=part.findings.summary)
    drawings = _drawings(part.figures, words, _means(part.findings))
    main = next((name for name in MAIN_FIGURES if name in drawings), None)
    return {
        "id": id_,
        "title": record.dataset_title or record.dataset,
        "opening": opening(part.findings),
        "sentences": (),
        "main": (main, drawings.pop(main)) if main else None,
        "groups": list(_groups(part, drawings)),
    }


def _groups(part: DatasetPart, drawings: dict[str, dict[str, str]]) -> Iterator[dict[str, Any]]:
    """Yield the groups that have content; the last holds tables and figures that no group names."""
    tables = {table.name: table for table in [*part.tables, *facts_tables(part.findings.summary)]}
    for group in GROUPS:
        found = {
            "id": group.id,
            "title": group.title,
            "tables": [tables.pop(name) for name in group.tables if name in tables],
            "figures": [(name, drawings.pop(name)) for name in group.figures if name in drawings],
            "pictures": _embedded(part.pictures) if group.id == "pictures" and part.pictures else None,
        }
        if found["tables"] or found["figures"] or found["pictures"]:
            yield found
    if tables or drawings:
        rest = {"tables": list(tables.values()), "figures": list(drawings.items()), "pictures": None}
        yield {"id": "more", "title": "More"} | rest


def _drawings(files: Mapping[str, bytes], words: Callable[[str], str], means: str) -> dict[str, dict[str, str]]:
    """Return caption, alternative text and data URI of each figure."""
    found = {}
    for name in dict.fromkeys(file.rpartition(".")[0] for file in files):
        svg, png = files.get(f"{name}.svg"), files.get(f"{name}.png")
        if svg is not None and not (len(svg) > LARGE_SVG_BYTES and png is not None and len(png) < len(svg)):
            uri = _uri("image/svg+xml", svg)
        elif png is not None:
            uri = _uri("image/png", png)
        else:
            continue
        text = words(name)
        found[name] = {"caption": text, "alt": f"{text} {means}".strip(), "uri": uri}
    return found


def _means(findings: Findings) -> str:
    """Return the main numbers of a dataset as a sentence, for readers who do not see its figures."""
    rows = findings.summary.rows
    means = [f"{row.encoder.display} {100 * row.mean[-1]:.1f}%" for row in rows if row.mean[-1] == row.mean[-1]]
    return f"Mean Dice: {', '.join(means)}." if means else ""


def _embedded(rows: PictureRows) -> dict[str, Any]:
    """Return picture rows with data URIs and sizes in place of files."""

    def of(row: PictureRow) -> dict[str, Any]:
        return {"title": row.title, "tile": row.tile, "pictures": [_picture(picture) for picture in row.pictures]}

    kinds = {"compared": rows.compared, "encoders": rows.encoders, "tokens": rows.tokens}
    shown = {name: [of(row) for row in some] for name, some in kinds.items()}
    return shown | {"legend": rows.legend, "notes": rows.notes}


def _picture(picture: Picture) -> dict[str, Any]:
    width, height = Image.open(io.BytesIO(picture.file)).size
    uri = _uri(picture.mime, picture.file)
    return {
        "name": picture.name,
        "about": picture.about,
        "alt": picture.alt,
        "uri": uri,
        "width": width,
        "height": height,
    }


def _numeric_columns(table: ReportTable) -> list[bool]:
    """Return for each column whether it holds numbers."""
    return [any(row.cells[at].value is not None for row in table.rows) for at in range(len(table.columns))]


def _uri(mime: str, content: bytes) -> str:
    return f"data:{mime};base64,{base64.b64encode(content).decode()}"


def _hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _text(name: str) -> str:
    return resources.files("fmcache.report").joinpath("templates", name).read_text(encoding="utf-8")


@functools.cache
def _environment() -> Environment:
    loader = PackageLoader("fmcache.report")
    return Environment(loader=loader, autoescape=True, undefined=StrictUndefined, finalize=_without_controls)


def _without_controls(value: Any) -> Any:
    """Return text without control characters, which HTML does not allow even when escaped."""
    return _CONTROL.sub(" ", value) if type(value) is str else value
