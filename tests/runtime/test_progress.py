import io
import sys

import pytest

from fmcache.runtime.progress import progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("title", ["checking [/x]", "[bold]x[/]", "a {task} :smile:", "%s"])
@pytest.mark.parametrize("stream", [Terminal, io.StringIO])
def test_a_title_is_shown_as_it_is(monkeypatch, title, stream):
    monkeypatch.setattr(sys, "stderr", stream())
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("TERM", "dumb")
    with progress(title, 2, "tiles") as tick:
        tick(2)
    assert title in sys.stderr.getvalue()
