"""Tables of patients as Excel, R and people write them; regexes; and names that look like patients."""

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fmcache.datasets.folder import Pair
from fmcache.datasets.groups import group_of, likely_groups
from fmcache.errors import FmcacheError, SpecError

EXAMPLES = int(os.environ.get("FMCACHE_FUZZ", "150"))
NAMES = ("t1", "t2", "t3", "Präp_4")
PAIRS = [Pair(name, Path(f"images/{name}.png"), Path(f"masks/{name}_mask.png")) for name in NAMES]
GROUPS = ["P1", "P2", "P3", "P4"]
ROWS = [("tile", "group"), *zip(NAMES, GROUPS, strict=True)]


def text(rows=ROWS, delimiter=",", end="\n"):
    return end.join(delimiter.join(row) for row in rows) + end


def read(tmp_path, content, name="groups.csv"):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    notes = []
    return group_of(str(path), PAIRS, notes.append), " ".join(notes)


def said(tile="{}", group="{}"):
    """The table with tiles and groups written in another way."""
    return text([ROWS[0], *((tile.format(a), group.format(b)) for a, b in ROWS[1:])])


@pytest.mark.parametrize(
    "content",
    [
        text().encode("utf-8-sig"), text(end="\r\n").encode("utf-8-sig"), text(delimiter=";"), text(end="\r"),
        text(delimiter="\t").encode("utf-16"), text(delimiter="\t").encode("utf-16-le"), text().encode("utf-16-be"),
        text().encode("utf-32"), "sep=;\n" + text(delimiter=";"), "\n\n" + text() + ",\n\n", text(delimiter="|"),
        text([("Tile", "GROUP"), *ROWS[1:]]), text([(" tile ", " group "), *ROWS[1:]]), said('"{}"', '"{}"'),
        said("{}.PNG"), said("images/{}.png"), said(r"C:\x\{}.tif"), said("{}_mask.png"), said(" {} ", " {} "),
        text([*ROWS, *ROWS[1:]]), text([row[::-1] for row in ROWS]), text().replace("ä", "a\u0308"),
    ],
)  # fmt: skip
def test_a_table_is_read_as_programs_export_it_and_nothing_need_be_reported(tmp_path, content):
    assert read(tmp_path, content) == (GROUPS, "")


@pytest.mark.parametrize("name", ["groups.CSV", "groups.tsv", "groups.txt", "groups"])
def test_the_ending_of_the_file_does_not_matter(tmp_path, name):
    assert read(tmp_path, text(), name) == (GROUPS, "")


@pytest.mark.parametrize(
    ("header", "told"),
    [
        (("Image Name", "Patient ID"), "'Image Name', groups in column 'Patient ID'"), (("file",
        "slide"), "'file', groups in column 'slide'"),
        (("FileName", "PatientID"), "'FileName', groups in column 'PatientID'"), (("name",
        "Case"), "'name', groups in column 'Case'"),
        (("x", "y"), "'x', groups in column 'y'"), (("id", "patient"), "'id', groups in column 'patient'"),
    ],
)  # fmt: skip
def test_columns_of_other_names_are_taken_and_reported(tmp_path, header, told):
    groups, notes = read(tmp_path, text([header, *ROWS[1:]]))
    assert groups == GROUPS
    assert told in notes


def test_a_table_without_a_header_is_read_and_reported(tmp_path):
    groups, notes = read(tmp_path, text(ROWS[1:]))
    assert groups == GROUPS
    assert "number 1" in notes


def test_among_many_columns_the_patient_goes_before_the_slide(tmp_path):
    rows = [(str(i), tile, f"s{i}", group, "") for i, (tile, group) in enumerate(ROWS[1:])]
    groups, notes = read(tmp_path, text([("no", "image", "slide", "patient", "remark"), *rows]))
    assert groups == GROUPS
    assert "groups in column 'patient'" in notes


def test_windows_1252_is_read_and_reported(tmp_path):
    groups, notes = read(tmp_path, text().encode("cp1252"))
    assert groups == GROUPS
    assert "Windows-1252" in notes


def test_rows_for_tiles_that_are_not_there_are_counted(tmp_path):
    assert "2 of 6 rows" in read(tmp_path, text([*ROWS, ("t9", "P9"), ("t8", "P9")]))[1]


def test_tiles_of_one_name_in_two_folders_are_distinguished_by_their_folder(tmp_path):
    pairs = [Pair(f"P{i}_a", Path(f"images/P{i}/a.png"), Path(f"masks/P{i}/a.png")) for i in (1, 2)]
    path = tmp_path / "g.csv"
    path.write_text("tile,group\nP1/a.png,one\nP2/a.png,two\n")
    assert group_of(str(path), pairs) == ["one", "two"]
    path.write_text("tile,group\na.png,one\na.png,two\n")
    with pytest.raises(SpecError, match="several groups") as caught:
        group_of(str(path), pairs)
    assert "P01/a.png" in caught.value.next_step


