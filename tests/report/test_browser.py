"""The page of a report in a real browser, from a file and without network: it sorts, filters, shows and prints."""

import os
import re
import shutil

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
NEEDED = os.environ.get("FMCACHE_NEED_BROWSER") == "1"
"""`.ci/run` sets it: there a skipped browser test is a failure."""


def unavailable(reason):
    if NEEDED:
        pytest.fail(f"{reason}, but FMCACHE_NEED_BROWSER=1 asks for a browser")
    pytest.skip(f"{reason}: the page is not tested in a browser")


@pytest.fixture(scope="module")
def browser():
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        unavailable("playwright is not installed (pip install playwright)")
    if CHROMIUM is None:
        unavailable("there is no chromium (Debian, Ubuntu: apt install chromium)")
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def file(small_page, tmp_path_factory):
    path = tmp_path_factory.mktemp("browser") / "report.html"
    path.write_bytes(small_page)
    return path


@pytest.fixture
def opened(browser, file):
    """Open the page in a new context; at the end, there were no errors and no request but the file's."""
    contexts, wrong, requests = [], [], []

    def open_page(**how):
        context = browser.new_context(offline=True, **how)
        contexts.append(context)
        tab = context.new_page()
        tab.on("console", lambda message: wrong.append(message.text))
        tab.on("pageerror", lambda error: wrong.append(str(error)))
        tab.on("dialog", lambda dialog: (wrong.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        tab.on("request", lambda request: requests.append(request.url))
        tab.goto(file.as_uri())
        return tab

    yield open_page
    for context in contexts:
        context.close()
    assert wrong == []
    assert {url for url in requests if not url.startswith("data:")} == {file.as_uri()}


DICE = "#d0-table-dice"


def box_of(tab):
    """The text box that filters the table of Dice, and its table's count of rows."""
    whole = tab.locator(".table").filter(has=tab.locator(DICE))
    return whole.get_by_label("Show rows that contain"), whole.get_by_role("status")


def head(tab, name):
    return tab.locator(DICE).get_by_role("columnheader", name=name)


def names(tab):
    rows = tab.locator(f"{DICE} tbody tr:visible th").all_inner_texts()
    return [re.match(r"\w+", name)[0] for name in rows]


FIRST = ["E0", "E1", "E2", "E3", "E4", "E5", "E6", "RAW"]


def test_a_table_is_sorted_by_a_click_and_controls_stay_last(opened):
    tab = opened()
    assert names(tab) == FIRST
    mean = head(tab, "mean")
    mean.get_by_role("button").click()
    assert mean.get_attribute("aria-sort") == "descending"
    assert names(tab) == FIRST
    mean.get_by_role("button").click()
    assert mean.get_attribute("aria-sort") == "ascending"
    assert names(tab) == [*FIRST[6::-1], "RAW"]
    head(tab, "encoder").get_by_role("button").click()
    assert mean.get_attribute("aria-sort") is None
    assert names(tab) == FIRST


def test_the_keyboard_alone_reaches_the_answer_sorts_and_filters(opened):
    tab = opened()
    tab.keyboard.press("Tab")
    assert tab.evaluate("document.activeElement.textContent") == "Skip to the answer"
    tab.keyboard.press("Enter")
    assert tab.evaluate("document.activeElement.id") == "main"
    for _ in range(30):
        tab.keyboard.press("Tab")
        if tab.evaluate("document.activeElement.tagName") == "INPUT":
            break
    tab.keyboard.type("e3")
    assert names(tab) == ["E3"]
    for _ in range(10):
        tab.keyboard.press("Tab")
        if tab.evaluate("document.activeElement.textContent") == "mean":
            break
    outline = tab.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"
    tab.keyboard.press("Space")
    tab.keyboard.press("Enter")
    assert head(tab, "mean").get_attribute("aria-sort") == "ascending"


def test_a_filter_shows_the_rows_that_contain_a_text_and_says_how_many(opened):
    tab = opened()
    box, status = box_of(tab)
    box.fill("RAW")
    assert names(tab) == ["RAW"]
    assert status.inner_text() == "1 of 8 rows"
    box.fill("nothing like this")
    assert names(tab) == []
    box.fill("")
    assert names(tab) == FIRST
    assert status.inner_text() == ""


def test_print_shows_all_rows_also_those_that_the_filter_hides(opened):
    tab = opened()
    box_of(tab)[0].fill("e3")
    tab.emulate_media(media="print")
    assert names(tab) == FIRST
    assert not tab.locator("nav").is_visible()
    assert tab.evaluate("[...document.querySelectorAll('.scroll')].every(e => e.scrollHeight <= e.clientHeight + 1)")


def test_every_picture_is_shown(opened):
    tab = opened()
    sizes = tab.evaluate("[...document.images].map(image => [image.complete, image.naturalWidth, image.clientWidth])")
    assert len(sizes) > 40
    assert all(complete and natural > 0 and shown > 0 for complete, natural, shown in sizes)


def test_markup_in_names_is_shown_as_text_and_does_not_run(opened):
    tab = opened()
    assert tab.get_by_text('<img src=x onerror="alert(1)"><b>&amp; "x"').count() == 7
    assert tab.locator("b").count() == 0


def test_even_markup_that_was_not_escaped_neither_runs_nor_loads(browser, small_page, tmp_path):
    path, reached = tmp_path / "broken.html", []
    markup = b'<script>window.ran = 1</script><img src="http://example.invalid/x.png" onerror="window.ran = 1">'
    path.write_bytes(small_page.replace(b"<main", markup + b"<main", 1))
    with browser.new_context() as context:
        tab = context.new_page()
        tab.on("requestfinished", lambda request: reached.append(request.url))
        tab.goto(path.as_uri())
        assert tab.locator("thead button").count() > 0  # the page's own script ran
        assert tab.evaluate("window.ran") is None
    assert [url for url in reached if not url.startswith("data:")] == [path.as_uri()]


def luminance(colour):
    channels = [int(value) / 255 for value in re.findall(r"\d+", colour)[:3]]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


CONTRASTS = """() => [...document.querySelectorAll('h1, h2, dt, dd, a, th, td, figcaption, li, p, label, pre, .mark')]
  .filter(element => element.textContent.trim() && element.offsetParent)
  .map(element => {
    let behind = element;
    while (getComputedStyle(behind).backgroundColor === 'rgba(0, 0, 0, 0)' && behind.parentElement) {
      behind = behind.parentElement;
    }
    return [element.tagName, getComputedStyle(element).color, getComputedStyle(behind).backgroundColor];
  })"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_is_readable_in_both_colour_schemes(opened, scheme):
    tab = opened(color_scheme=scheme)
    found = tab.evaluate(CONTRASTS)
    assert len(found) > 50
    for tag, ink, paper in found:
        bright, dark = sorted((luminance(ink), luminance(paper)), reverse=True)
        assert (bright + 0.05) / (dark + 0.05) >= 4.5, (tag, ink, paper)
    body = luminance(tab.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert body > 0.9 if scheme == "light" else body < 0.1


@pytest.mark.parametrize("width", [1400, 400])
def test_the_page_never_scrolls_sideways_and_a_wide_screen_shows_answers_and_figure_at_once(opened, width):
    tab = opened(viewport={"width": width, "height": 900})
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    if width == 1400:
        for part in (".answers", ".opening .drawing"):
            box = tab.locator(part).first.bounding_box()
            assert box["y"] + box["height"] <= 900


def test_without_scripts_the_page_shows_its_tables_and_no_dead_controls(opened):
    tab = opened(java_script_enabled=False)
    assert tab.locator(f"{DICE} tbody tr").count() == 8
    assert tab.locator("thead button").count() == 0
    assert tab.locator("input:visible").count() == 0
