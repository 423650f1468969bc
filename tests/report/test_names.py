"""Names that users choose come out whole in every output: in Markdown, LaTeX, CSV, SVG and the terminal."""

import csv
import io
import re
import xml.etree.ElementTree as ET

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from fmcache.report import tables
from fmcache.report.dataset_tables import dataset_tables, dice_by_encoder
from fmcache.report.escapes import escape_latex, escape_markdown
from fmcache.report.figure_style import names_shown, rendered
from fmcache.report.findings import find
from fmcache.report.frames import csv_text
from fmcache.report.run_figures import dice_by_label
from fmcache.report.sweep import sweep_tables, swept_datasets
from fmcache.report.sweep_figures import sweep_figure
from fmcache.stages.report import report

NASTY = [
    "tumour [solid]", "tumour [/invasive]", "pT|stroma <50%", "[bold red]x[/]", ":smile: :x:", "a_b_", "_a_", "__a__",
    "*a* **b**", "`code`", "$x^2$", "\\alpha", "a\\", "\\|", "&amp; &#42; &", "<b>x</b>", "<!-- x", "[a](b)", "[a]: b",
    "![i](j)", "# head", "1. one", "12) twelve", "- item", "+ item", "=1+1", "@sum", "~~gone~~", "a~b^c", "{x}", "50%",
    '"quoted", twice', "'single'", "''", "a--b", "---", "$", "$$", "\\$x\\$", "[x] done", "> quote", "<http://a.b>",
    "β-间质 CD8⁺", "Tumör · naïve", "https://a_b.c/_d", "| |", "%{x}", "// c", "-", "_", "*", "[", "]", "<", "&lt;",
]  # fmt: skip
NAMES = st.one_of(
    st.sampled_from(NASTY),
    st.text(alphabet="ab1 []()/|<>%_&$#{}~^\\`*\"'=+-!:;.,@?", min_size=1, max_size=12),
    st.text(alphabet=st.characters(exclude_categories=("C", "Z")), min_size=1, max_size=8),
).filter(lambda name: name == name.strip())
OTHERS = ["Mean over labels, by score", "Scores of every label", "Costs", "How it was done"]
PARSER = MarkdownIt("commonmark").enable(["table", "strikethrough"])


def study_of(part, labels, titles, **fields):
    counts = [(8, 2, 2)] * len(labels)
    coloured = tuple((label, "#ff0000") for label in labels)
    return find(
        [
            part(f"e{i}", 0, *counts, validated=counts, labels=coloured, title=title, **fields)
            for i, title in enumerate(titles)
        ]
    )


def drawn_labels(found):
    return rendered("labels", lambda write: dice_by_label(found, write), names_shown(found.summary))


def text_of(inline):
    """The text of a Markdown cell or paragraph; nothing else is allowed there but our own bold and underline."""
    ours = ("strong_open", "strong_close", "html_inline")
    for token in inline.children:
        assert token.type in ("text", *ours), token
        assert token.type != "html_inline" or token.content in ("<u>", "</u>")
    return "".join(token.content for token in inline.children if token.type == "text")


def rows_of(text):
    """The cells of the tables in a Markdown text, row by row."""
    tokens = PARSER.parse(text)
    cells = [text_of(tokens[i + 1]) for i, token in enumerate(tokens) if token.type in ("th_open", "td_open")]
    width = [token.type for token in tokens].index("thead_close")
    width = sum(token.type == "th_open" for token in tokens[:width])
    return [cells[i : i + width] for i in range(0, len(cells), width)]


LATEX = {
    r"\textbackslash{}": "\\", r"\textasciitilde{}": "~", r"\textasciicircum{}": "^", r"\`{}": "`", r"\char34{}": '"',
    r"\textless{}": "<", r"\textgreater{}": ">", r"\textbar{}": "|", r"\&": "&", r"\%": "%", r"\$": "$", r"\#": "#",
    r"\_": "_", r"\{": "{", r"\}": "}", "{[}": "[", "{*}": "*", "{}": "",
}  # fmt: skip


def set_by_latex(source):
    """What LaTeX sets for a text: known commands only, no special sign left, no ligature of two signs."""
    pieces = re.findall("|".join(map(re.escape, LATEX)) + "|(?s:.)", source)
    assert not any(len(piece) == 1 and piece in '\\~^`"<>|&%$#_{}' for piece in pieces), source
    assert not re.search(r"--|''|,,", source)
    assert source[:1] not in ("[", "*")  # after the \\ of the row before they would be its arguments
    return "".join(LATEX.get(piece, piece) for piece in pieces)


@settings(max_examples=60)
@given(NAMES, NAMES, NAMES)
def test_markdown_and_csv_hold_names_as_they_are(part, label, other, title):
    labels = [label, other] if label != other else [label, f"{label}2"]
    found = study_of(part, labels, [title, "plain"])
    head, first, *_ = rows_of(tables.markdown(dice_by_encoder(found)))
    assert head == ["encoder", *labels, "mean", "worst label", "95 % interval", "rank"]
    assert first[0] in (title, "plain")
    lines = list(csv.DictReader(io.StringIO(csv_text(found))))
    assert [line["label"] for line in lines] == [*labels, "mean"] * 2
    assert {line["title"] for line in lines} == {title, "plain"}


