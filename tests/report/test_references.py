"""Citations become BibTeX that a strict reader accepts."""

from hypothesis import given, settings
from hypothesis import strategies as st
from pybtex.database import parse_string

from fmcache.encoders.cards import card_names, read_card
from fmcache.report.references import Bibliography, known_works


def entries(works):
    return parse_string(works.bibtex(), "bibtex").entries


def test_each_citation_of_a_card_stands_for_a_known_work():
    known = {text for work in known_works().values() for text in work.cites}
    citations = {read_card(name).citation for name in card_names()} - {""}
    assert citations - known == set()  # add an entry to references.yaml, with facts that were checked


def test_known_works_repeat_what_their_citation_says():
    for work in known_works().values():
        first = work.fields["author"].split(" and ")[0].split(",")[0]
        for text in work.cites:
            assert first in text, work.key
            assert work.fields["year"] in text, work.key
            assert "doi" not in text or work.fields["doi"] in text, work.key


def test_all_known_works_are_read_back_and_no_key_repeats():
    works = Bibliography()
    assert works.cite(*known_works()).count("@") == len(known_works())
    found = entries(works)
    assert set(found) == set(known_works())
    assert str(found["nechaev2024hibou"].persons["author"][1]) == "Pchelnikov, Alexey"
    assert found["zou2008mover"].fields["title"].startswith("{Construction of")


def test_entries_are_sorted_by_key_whatever_the_order_of_citations():
    works = Bibliography()
    assert works.cite("holm1979", "dice1945") == "[@holm1979; @dice1945]"
    assert works.bibtex().index("@article{dice1945,") < works.bibtex().index("@article{holm1979,")


def test_a_text_that_stands_for_two_works_cites_both():
    assert Bibliography().cite_text(read_card("resnet50-in1k").citation, name="x", title="x") == (
        "[@he2016resnet; @wightman2021resnet]"
    )


def test_titles_with_braces_quotes_and_at_signs_are_read_back():
    works = Bibliography()
    assert works.cite_text(r'{"A" @b}} 100 % #1 \c ~', name="encoder-Häm/1", title="T") == "[@encoder-ha-m-1]"
    note = entries(works)["encoder-ha-m-1"].fields["note"]
    assert note == (
        r"\textbraceleft{}\char34{}A\char34{} @b\textbraceright{}\textbraceright{} 100 \% \#1 \textbackslash{}c "
        r"\textasciitilde{}"
    )


def test_keys_are_unique_even_where_names_become_the_same():
    works = Bibliography()
    keys = [
        works.cite_text(f"text {i}", name=name, title="t") for i, name in enumerate(("病理", "", "dice1945", "A", "a"))
    ]
    assert len(set(keys)) == len(entries(works)) == 5
    assert works.cite_text("text  3 ", name="b", title="t") == keys[3]  # the same text is one entry


@settings(max_examples=50)
@given(st.lists(st.tuples(*[st.text(st.characters(codec="utf-8"), min_size=1)] * 3), max_size=4))
def test_any_text_gives_valid_bibtex(cited):
    works = Bibliography()
    keys = {works.cite_text(text, name=name, title=title) for text, name, title in cited}
    assert {f"[@{key}]" for key in entries(works)} == keys
