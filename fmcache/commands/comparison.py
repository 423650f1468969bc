"""What `fmcache report --compare` prints: what moved between two reports."""

from __future__ import annotations

from pathlib import Path

from fmcache.commands.options import say, show
from fmcache.identity import whole_file
from fmcache.report.compare import compare, markdown_comparison
from fmcache.report.tables import terminal

STDOUT = Path("-")


def print_comparison(old: Path, new: Path, study: str, markdown: Path | None) -> None:
    """Print what moved from the reports in `old` to those in `new` as tables, and write it as Markdown to a file.

    Where the file is `STDOUT`, only the Markdown is printed. Raises the errors of `compare`.
    """
    moves = compare(old, new, study)
    if markdown == STDOUT:
        say(markdown_comparison(moves).rstrip())
        return
    for one in moves:
        for shown in (one.title, *map(terminal, one.tables), *one.lines):
            show(shown)
    if markdown:
        with whole_file(markdown) as file:
            file.write(markdown_comparison(moves).encode())
        say(f"comparison: {markdown}")