@settings(max_examples=25)
@given(NAMES, NAMES)
def test_every_table_holds_names_as_they_are(part, label, title):
    for table in dataset_tables(study_of(part, [label, f"{label}2"], [title, "plain"])):
        _, *rows = rows_of(tables.markdown(table))
        assert {row[0] for row in rows} == {title, "plain"}
        if table.name == "labels":
            assert {row[1] for row in rows} == {label, f"{label}2"}


@settings(max_examples=150)
@given(NAMES)
def test_a_line_of_markdown_is_its_text_at_the_start_of_a_list_item_and_in_a_heading_too(name):
    for prefix in ("", "- ", "## "):
        tokens = PARSER.parse(prefix + escape_markdown(name))
        (inline,) = (token for token in tokens if token.type == "inline")
        assert text_of(inline) == name
        assert {token.tag for token in tokens} <= {"", "p", "ul", "li", "h2"}


@settings(max_examples=150)
@given(NAMES)
def test_latex_sets_names_as_they_are(name):
    if name.isascii():
        assert set_by_latex(escape_latex(name)) == name


def test_latex_writes_greek_and_raised_signs_and_names_what_it_takes_for_the_rest(part):
    assert escape_latex("β-CD8⁺ Ω₂ ≥50 µm") == r"$\beta$-CD8$^{+}$ $\Omega$$_{2}$ $\geq$50 $\mu$m"
    assert "% Compile with XeLaTeX or LuaLaTeX and a font that has 质间\n" in tables.latex(
        dice_by_encoder(study_of(part, ["β-间质", "b"], ["x"]))
    )
    assert "Compile" not in tables.latex(dice_by_encoder(study_of(part, ["β-CD8⁺ ö", "b"], ["x"])))


@pytest.mark.filterwarnings("error")
def test_figures_hold_names_as_they_are_and_draw_none_as_a_formula(part):
    label_names, titles = ["$x^2$", "_a_", "<b>x</b>"], NASTY
    files = drawn_labels(study_of(part, label_names, titles))
    shown = {element.text for element in ET.fromstring(files["labels.svg"]).iter("{http://www.w3.org/2000/svg}text")}  # noqa: S314
    assert {*label_names, *titles} <= shown
    assert files["labels.png"].startswith(b"\x89PNG")


@pytest.mark.filterwarnings("error")
def test_a_sweep_lists_every_encoder_in_its_legend_also_one_with_an_underscore_in_front(part):
    titles = ["_hidden", "$x$", "a|b", "_"]
    found = [study_of(part, ["a", "b"], titles, study=f"toy.count-{n}") for n in (2, 4)]
    for one, n in zip(found, (2, 4), strict=True):
        one.summary.record.recipe.update(sweep_of="toy", setting=[["views.count", n]], swept=[["views.count", [2, 4]]])
    (swept,) = swept_datasets("toy", found)
    svg = ET.fromstring(sweep_figure(swept)["sweep.svg"])  # noqa: S314
    assert set(titles) <= {element.text for element in svg.iter("{http://www.w3.org/2000/svg}text")}
    assert {row[0] for row in rows_of(tables.markdown(sweep_tables(swept)[0]))[1:]} == set(titles)


def test_a_whole_report_holds_titles_questions_and_recipes_as_they_are(part, write, tmp_path):
    title, question = "[x] *Set* <1>_", "Is <b>it</b> [so](x)?\n# no heading\n```"
    one = part("x", 0, (8, 2, 2), (8, 2, 2), dataset_title=title, title="+ x | y")
    one.record.recipe["question"] = question
    write(tmp_path / "results", [one])
    (written,) = report(tmp_path / "results", tmp_path / "out")
    tokens = PARSER.parse(written.path.read_text(encoding="utf-8"))
    headings = [tokens[i + 1] for i, token in enumerate(tokens) if token.type == "heading_open"]
    assert [text_of(heading) for heading in headings] == ["toy", f"{title} (d)", *OTHERS, "Method", "Recipe"]
    texts = [token for token in tokens if token.type == "inline"]
    assert any("+ x | y: 1,000,000 parameters" in token.children[0].content for token in texts)
    paragraph = texts[1].children
    assert [token.content for token in paragraph if token.type == "text"] == question.split("\n")
    (fence,) = (token for token in tokens if token.type == "fence")
    assert fence.content.startswith("boundary: ''\ndatasets: []")
    assert "sweep:" in fence.content


@pytest.mark.filterwarnings("error")
def test_a_name_is_drawn_in_an_installed_font_that_has_its_characters_else_as_code_points(part, installed):
    def drawn(name):
        return drawn_labels(study_of(part, [name, "b"], ["x"]))

    without, spelt = drawn("\ue0f7"), drawn("[U+E0F7]")
    installed("Drawn", "\ue0f7")
    within = drawn("\ue0f7")
    assert without["labels.png"] == spelt["labels.png"] != within["labels.png"]
    assert all(">\ue0f7</text>".encode() in files["labels.svg"] for files in (without, within))
    assert b"Drawn" in within["labels.svg"]


def test_a_report_says_once_which_characters_no_font_has(part, write, tmp_path):
    labels = (("\ue0f7", "#ff0000"), ("b", "#0000ff"))
    counts = [(8, 2, 2), (6, 4, 4)]
    write(tmp_path / "results", [part("x", 0, *counts, labels=labels, study=study) for study in ("one", "two")])
    written = report(tmp_path / "results", tmp_path / "out")
    notes = [shown for one in written for shown in one.tables if isinstance(shown, str)]
    assert len(notes) == 1
    assert "U+E0F7" in notes[0]
