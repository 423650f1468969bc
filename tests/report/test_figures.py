"""What a reader sees in the figures of a report, also with 15 encoders and 3 controls."""

import functools
import itertools
import xml.etree.ElementTree as ET
from types import SimpleNamespace
from unittest.mock import patch

import matplotlib as mpl
import numpy as np
import polars as pl
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.patches import Rectangle
from matplotlib.text import Text

from fmcache.report.figure_rows import Standing, figure_rows
from fmcache.report.figure_style import MARKS, STYLE, names_shown, rendered
from fmcache.report.figures import CAPTIONS, drawings, study_figures
from fmcache.report.findings import find
from fmcache.report.interval_figures import forest, pair_matrix, ranks
from fmcache.report.scatter_figures import dice_by_cost
from fmcache.report.slope_figure import dice_by_dataset
from fmcache.scores.records import Extraction

WITH_CONTROLS = {"size", "cost", "intervals", "labels", "curves"}
RANKED_ONLY = {"ranks", "pairs"}
LONG = "An encoder whose name has sixty characters, as some do have."
SCRIPTS = "β-间质 <b>&amp;</b> $x^2$ _"


def laid_out(draw, write=str):
    """The figure, and the texts that are drawn with their boxes in pixels at 200 dpi."""
    texts, original = [], Text.draw

    def record(self, renderer, *args, **kwargs):
        if self.get_visible() and self.get_text():
            texts.append(self)
        return original(self, renderer, *args, **kwargs)

    with mpl.rc_context(STYLE | {"figure.dpi": 200}):
        figure = draw(write)
        with patch.object(Text, "draw", record):
            figure.draw_without_rendering()
        renderer = FigureCanvasAgg(figure).get_renderer()
        boxes = [(text.get_text(), Text.get_window_extent(text, renderer).extents) for text in texts]
    return SimpleNamespace(figure=figure, boxes=boxes, shown=[name.replace("\n", " ") for name, _ in boxes])


def overlaps(boxes):
    """The pairs of texts whose boxes have more than a pixel in common in both directions."""
    return [
        (a, b)
        for (a, one), (b, other) in itertools.combinations(boxes, 2)
        if (np.minimum(one[2:], other[2:]) - np.maximum(one[:2], other[:2]) > 1).all()
    ]


def outside(drawn):
    width, height = drawn.figure.get_size_inches() * 200
    return [name for name, (x0, y0, x1, y1) in drawn.boxes if min(x0, y0) < -1 or x1 > width + 1 or y1 > height + 1]


def points(axes):
    """Marker and place of every single point in axes."""
    single = [line for line in axes.lines if len(line.get_xdata()) == 1 and line.get_marker() != "None"]
    return [(line.get_marker(), line.get_color(), line.get_xdata()[0], line.get_ydata()[0]) for line in single]


@pytest.fixture(scope="module")
def large(large_study):
    return {dataset: find(runs) for dataset, runs in large_study.items()}


@pytest.fixture(scope="module")
def puma(large):
    return large["puma"]


@pytest.fixture(scope="module")
def drawn(large):
    """All figures of the large study; scatter plots of both datasets, because their names have no fixed places."""
    chosen = {name: functools.partial(draw, large["puma"]) for name, draw in drawings(large["puma"]).items()}
    chosen |= {
        f"{name} of kidney": functools.partial(draw, large["kidney"])
        for name, draw in drawings(large["kidney"]).items()
        if name == "size"
    }
    chosen["slope"] = functools.partial(dice_by_dataset, list(large.values()))
    return {name: laid_out(draw) for name, draw in chosen.items()}


@pytest.fixture(scope="module")
def odd_names(part):
    """Two encoders and a control with long names and names in other scripts."""
    labels = (("a label with a name that is long", "#ff0000"), (SCRIPTS, "#0000ff"))
    return find(
        [
            part(name, seed, (8 + seed - i, 2, 2), (6, 4, 4), title=title, labels=labels, control=i == 2)
            for seed in range(2)
            for i, (name, title) in enumerate([("x", LONG), ("y", SCRIPTS), ("z", LONG[::-1])])
        ]
    )


def test_no_texts_overlap_and_none_is_cut_off_with_fifteen_encoders_and_three_controls(drawn):
    assert {name: found for name, one in drawn.items() if (found := overlaps(one.boxes))} == {}
    assert {name: found for name, one in drawn.items() if (found := outside(one))} == {}


@pytest.mark.filterwarnings("ignore:Glyph")
def test_no_texts_overlap_and_none_is_cut_off_with_long_names(odd_names):
    for name, draw in drawings(odd_names).items():
        one = laid_out(functools.partial(draw, odd_names), lambda text: text.replace("$", r"\$"))
        assert overlaps(one.boxes) == [], name
        assert outside(one) == [], name
        assert LONG in one.shown or name in RANKED_ONLY, name


