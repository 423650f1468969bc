"""Where names stand in a scatter plot: near their points, over nothing else. Deterministic.

Each name has a fixed set of places around its point. A name takes the place with the lowest cost, given the places of
all others, until no name moves any more.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text
from scipy.optimize import isotonic_regression

Floats = npt.NDArray[np.float64]
GAPS = (2.5, 5.0, 9.0, 14.0, 20.0, 28.0, 38.0, 50.0, 64.0, 80.0)
"""Distances from the edge of the marker to the name, in points."""
ANGLES = np.arange(24) * (2 * np.pi / 24)
MARKER = 3.5
"""Half the width of a marker, in points."""
APART = 1.5
"""Space around a name, in points."""
LEADER_FROM = 6.0
"""A name that is further away gets a line to its point, in points."""
OVERLAP, OUTSIDE, ON_MARKER, ON_LEADER = 1e4, 1e4, 3e3, 1e3
"""Costs, in points of distance: a name over another one, outside the axes, over a marker, over the line of a name."""
CROSSING, PAST_MARKER, ON_LINE, NEARER = 200.0, 150.0, 40.0, 50.0
"""Costs: the line of a name over another one, or over a marker; a name over a line of the plot, or nearer to another
point than to its own."""
MOST_SWEEPS = 30


class Places(NamedTuple):
    """The possible places of one name: boxes (place, 4) as x0, y0, x1, y1, the ends of their lines (place, 2), and the
    cost of each place when there is no other name, (place,)."""

    boxes: Floats
    ends: Floats
    cost: Floats


def name_points(
    axes: Axes, points: Floats, names: list[str], *, size: float, colours: list[str], lines: Floats | None = None
) -> None:
    """Write the names of points (point, 2) into axes whose layout is final; far names get a line to their point.

    `lines` are boxes (line, 4) that names avoid, as x0, y0, x1, y1. Points and lines are in data units.
    """
    figure = axes.figure
    scale = 72 / figure.dpi
    at = axes.transData.transform(points) * scale
    frame = np.array(axes.get_window_extent().extents) * scale
    thin = axes.transData.transform(np.reshape([] if lines is None else lines, (-1, 2))).reshape(-1, 4) * scale
    texts = [
        axes.annotate(
            name, xy, xytext=(0, 0), textcoords="offset points", ha="center", va="center", fontsize=size, color=colour,
            zorder=2.5, linespacing=1.0, bbox={"pad": 0.3, "facecolor": "white", "alpha": 0.8, "linewidth": 0},
            arrowprops={"arrowstyle": "-", "linewidth": 0.5, "color": "#777777", "shrinkA": 0, "shrinkB": MARKER - 0.5},
        )
        for name, xy, colour in zip(names, points, colours, strict=True)
    ]  # fmt: skip
    renderer = FigureCanvasAgg(figure).get_renderer()
    sizes = [(box.width, box.height) for box in (Text.get_window_extent(text, renderer) for text in texts)]
    boxes = placed(at, np.reshape(sizes, (-1, 2)) * scale + 2 * APART, frame, thin)
    for text, box, point in zip(texts, boxes, at, strict=True):
        text.set_position(tuple((box[:2] + box[2:]) / 2 - point))
        if text.arrow_patch is not None:
            text.arrow_patch.set_visible(_distance(box, point) > MARKER + LEADER_FROM)
        text.set_in_layout(False)


def placed(points: Floats, sizes: Floats, frame: Floats, lines: Floats) -> Floats:
    """Return the boxes (name, 4) of names with sizes (name, 2) at points (name, 2) inside a frame (4,).

    Names avoid the boxes of `lines` (line, 4). All values are in typographic points.
    """
    places = [_places(i, points, size, frame, lines) for i, size in enumerate(sizes)]
    near = np.linalg.norm(points[:, None] - points[None], axis=-1) < 40
    order = np.lexsort((points[:, 0], -points[:, 1], -near.sum(axis=1)))  # where it is crowded, names choose first
    chosen: dict[int, int] = {}
    for _ in range(MOST_SWEEPS):
        before = dict(chosen)
        for i in order:
            others = [j for j in chosen if j != i]
            chosen[i] = int(np.argmin(_cost(i, others, chosen, places, points)))
        if chosen == before:
            break
    return np.reshape([places[i].boxes[chosen[i]] for i in range(len(points))], (-1, 4))


def spread(wanted: Floats, apart: float, low: float, high: float) -> Floats:
    """Return values between limits, at least `apart` from each other, as close as possible to the wanted ones."""
    order = np.argsort(wanted, kind="stable")
    steps = apart * np.arange(len(wanted))
    result = np.empty(len(wanted))
    result[order] = np.clip(isotonic_regression(wanted[order] - steps).x, low, high - steps[-1]) + steps
    return result


def _places(i: int, points: Floats, size: Floats, frame: Floats, lines: Floats) -> Places:
    towards = np.stack([np.cos(ANGLES), np.sin(ANGLES)], axis=-1)
    gaps = np.repeat(np.array(GAPS), len(ANGLES))
    # a name to the side starts at its point, a name above is centred over it
    half = np.clip(1.5 * towards, -1, 1) * size / 2
    centres = (points[i] + (MARKER + np.array(GAPS))[:, None, None] * towards + half).reshape(-1, 2)
    boxes = np.concatenate([centres - size / 2, centres + size / 2], axis=1)
    ends = np.clip(points[i], boxes[:, :2], boxes[:, 2:])
    others = np.delete(points, i, axis=0)
    markers = np.concatenate([points - MARKER, points + MARKER], axis=1)
    away = np.linalg.norm(np.clip(others, boxes[:, None, :2], boxes[:, None, 2:]) - others, axis=-1)
    cost = gaps + np.tile(3 * np.abs(np.sin(2 * ANGLES)), len(GAPS))  # straight above or beside is easiest to read
    cost += OUTSIDE * ((boxes[:, :2] < frame[:2]).any(axis=1) | (boxes[:, 2:] > frame[2:]).any(axis=1))
    cost += ON_MARKER * (_overlap(boxes[:, None], markers[None]) > 0).sum(axis=1)
    cost += NEARER * (away < np.linalg.norm(ends - points[i], axis=-1)[:, None] - 0.5).sum(axis=1)
    cost += PAST_MARKER * (_from_segment(points[i], ends[:, None], others[None]) < MARKER + 1).sum(axis=1)
    cost += ON_LINE * (_overlap(boxes[:, None], lines[None] + [-0.5, -0.5, 0.5, 0.5]) > 0).sum(axis=1)
    return Places(boxes, ends, cost)


def _cost(i: int, others: list[int], chosen: dict[int, int], places: list[Places], points: Floats) -> Floats:
    """Return the cost of each place of a name while the others stay where they are, (place,)."""
    mine = places[i]
    if not others:
        return mine.cost
    boxes = np.array([places[j].boxes[chosen[j]] for j in others])
    ends = np.array([places[j].ends[chosen[j]] for j in others])
    starts = points[others]
    area = _overlap(mine.boxes[:, None], boxes[None])
    cost = mine.cost + ((area > 0) * OVERLAP + area).sum(axis=1)
    cost += ON_LEADER * _passes(points[i], mine.ends[:, None], boxes[None]).sum(axis=1)
    cost += ON_LEADER * _passes(starts[None], ends[None], mine.boxes[:, None]).sum(axis=1)
    crossed = _cross(points[i], mine.ends[:, None], starts[None], ends[None])
    return np.asarray(cost + CROSSING * crossed.sum(axis=1))


def _overlap(a: Floats, b: Floats) -> Floats:
    """Return the common area of boxes (..., 4)."""
    sides = np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2])
    return np.asarray(np.prod(np.maximum(sides, 0), axis=-1))


def _passes(start: Floats, end: Floats, boxes: Floats) -> npt.NDArray[np.bool_]:
    """Return whether segments pass through boxes, by twelve points of each segment."""
    along = np.linspace(0.02, 0.98, 12)[:, None]
    at = end[..., None, :] * along + start[..., None, :] * (1 - along)
    inside = (at > boxes[..., None, :2]) & (at < boxes[..., None, 2:])
    return np.asarray(inside.all(axis=-1).any(axis=-1))


def _cross(a: Floats, b: Floats, c: Floats, d: Floats) -> npt.NDArray[np.bool_]:
    """Return whether the segments a-b and c-d cross."""

    def side(p: Floats, q: Floats, r: Floats) -> Floats:
        return np.asarray((q - p)[..., 0] * (r - p)[..., 1] - (q - p)[..., 1] * (r - p)[..., 0])

    return np.asarray((side(a, b, c) * side(a, b, d) < 0) & (side(c, d, a) * side(c, d, b) < 0))


def _from_segment(start: Floats, end: Floats, points: Floats) -> Floats:
    """Return the distance of points to segments."""
    along = end - start
    length = np.maximum((along**2).sum(axis=-1), 1e-9)
    share = np.clip(((points - start) * along).sum(axis=-1) / length, 0, 1)
    return np.asarray(np.linalg.norm(points - (start + share[..., None] * along), axis=-1))


def _distance(box: Floats, point: Floats) -> float:
    return float(np.linalg.norm(np.clip(point, box[:2], box[2:]) - point))
