"""The works that a report cites, as BibTeX. Known works are in references.yaml; any other text becomes a note."""

from __future__ import annotations

import functools
import re
import unicodedata
from pathlib import Path
from typing import NamedTuple

import yaml

from fmcache.report.escapes import escape_bibtex

_OTHER_SIGNS = re.compile(r"[^a-z0-9]+")


class Reference(NamedTuple):
    """A BibTeX entry. `fields` are BibTeX text by name; `cites` are the citation texts that stand for this work."""

    key: str
    kind: str
    fields: dict[str, str]
    cites: tuple[str, ...] = ()

    def bibtex(self) -> str:
        """Return the entry as BibTeX. Titles keep their capitals."""
        shown = {name: f"{{{text}}}" if name == "title" else text for name, text in self.fields.items()}
        lines = [f"  {name} = {{{text}}},\n" for name, text in shown.items()]
        return f"@{self.kind}{{{self.key},\n{''.join(lines)}}}\n"


class Bibliography:
    """Collects what a text cites. A citation is written as Pandoc does: ``[@key; @key]``."""

    def __init__(self) -> None:
        self._cited: dict[str, Reference] = {}
        self._noted: dict[str, str] = {}

    def cite(self, *keys: str, **fields: str) -> str:
        """Cite known works by key; `fields` are added to their entries."""
        for key in keys:
            known = known_works()[key]
            self._cited[key] = known._replace(fields=known.fields | fields)
        return f"[{'; '.join(f'@{key}' for key in keys)}]"

    def cite_text(self, text: str, *, name: str, title: str) -> str:
        """Cite the works that a citation text stands for.

        A text that is not known becomes the note of an entry called after `name`, with this `title`. All three may hold
        any characters.
        """
        text = " ".join(text.split())
        if keys := [work.key for work in known_works().values() if text in work.cites]:
            return self.cite(*keys)
        if text not in self._noted:
            self._noted[text] = key = self._unused(name)
            self._cited[key] = Reference(key, "misc", {"title": escape_bibtex(title), "note": escape_bibtex(text)})
        return f"[@{self._noted[text]}]"

    def bibtex(self) -> str:
        """Return the entries of all cited works, sorted by key."""
        return "\n".join(self._cited[key].bibtex() for key in sorted(self._cited))

    def _unused(self, name: str) -> str:
        letters = unicodedata.normalize("NFKD", name).lower()
        key = _OTHER_SIGNS.sub("-", letters).strip("-") or "work"
        taken, number = {*self._cited, *known_works()}, 1
        while (numbered := key if number == 1 else f"{key}-{number}") in taken:
            number += 1
        return numbered


@functools.cache
def known_works() -> dict[str, Reference]:
    """Return the works of references.yaml by key."""
    listed = yaml.safe_load(Path(__file__).with_name("references.yaml").read_text(encoding="utf-8"))
    works = {}
    for one in listed:
        fields = {name: str(value) for name, value in one.items() if name not in ("key", "kind", "cites")}
        works[one["key"]] = Reference(one["key"], one["kind"], fields, tuple(one.get("cites", ())))
    return works