def test_the_test_of_overlaps_can_fail():
    boxes = [("a", np.array([0, 0, 10, 10])), ("b", np.array([8, 8, 20, 20])), ("c", np.array([10, 0, 20, 8]))]
    assert overlaps(boxes) == [("a", "b")]


def test_every_encoder_is_named_and_random_weights_are_labelled(drawn, puma):
    rows = puma.summary.rows
    every = {row.encoder.display for row in rows}
    ranked = {row.encoder.display for row in puma.summary.ranked}
    assert (len(every), len(ranked)) == (18, 15)
    assert "ViT-S/16 (random weights)" in every
    for name in WITH_CONTROLS:
        assert every <= set(drawn[name].shown), name
    for name in RANKED_ONLY:
        assert set(drawn[name].shown) & every == ranked, name


def test_names_in_a_scatter_plot_are_over_no_marker_and_inside_the_axes(drawn, puma):
    names = {row.encoder.display for row in puma.summary.rows if row.encoder.params}
    for figure in ("size", "size of kidney", "cost"):
        one = drawn[figure]
        for axes in one.figure.axes:
            markers = axes.transData.transform([(x, y) for *_, x, y in points(axes)])
            assert len(markers) in (16, 18)  # raw pixels and colour have no parameters
            frame = axes.get_window_extent().extents
            named = [box for name, box in one.boxes if name.replace("\n", " ") in names]
            inside = [box for box in named if frame[1] < box[1] < frame[3]]
            assert len(inside) >= 16
            for box in inside:
                assert (box[:2] > frame[:2]).all()
                assert (box[2:] < frame[2:]).all()
                assert not ((markers > box[:2]) & (markers < box[2:])).all(axis=1).any()


def test_the_marker_says_who_may_be_best_and_who_is_a_control(drawn, puma):
    found = puma.answer.intervals.filter(pl.col("label") == "mean", pl.col("score") == "dice_pooled")
    n_best = found["may_be_best"].sum()
    assert 1 < n_best < 15
    markers = [(marker, colour) for marker, colour, *_ in points(drawn["intervals"].figure.axes[0])]
    looks = {standing: (MARKS[standing]["marker"], MARKS[standing]["color"]) for standing in Standing}
    assert len(set(looks.values())) == 3
    assert [markers.count(looks[standing]) for standing in Standing] == [n_best, 15 - n_best, 3]
    for name in ("size", "cost", "intervals", "labels"):
        assert {"may be best", "another encoder is better", "control"} <= set(drawn[name].shown)


def test_the_forest_is_sorted_with_controls_below_and_a_line_at_the_best_of_them(drawn, puma):
    (axes,) = drawn["intervals"].figure.axes
    table = puma.answer.intervals.filter(pl.col("label") == "mean", pl.col("score") == "dice_pooled")
    estimate = dict(zip(table["encoder"], 100 * table["estimate"], strict=True))
    down = sorted(points(axes), key=lambda point: point[-1])
    best_first = sorted((estimate[row.encoder.name] for row in puma.summary.ranked), reverse=True)
    assert [x for _, _, x, _ in down[:15]] == pytest.approx(best_first)
    written = [label.get_text() for label in axes.get_yticklabels()]
    assert written[0] == "Hibou-L"
    assert set(written[15:]) == {"Raw pixels", "Colour and texture", "ViT-S/16 (random weights)"}
    dashed = [line.get_xdata()[0] for line in axes.lines if line.get_linestyle() == "--"]
    assert dashed == [pytest.approx(max(x for _, _, x, _ in down[15:]))]


def test_the_forest_draws_the_limits_and_the_spread_of_seeds(drawn, puma):
    (axes,) = drawn["intervals"].figure.axes
    first = figure_rows(puma)[0]
    spans = sorted(tuple(line.get_xdata()) for line in axes.lines if len(line.get_xdata()) == 2)
    for span in ((first.low, first.high), (first.estimate - first.spread, first.estimate + first.spread)):
        assert any(one == pytest.approx(span) for one in spans)
    assert first.spread == pytest.approx(100 * puma.summary.rows[0].std[-1])
    assert f"{first.estimate:.1f}  ({first.low:.1f} – {first.high:.1f})" in drawn["intervals"].shown


def test_where_there_is_no_interval_the_forest_says_why(part):
    one = laid_out(functools.partial(forest, find([part("x", 0, (8, 2, 2), (6, 4, 4))])))
    assert "70.0  (one seed)" in one.shown


