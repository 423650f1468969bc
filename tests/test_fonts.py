import matplotlib as mpl
import pytest
from matplotlib import font_manager

from fmcache import fonts

PRIVATE = "\ue0f7"
"""A character that no font of this machine has, because it belongs to no script."""


@pytest.fixture
def base():
    return font_manager.findfont("DejaVu Sans")


def test_no_font_is_searched_when_the_base_font_has_all_characters(base):
    assert fonts.cover(["tumour β ⁺ é"], base) == fonts.Cover({}, frozenset())


def test_a_font_installed_after_matplotlib_made_its_list_is_found(installed, base):
    assert fonts.cover([PRIVATE], base).lacking == {PRIVATE}
    installed("Drawn", PRIVATE)
    found = fonts.cover([f"a{PRIVATE}"], base)
    assert [face.family for face in found.faces] == ["Drawn"]
    assert not found.lacking
    assert found.boxed(f"a{PRIVATE}") == f"a{PRIVATE}"


def test_the_font_with_most_of_the_characters_is_chosen_and_others_only_for_the_rest(installed, base):
    installed("One", PRIVATE)
    installed("Two", PRIVATE + "\ue0f8")
    installed("Three", "\ue0f9")
    found = fonts.cover([PRIVATE + "\ue0f8\ue0f9"], base)
    assert [face.family for face in found.faces] == ["Two", "Three"]


def test_a_character_that_no_font_has_becomes_its_code_point_and_a_wide_blank_becomes_a_blank(base):
    found = fonts.cover([f"a{PRIVATE}\u3000b\n"], base)
    assert found.boxed(f"a{PRIVATE}b\n") == "a[U+E0F7]b[U+000A]"
    assert "\u3000" not in found.boxed("a\u3000b")


def test_a_broken_font_file_is_skipped(installed, base, tmp_path):
    (tmp_path / "broken.ttf").write_bytes(b"no font")
    installed("Drawn", PRIVATE)
    assert not fonts.cover([PRIVATE], base).lacking


def test_fonts_of_formulas_placeholder_fonts_and_bold_faces_are_not_used_for_names():
    families = {face.family for face in fonts._installed()}
    assert "DejaVu Sans" in families
    assert not [name for name in families if name.startswith(("cm", "Last Resort", "STIX"))]
    own = [face for face in fonts._installed() if face.path.startswith(mpl.get_data_path())]
    assert all("Bold" not in face.path for face in own)


def test_the_hint_names_each_character_once_and_what_to_install():
    assert fonts.hint("") == fonts.hint("\u3000") == ""
    line = fonts.hint("瘤肿肿")
    assert line.startswith("note: no installed font has 瘤 (U+7624), 肿 (U+80BF): pictures show code points; install")
    assert "apt install fonts-noto-cjk;" in line
    assert "fonts-noto-core" in fonts.hint("ሀ")
    assert "; install" not in fonts.hint(PRIVATE + "\n")
    assert "and 2 more" in fonts.hint("".join(map(chr, range(0x4E00, 0x4E08))))
    assert "\n" not in fonts.hint("肿\n\x1b")
