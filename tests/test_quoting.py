"""How names of labels and classes are written in flags: any name can be, and names in messages can be pasted back."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fmcache.datasets.label_flags import parse_classes, parse_fill, parse_labels, parse_order, parse_values
from fmcache.errors import SpecError
from fmcache.manifest import Label
from fmcache.quoting import NO_CLASS, quoted

NAMES = st.text(min_size=1, max_size=12) | st.text('ab ,|=":\\#，(é', min_size=1, max_size=8)


@given(st.lists(NAMES | st.just(""), unique=True, max_size=5))
@example([NO_CLASS, ""])
@example(["\\u0041", "#ff0000", "a\nb", "e\u0301", " Tumor "])
def test_names_of_classes_are_read_as_they_were_written(names):
    assert parse_classes("|".join(map(quoted, names))) == tuple(names)


@given(st.lists(st.tuples(NAMES, st.lists(NAMES, max_size=3)), min_size=1, max_size=4))
def test_labels_are_read_as_they_were_written(labels):
    text = ",".join(quoted(name) + "=" + "|".join(map(quoted, classes)) for name, classes in labels)
    assert [(label.name, list(label.values)) for label in parse_labels(text, regions=True)] == labels
    bare = ",".join(quoted(name) for name, _ in labels)
    assert [label.name for label in parse_labels(bare, regions=True)] == [name for name, _ in labels]


@given(st.lists(NAMES.filter(lambda name: name != "ignore"), unique=True, min_size=1, max_size=4))
def test_orders_and_fills_are_read_as_they_were_written(names):
    labels = [Label(name, "#000000", (name + "!",)) for name in names]
    assert parse_order(",".join(map(quoted, names)), labels, ()) == tuple(name + "!" for name in names)
    assert [parse_fill(quoted(name), labels) for name in names] == names


@given(st.text('ab, |="\\:#，0', max_size=20))
def test_any_text_is_read_or_refused(text):
    for parse in (parse_classes, parse_values, parse_labels, lambda flag: parse_labels(flag, regions=True)):
        try:
            parse(text)
        except SpecError as refused:
            assert refused.expected or refused.next_step or "mask value" in refused.problem


def test_plain_names_are_shown_without_quotes_and_others_in_quotes():
    plain = ["Tumor", "Tumor: invasive", "Ki-67 + (strong)", "肿瘤", "می\u200cخواهم", "Necrosis/Blood", "Ignore*"]
    assert [quoted(name) for name in plain] == plain
    assert quoted("Tumor, invasive") == '"Tumor, invasive"'
    assert quoted('5" core') == '"5\\" core"'
    assert quoted("Tumor\u00a0core") == '"Tumor\\u00a0core"'
    assert quoted("") == NO_CLASS
    assert quoted(NO_CLASS) == f'"{NO_CLASS}"'


@pytest.mark.parametrize(
    ("text", "classes"),
    [
        ('tumour="Tumor, invasive",stroma=Stroma', [("tumour", ("Tumor, invasive",)), ("stroma", ("Stroma",))]),
        (r"tumour=Tumor\, invasive,stroma=Stroma", [("tumour", ("Tumor, invasive",)), ("stroma", ("Stroma",))]),
        ('tumour="a ""b"" c"|"d\\"e"', [("tumour", ('a "b" c', 'd"e'))]),
        (r"tumour=C:\new|x", [("tumour", (r"C:\new", "x"))]),
        (" tumour = Tumor | Other , stroma = Stroma , ", [("tumour", ("Tumor", "Other")), ("stroma", ("Stroma",))]),
        ("rest=(no class)|Other,(no class)", [("rest", ("", "Other")), ("(no class)", ("",))]),
        ('"(no class)","#ff0000"', [("(no class)", ()), ("#ff0000", ())]),
        ('a="#ff0000"|#00ff00', [("a", ("#ff0000",))]),
        ("Tumor: invasive,Stroma", [("Tumor: invasive", ()), ("Stroma", ())]),
    ],
)
def test_quotes_backslashes_and_spaces(text, classes):
    assert [(label.name, label.values) for label in parse_labels(text, regions=True)] == classes


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("tumour:0,stroma:1", "expected: tumour=0"),
        ("tumour: 0", "expected: tumour=0"),
        ("tumour:Tumor", "expected: tumour=Tumor"),
        ("tumour：0，stroma=1", "plain sign"),
        ("tumour＝0", "plain sign"),
        ('tumour="Tumor, invasive', "quotes"),
        ('tumour=Tum"or', "quotes"),
        ('tumour="Tumor" invasive', "quotes"),
        ("tumour=“Tumor”", "plain sign"),
        ("a=b=c", "double quotes"),
        ("a|b", "name=value"),
        ("a=1,,b=2", "no name"),
        ("tumour=" + "9" * 5000, "limit"),
    ],
)
def test_wrongly_written_labels_are_refused_with_the_right_form(text, says):
    for regions in (False, True) if "9" not in text else (False,):
        with pytest.raises(SpecError) as refused:
            parse_labels(text, regions)
        assert says in str(refused.value)


def test_a_joining_sign_of_another_flag_is_refused_with_the_right_sign():
    with pytest.raises(SpecError, match=r"joined with '\|'") as refused:
        parse_classes("Necrosis,Blood", "--skip")
    assert parse_classes(refused.value.expected) == ("Necrosis", "Blood")
    with pytest.raises(SpecError) as refused:
        parse_values("0,255")
    assert parse_values(refused.value.expected) == (0, 255)
    with pytest.raises(SpecError, match="is not a label"):
        parse_fill("stroma,tumour", [Label("stroma", "#000000"), Label("tumour", "#000000")])


def test_a_bar_before_the_equals_sign_is_part_of_the_name():
    labels = parse_labels('other=0,pT | 4=1|2,"a|b"=3')
    assert [(label.name, label.values) for label in labels] == [("other", (0,)), ("pT | 4", (1, 2)), ("a|b", (3,))]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("other=0;tumour=1", "--labels other=0,tumour=1"),
        ("other=0\ntumour=1", "--labels other=0,tumour=1"),
        ("ignore=0,tumour=1", "name their values or classes in --ignore"),
        ("mean=0,tumour=1", "another name"),
        ("other=,tumour=1", "other=0"),
        ("0=other,1=tumour", "NAME=VALUE"),
        ("other=-1,tumour=1", "NAME=VALUE"),
    ],
)
def test_labels_that_make_no_sense_are_refused_with_what_to_type(text, says):
    with pytest.raises(SpecError, match="--labels") as refused:
        parse_labels(text)
    assert says in refused.value.next_step