def test_rank_bars_are_the_ranks_of_the_answer_in_a_panel_for_each_label(drawn, puma):
    panels = drawn["ranks"].figure.axes
    assert [axes.get_title() for axes in panels] == ["other", "tumour", "stroma", "mean"]
    for axes, label in zip(panels, puma.summary.columns, strict=True):
        of = puma.answer.intervals.filter(pl.col("label") == label, pl.col("score") == "dice_pooled")
        of = {name: (low, high) for name, low, high in of.select("encoder", "rank_low", "rank_high").iter_rows()}
        bars = {line.get_ydata()[0]: tuple(line.get_xdata()) for line in axes.lines if len(line.get_xdata()) == 2}
        mean_order = [row.encoder for row in figure_rows(puma) if row.standing is not Standing.CONTROL]
        assert [bars[y] for y in range(15)] == [of[name] for name in mean_order]
        assert sorted(x for *_, x, _ in points(axes)) == list(range(1, 16))


def test_a_cell_of_the_pair_matrix_is_row_minus_column_and_coloured_only_if_the_pair_differs(drawn, puma):
    axes = drawn["pairs"].figure.axes[0]
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert [label.get_text() for label in axes.get_xticklabels()] == names
    texts = {text.get_position(): text.get_text() for text in axes.texts}
    fill = {
        (cell.get_x() + 0.5, cell.get_y() + 0.5): cell.get_facecolor()
        for cell in axes.patches
        if isinstance(cell, Rectangle)
    }
    assert len(texts) == 15 * 14
    mean = {row.encoder.display: 100 * row.mean[-1] for row in puma.summary.rows}
    title = {row.encoder.name: row.encoder.display for row in puma.summary.rows}
    pairs = puma.answer.pairs.filter(pl.col("label") == "mean", pl.col("score") == "dice_pooled")
    assert 0 < pairs["differs"].sum() < len(pairs) == 105
    for a, b, differs in pairs.select("a", "b", "differs").iter_rows():
        y, x = names.index(title[a]), names.index(title[b])
        assert float(texts[x, y].replace("−", "-")) == pytest.approx(mean[title[a]] - mean[title[b]], abs=0.051)
        assert (fill[x, y] == (1, 1, 1, 1)) == (fill[y, x] == (1, 1, 1, 1)) == (not differs)


def test_every_seed_is_a_dot_and_their_mean_a_bar_in_each_panel(drawn, puma):
    panels = drawn["labels"].figure.axes
    assert len(panels) == 4
    for column, axes in enumerate(panels):
        dots = [line.get_xdata() for line in axes.lines if line.get_linestyle() == "None"]
        assert sorted(np.concatenate(dots)) == pytest.approx(
            sorted(100 * np.concatenate([row.dice[:, column] for row in puma.summary.rows]))
        )
        bars = sorted(line.get_xdata()[0] for line in axes.lines if line.get_linestyle() == "-")
        assert bars == pytest.approx(sorted(100 * row.mean[column] for row in puma.summary.rows))


def test_curves_have_two_panels_per_encoder_with_a_line_per_seed_and_a_mean_on_one_scale(drawn):
    panels = drawn["curves"].figure.axes
    assert len(panels) == 2 * 18
    assert {len(axes.lines) for axes in panels} == {10 + 1}
    for kind in (panels[::2], panels[1::2]):
        assert len({axes.get_ylim() for axes in kind}) == 1
        runs, mean = kind[0].lines[:-1], kind[0].lines[-1]
        assert mean.get_ydata() == pytest.approx(np.mean([line.get_ydata() for line in runs], axis=0))


def test_cost_has_a_panel_for_each_recorded_cost_and_steps_through_the_best_at_each_price(part):
    def run(name, wall_s, tp, cost=None):
        return part(name, 0, (tp, 10 - tp, 10 - tp), (tp, 10 - tp, 10 - tp), wall_s=wall_s, extraction=cost)

    bare = [run("cheap", 1.0, 5), run("worse", 2.0, 4), run("good", 4.0, 8), run("dear", 9.0, 8)]
    (axes,) = laid_out(functools.partial(dice_by_cost, find(bare))).figure.axes
    assert axes.get_xlabel() == "training time of a decoder (s per run)"
    (steps,) = [line for line in axes.lines if line.get_drawstyle() == "steps-post"]
    assert list(zip(*steps.get_data(), strict=True)) == [(1.0, pytest.approx(50.0)), (4.0, pytest.approx(80.0))]

    costs = [Extraction(2.0, 100, 5_000_000, 50, "cuda"), Extraction(3.0, 100, 9_000_000, 50, "cpu")]
    full = [run("x", 1.0, 5, costs[0]), run("y", 1.0, 6, costs[1])]
    panels = laid_out(functools.partial(dice_by_cost, find(full))).figure.axes
    assert [sorted(x for *_, x, _ in points(axes)) for axes in panels] == [[20.0, 30.0], [0.1, 0.18], [1.0, 1.0]]
    assert panels[0].get_xlabel() == "extraction time (ms per view); not on one device: cpu, cuda"
    assert panels[1].get_xlabel() == "token cache on disk (MB per view)"


