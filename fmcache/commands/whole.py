"""Tables that are shown without any cut, on terminals of any width."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from fmcache.commands.options import WIDE, say, show

if TYPE_CHECKING:
    from rich.table import Table


def show_whole(table: Table) -> None:
    """Print a table. If the terminal is too narrow for it, print each row as a paragraph; cells are not broken."""
    from rich.console import Console
    from rich.measure import Measurement

    width = shutil.get_terminal_size((WIDE, 24)).columns
    unbounded = Console(width=10 * WIDE)
    if Measurement.get(unbounded, unbounded.options, table).maximum <= width:
        show(table)
        return
    titles = [str(column.header) for column in table.columns]
    for name, *cells in zip(*(column.cells for column in table.columns), strict=True):
        items = [f"{title}: {cell}" for title, cell in zip(titles[1:], cells, strict=True) if str(cell)]
        say(str(name) if items else f"\n{name}\n")  # a row with only a name is the heading of the rows below it
        for line in filled(items, width - 2) if items else ():
            say(f"  {line}")
    if table.caption:
        say("\n" + "\n".join(textwrap.fill(line, width) for line in str(table.caption).splitlines()))


def filled(items: Sequence[str], width: int) -> Iterator[str]:
    """Yield lines of items side by side. Only an item that is wider than a line is broken, between words."""
    line = ""
    for item in items:
        if line and len(line) + len(item) + 3 <= width:  # two characters between items, one after the last
            line += f"; {item}"
            continue
        if line:
            yield f"{line};"
        *whole, line = textwrap.wrap(item, width, break_long_words=False, break_on_hyphens=False) or [""]
        yield from whole
    yield line