@pytest.mark.parametrize(
    ("content", "name", "says"),
    [
        (b"", "g.csv", "is empty"), (b"\n\n", "g.csv", "is empty"), (text([*ROWS, ("t1", "P9")]), "g.csv",
        "several groups"),
        (text(ROWS[:3]), "g.csv", "no group to 2 tiles"), (b"tile\nt1\n", "g.csv", "single column"), (b"x",
        "g.xlsx", "save the sheet as CSV"),
        (text([("a", "b", "c"), *((*row, "") for row in ROWS[1:])]), "g.csv",
        "columns of tiles and groups cannot be identified"),
        (text([ROWS[0], *((a, "") for a, _ in ROWS[1:])]), "g.csv", "no group to 4 tiles"), (b"\x81\x8d\xff,\n",
        "g.csv", "UTF-8"),
        (b'tile,group\n"t1,P1\n', "g.csv", "no group"),
    ],
)  # fmt: skip
def test_a_table_that_cannot_be_read_is_refused_with_what_is_wrong(tmp_path, content, name, says):
    with pytest.raises(SpecError) as caught:
        read(tmp_path, content, name)
    assert says in str(caught.value)


@pytest.mark.parametrize("name", ["absent.csv", "absent.TSV"])
def test_a_table_that_is_not_there_is_reported_as_such(tmp_path, name):
    with pytest.raises(SpecError, match="does not exist"):
        group_of(str(tmp_path / name), PAIRS)
    (tmp_path / name).mkdir()
    with pytest.raises(SpecError, match="is a folder"):
        group_of(str(tmp_path / name), PAIRS)


def test_a_regex_is_still_a_regex():
    assert group_of(r"^(t\d|Prä)", PAIRS) == ["t1", "t2", "t3", "Prä"]
    for wrong in ("(", "t", "^(x)?", "a" * 300 + "("):
        with pytest.raises(SpecError, match="--groups"):
            group_of(wrong, PAIRS)


def pairs_of(names):
    return [Pair(name, Path(f"{name}.png"), Path(f"{name}.png")) for name in names]


@pytest.mark.parametrize(
    ("names", "groups"),
    [
        (["P01_1", "P01_2", "P02_1", "P02_2"], ["P01", "P01", "P02", "P02"]),
        (["TCGA-A1-A0SK-01_x1", "TCGA-A1-A0SK-02_x2", "TCGA-B2-A0SK-01_x1"], ["TCGA-A1-A0SK"] * 2 + ["TCGA-B2-A0SK"]),
        (["S-1 [x=0,y=0,w=64,h=64]", "S-1 [x=64,y=0,w=64,h=64]", "S-2 [x=0,y=0,w=64,h=64]"], ["S-1", "S-1", "S-2"]),
        (["slide1_x0_y0", "slide1_x512_y0", "slide2_x0_y0"], ["slide1", "slide1", "slide2"]),
        (["a_b12_0_512", "a_b12_512_0", "a_b13_0_0"], ["a_b12", "a_b12", "a_b13"]),
        (["case3-a", "case3-b", "case4-a"], ["case3", "case3", "case4"]),
    ],
)  # fmt: skip
def test_names_that_look_like_patients_are_reported_with_a_regex_that_groups_them(names, groups):
    hint = likely_groups(pairs_of(names))
    rule = hint.partition("--groups '")[2].rstrip("'")
    assert group_of(rule, pairs_of(names)) == groups


@pytest.mark.parametrize("names", ["t1 t2", "tile_1 tile_2", "a1_x a2_x", "train_1 train_2 test_1", "肿瘤 间质"])
def test_names_that_say_nothing_of_patients_get_no_hint(names):
    assert likely_groups(pairs_of(names.split())) == ""


OTHER_CELLS = ("tile", "Image Name", "group", "PatientID", "t1.PNG", "x/t2", "", " ", '"', "\0", "é", "a\nb")
CELLS = st.sampled_from((*NAMES, *GROUPS, *OTHER_CELLS))
ROWS_NEAR = st.tuples(
    st.lists(st.lists(CELLS, max_size=4), max_size=6),
    st.sampled_from(",;\t|x"),
    st.sampled_from(["\n", "\r\n", "\r", "\n\n"]),
    st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32", "cp1252"]),
    st.sampled_from(["", "sep=;\n", "\ufeff", "#"]),
)


def encoded(drawn):
    rows, delimiter, end, encoding, above = drawn
    return (above + end.join(delimiter.join(row) for row in rows)).encode(encoding, "replace")


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=EXAMPLES)
@given(st.binary(max_size=200) | ROWS_NEAR.map(encoded))
def test_whatever_is_in_a_table_it_is_read_or_refused(tmp_path, content):
    try:
        groups, _ = read(tmp_path, content)
        assert all(groups)
        assert len(groups) == len(PAIRS)
    except FmcacheError as error:
        assert str(error)
