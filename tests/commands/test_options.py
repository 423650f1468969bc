import io
import re
import sys

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.console import Group
from rich.table import Table

from fmcache.commands.options import say, show

NAMES = st.one_of(
    st.sampled_from(
        ["tumour [solid]", "tumour [/invasive]", "[bold]x[/]", ":smile:", "[link=x]y", "\\[x]", "肿瘤 [/x]"]
    ),
    st.text(alphabet="ab[]/:\\=#肿β⁺smile", min_size=1, max_size=12),
)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(NAMES, st.sampled_from(["24", "400"]))
def test_names_are_shown_whole_in_titles_heads_cells_captions_and_lines(capsys, monkeypatch, name, columns):
    monkeypatch.setenv("COLUMNS", columns)
    table = Table(name, title=name, caption=name)
    table.add_row(name)
    show(Group(table, name))
    shown = re.sub(r"[\s┃│━─┏┓┡┩└┘╇┴]", "", capsys.readouterr().out)
    assert shown == 5 * name.replace(" ", "")


def test_into_a_pipe_nothing_is_wrapped_however_wide(capsys, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    names = [f"a label with a long name, number {i}" for i in range(20)]
    line = ", ".join(names)
    table = Table(*names)
    table.add_row(*names)
    show(Group(table, line))
    lines = capsys.readouterr().out.splitlines()
    assert all(name in lines[1] and name in lines[3] for name in names)
    assert lines[-1] == line


def test_what_the_encoding_of_the_output_lacks_is_written_as_codes(monkeypatch):
    for encoding in ("ascii", "cp1252"):
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding=encoding))
        say("肿 tumour")
        show(Group(Table("肿 tumour", title="瘤"), "±"))
        sys.stdout.flush()
        written = sys.stdout.buffer.getvalue().decode(encoding)
        assert written.count("\\u80bf tumour") == 2
        assert "\\u7624" in written


def test_names_move_no_cursor_and_change_no_colour(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    name = "a\x1b[31mb\u202ec\x07"
    table = Table(name, title=name, caption=name)
    table.add_row(name)
    show(Group(table, name))
    shown = capsys.readouterr().out
    assert not set(shown) & {"\x1b", "\u202e", "\x07"}
    assert shown.count("a\\u001b[31mb\\u202ec\\u0007") == 5
