"""The page of a report as text: what it holds, that it needs nothing else, and that names cannot become markup."""

import base64
import hashlib
import html.parser
import io
import itertools
import re

import msgspec
import numpy as np
import pytest
from PIL import Image

from fmcache.report.dataset_tables import dataset_tables
from fmcache.report.figures import CAPTIONS, figures
from fmcache.report.findings import find
from fmcache.report.method import bibtex, method
from fmcache.report.page import LARGE_SVG_BYTES, DatasetPart, StudyPart, page
from fmcache.report.picture_rows import picture_rows
from fmcache.scores.kept_pictures import write_tile_pictures, write_token_pictures
from fmcache.scores.predictions import Predictions, write_predictions
from fmcache.scores.run_files import run_folder, whole_folder, write_run

MARKUP = '<img src=x onerror="alert(1)"><b>&amp; "x"'
VOID = {"meta", "img", "input", "br", "rect", "path"}


class Reader(html.parser.HTMLParser):
    """Collects elements with their attributes, and their text; fails where a tag is closed that is not open."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.open, self.texts = [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "script"):
            self.texts.append((self.open[-1], data.strip()))

    def of(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]

    def said(self, *tags):
        return [text for tag, text in self.texts if tag in tags and text]


@pytest.fixture(scope="module")
def read(small_page):
    return Reader(small_page.decode())


def test_the_answers_come_first_in_the_order_of_the_questions(read):
    texts = [text for _, text in read.texts if text]
    asked = [texts.index(text) for text in ("Which encoder?", "How sure?", "At what cost, and what next?")]
    assert asked == sorted(asked)
    later = [
        f"A note. {MARKUP}",
        CAPTIONS["ranks"],
        "Best, median and worst tile of each encoder",
        CAPTIONS["curves"].format(runs="seeds"),
        f"We did. {MARKUP}",
    ]
    assert max(asked) < min(texts.index(text) for text in later)
    assert texts.index(later[0]) < texts.index(later[1]) < texts.index(later[2])
    assert "E0 has the highest mean Dice" in read.said("dd")[0]


def test_headings_step_down_one_level_at_a_time_and_ids_are_unique(read):
    levels = [int(tag[1]) for tag, _ in read.elements if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    ids = [attributes["id"] for _, attributes in read.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    targets = [link["href"] for link in read.of("a")]
    assert {target[1:] for target in targets if target.startswith("#")} <= set(ids)
    keys = ("aria-labelledby", "for")
    named = [attributes[key] for _, attributes in read.elements for key in keys if key in attributes]
    assert set(named) <= set(ids)


def test_every_picture_and_table_has_words_for_a_screen_reader(read):
    assert len(read.of("img")) > 40
    assert all(len(image["alt"]) > 10 for image in read.of("img"))
    assert len(read.of("caption")) == len(read.of("table")) == 3
    assert {head["scope"] for head in read.of("th")} == {"col", "row"}
    intervals = next(
        image["alt"] for image in read.of("img") if image["alt"].startswith("Mean Dice with 95 % intervals")
    )
    assert re.search(r"Mean Dice: E0 \d\d\.\d%, E1 ", intervals)


def test_nothing_comes_from_elsewhere(read, small_page):
    loading = [attributes[key] for _, attributes in read.elements for key in ("src", "href") if key in attributes]
    assert all(target.startswith(("data:image/", "#")) for target in loading)
    assert b"url(" not in small_page
    assert b"@import" not in small_page


def test_the_policy_allows_the_style_and_the_script_of_the_page_only(read, small_page):
    (policy,) = (meta["content"] for meta in read.of("meta") if meta.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'; img-src data:;")
    assert "unsafe" not in policy
    for tag in (b"style", b"script"):
        (text,) = re.findall(b"<%b>(.*?)</%b>" % (tag, tag), small_page, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(text).digest()).decode()
        assert f"{tag.decode()}-src 'sha256-{digest}'" in policy
    assert not [attributes for _, attributes in read.elements if "style" in attributes or "onclick" in attributes]


def test_markup_in_names_is_text(read):
    # question, damaged run, caption, row, note, method, recipe
    assert len([text for _, text in read.texts if MARKUP in text]) == 7
    assert not read.of("b")
    assert not [image for image in read.of("img") if "onerror" in image]


def test_control_characters_in_names_become_spaces(part):
    run = part("x", 0, (8, 2, 2), (6, 4, 4), title="A\x00\x1b[1mB\x9b")
    text = page([DatasetPart(find([run]), [], {})], StudyPart()).decode()
    assert "A  [1mB " in text
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", text)


def test_rows_are_marked_as_best_and_controls_stand_apart(small_page):
    text = re.search(r'<table id="d0-table-dice".*?</table>', small_page.decode(), re.DOTALL)[0]
    assert text.count("<u>") == 1
    assert text.count('class="unseen"> may be best') == 2
    assert text.count('<tbody class="controls">') == 1
    assert len(re.findall(r'class="number top"', text)) == 3


def page_with(part, figures):
    found = find([part("x", 0, (8, 2, 2), (6, 4, 4))])
    return Reader(page([DatasetPart(found, [], figures)], StudyPart()).decode())


def test_a_large_svg_gives_way_to_a_smaller_png(part):
    large = b"<svg>" + b" " * LARGE_SVG_BYTES + b"</svg>"
    files = {"curves.svg": large, "curves.png": b"a small PNG", "ranks.svg": b"<svg/>", "ranks.png": b"a small PNG"}
    kinds = [image["src"].split(";")[0] for image in page_with(part, files).of("img")]
    assert kinds == ["data:image/svg+xml", "data:image/png"]


def test_tables_and_figures_that_no_group_names_are_shown_at_the_end(part, monkeypatch):
    monkeypatch.setitem(CAPTIONS, "new", "A new figure.")
    read = page_with(part, {"new.svg": b"<svg/>"})
    assert read.said("h3") == ["How it was done", "More"]
    assert read.of("img")[0]["alt"] == "A new figure. Mean Dice: X 50%_ 70.0%."


def test_a_study_of_two_datasets_has_a_section_for_each_and_one_for_both(part):
    parts = [
        DatasetPart(find([part("x", 0, (8, 2, 2), (6, 4, 4), dataset_title=title)]), [], {}) for title in ("One", "Two")
    ]
    read = Reader(page(parts, StudyPart(figures={"slope.svg": b"<svg/>"})).decode())
    assert read.said("h2") == ["One", "Two", "All datasets side by side", "Recipe"]
    assert len(read.said("dt")) == 6


def test_the_same_findings_give_the_same_bytes(part):
    def made():
        return page([DatasetPart(find([part("x", 0, (8, 2, 2), (6, 4, 4))]), [], {})], StudyPart())

    assert made() == made()


def busy_pictures(results, runs):
    """Write predictions of 512 px with many small regions for one seed of each encoder, and busy pictures of tiles."""
    rng = np.random.default_rng(0)
    tiles = tuple(f"test-{i}" for i in range(10))
    truth, noise = (rng.integers(0, 3, (10, 16, 16), dtype=np.uint8) for _ in range(2))
    photos = {}
    for tile in tiles:
        file = io.BytesIO()
        blurred = Image.fromarray(rng.integers(0, 256, (171, 171, 3), dtype=np.uint8)).resize((512, 512))
        blurred.save(file, "JPEG", quality=90)
        photos[tile] = file.getvalue()
    write_tile_pictures(results / "large" / "puma", photos)
    kept = []
    for run in runs:
        if run.record.seed:
            kept.append(run)
            continue
        wrong = rng.random((10, 64, 64)) < 0.15
        predicted = np.where(wrong, np.kron(noise, np.ones((1, 4, 4))), np.kron(truth, np.ones((1, 4, 4))))
        whole = (np.kron(mask, np.ones((1, n, n))).astype(np.uint8) for mask, n in ((predicted, 8), (truth, 32)))
        folder = run_folder(results, "large", "puma", run.record.encoder.name, 0)
        with whole_folder(folder) as partial:
            (partial / "decoder.safetensors").write_bytes(b"weights")
            write_predictions(partial, Predictions(tiles, *whole))
            write_run(partial, run)
        kept.append(msgspec.structs.replace(run, folder=folder))
        tokens = {tile: rng.integers(0, 256, (64, 64, 3), dtype=np.uint8) for tile in tiles}
        write_token_pictures(folder.parent, tokens)
    return kept


@pytest.mark.slow
def test_a_large_study_fits_in_ten_megabytes(large_study, tmp_path):
    found = find(busy_pictures(tmp_path, large_study["puma"]))
    part = DatasetPart(found, dataset_tables(found), figures(found), picture_rows(found))
    text = page([part, part], StudyPart(method=method([found]), bibtex=bibtex([found])))
    assert 3e6 < len(text) < 10e6
    assert text.count(b"<img ") == 2 * (7 + 4 * 20 + 18 * 9 + 18)