def test_a_figure_with_nothing_to_show_is_left_out(part):
    def names(*runs):
        return set(drawings(find(runs)))

    seen = ((8, 2, 2), (6, 4, 4))
    one = part("x", 0, *seen)
    assert names(one) == set(CAPTIONS) - {"slope", "ranks", "pairs"}
    assert names(one, part("z", 0, *seen, control=True)) == set(CAPTIONS) - {"slope", "ranks", "pairs"}
    assert names(one, part("y", 0, *seen)) == set(CAPTIONS) - {"slope"}
    assert "cost" not in names(part("x", 0, *seen, wall_s=0.0))


def test_figures_use_the_dice_of_the_recipe_and_no_other_score(part):
    runs = [part(n, s, (7 + s, 2, 2), (6, 4, 4), dice="per_tile") for n in "xy" for s in range(2)]
    found = find(runs)
    only = found.answer._replace(
        **{name: table.filter(pl.col("score") == "dice_per_tile") for name, table in found.answer._asdict().items()}
    )
    assert len(found.answer.intervals) > len(only.intervals) > 0
    for draw in (forest, pair_matrix):
        one, other = (laid_out(functools.partial(draw, of)) for of in (found, found._replace(answer=only)))
        assert one.shown == other.shown


def test_slope_needs_two_datasets_with_two_ranked_encoders_in_common(part):
    def of(dataset, *names, control=()):
        counts = ((8, 2, 2), (6, 4, 4))
        return find([part(name, 0, *counts, dataset=dataset, control=name in control) for name in names])

    assert study_figures([of("d", "x", "y")]) == {}
    assert study_figures([of("d", "x", "y"), of("e", "x", "z")]) == {}
    assert study_figures([of("d", "x", "y"), of("e", "x", "y", control="y")]) == {}
    both = [of("d", "x", "y", "w"), of("e", "y", "x")]
    assert set(study_figures(both)) == {"slope.png", "slope.svg"}
    assert study_figures(both) == study_figures(both)


def test_slope_joins_the_dice_of_an_encoder_on_all_datasets(drawn, large):
    (axes,) = drawn["slope"].figure.axes
    lines = [line for line in axes.lines if line.get_linestyle() == "-" and tuple(line.get_xdata()) == (0, 1)]
    assert len(lines) == 15
    forms = ("{name}  {dice:.1f}", "{dice:.1f}  {name}")
    for side, (text, found) in enumerate(zip(forms, large.values(), strict=True)):
        dice = {row.encoder.display: 100 * row.mean[-1] for row in found.summary.ranked}
        assert {text.format(name=name, dice=value) for name, value in dice.items()} <= set(drawn["slope"].shown)
        heights = sorted(line.get_ydata()[side] for line in lines)
        level = np.mean(list(dice.values()))
        assert heights == pytest.approx(sorted(value - level for value in dice.values()))
        assert f"{found.summary.record.dataset_title} mean {level:.1f}" in drawn["slope"].shown


def test_svg_holds_names_as_text(odd_names):
    files = rendered("intervals", functools.partial(forest, odd_names), names_shown(odd_names.summary))
    tree = ET.fromstring(files["intervals.svg"])  # noqa: S314
    assert {LONG, SCRIPTS} <= {element.text for element in tree.iter("{http://www.w3.org/2000/svg}text")}


def test_png_and_svg_have_the_same_layout(puma):
    files = rendered("intervals", functools.partial(forest, puma), names_shown(puma.summary))
    width, height = (int.from_bytes(files["intervals.png"][at : at + 4]) for at in (16, 20))
    root = ET.fromstring(files["intervals.svg"])  # noqa: S314
    assert [float(root.get(side).removesuffix("pt")) for side in ("width", "height")] == pytest.approx(
        [width / 200 * 72, height / 200 * 72], abs=0.5
    )


def test_captions_name_the_runs(puma):
    assert {name for name, text in CAPTIONS.items() if "{runs}" in text} == {"curves"}
    assert set(CAPTIONS) == {*drawings(puma), "slope"}
    assert all("{" not in text.format(runs="seeds") for text in CAPTIONS.values())


def test_ranks_are_drawn_without_labels_that_no_tile_has(part):
    runs = [part(name, seed, (8, 2, 2), (0, 0, 0)) for name in "xy" for seed in range(2)]
    assert [axes.get_title() for axes in laid_out(functools.partial(ranks, find(runs))).figure.axes] == ["a", "mean"]
