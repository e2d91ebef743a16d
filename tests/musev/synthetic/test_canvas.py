"""Outlines close, meet their points and keep their place; paint stays inside its masks."""

from __future__ import annotations

import numpy as np
import pytest

from musev.synthetic.canvas import (
    Canvas,
    arc,
    bumpy_oval,
    colour_of,
    curve,
    mirrored,
    mix,
    oval,
    rounded_box,
    smooth,
)

SQUARE = [(0.25, 0.25), (0.75, 0.25), (0.75, 0.75), (0.25, 0.75)]


def test_paint_covers_the_outline_only() -> None:
    canvas = Canvas(100, 100)
    canvas.paint(canvas.outline(SQUARE), (10, 20, 30))
    pixels = np.asarray(canvas.image)
    assert (pixels[30:70, 30:70] == (10, 20, 30)).all()
    assert (pixels[:24] == 0).all()
    assert (pixels[:, 77:] == 0).all()


def test_paint_obeys_opacity_and_inside() -> None:
    canvas = Canvas(100, 100)
    left_half = canvas.outline([(0, 0), (0.5, 0), (0.5, 1), (0, 1)])
    canvas.paint(canvas.outline(SQUARE), (200, 200, 200), opacity=0.5, inside=left_half)
    pixels = np.asarray(canvas.image).astype(int)
    np.testing.assert_allclose(pixels[50, 40], 100, atol=2)
    assert (pixels[50, 60] == 0).all()


def test_blur_softens_an_edge() -> None:
    canvas = Canvas(100, 100)
    row = np.asarray(canvas.outline(SQUARE, blur=0.05))[50].astype(int)
    assert len({value for value in row if 0 < value < 255}) > 5


@pytest.mark.parametrize(("width", "height"), [(100, 100), (160, 100), (100, 160), (100, 300)])
def test_unit_square_is_centred_and_a_body_reaches_the_lower_edge(width: int, height: int) -> None:
    canvas = Canvas(width, height)
    assert canvas.left == (width - 100) / 2
    assert canvas.top + 1.3 * canvas.unit > height
    assert 0 <= canvas.top <= height - canvas.unit


def test_stroke_is_thickest_in_its_middle() -> None:
    canvas = Canvas(200, 200)
    canvas.stroke(arc((0.1, 0.5), (0.9, 0.5), 0.0), 0.1, (255, 255, 255))
    thickness = (np.asarray(canvas.image)[..., 0] > 0).sum(axis=0)
    assert thickness[100] >= 18
    assert thickness[25] < thickness[60] < thickness[100]


def test_arc_starts_ends_and_bows_where_told() -> None:
    path = arc((0.2, 0.4), (0.6, 0.5), 0.1)
    assert path[0] == pytest.approx((0.2, 0.4))
    assert path[-1] == pytest.approx((0.6, 0.5))
    assert path[len(path) // 2] == pytest.approx((0.4, 0.55))


def test_smooth_lines_go_through_their_points() -> None:
    for path in (smooth(SQUARE), curve(SQUARE)):
        for point in SQUARE:
            assert min(np.hypot(x - point[0], y - point[1]) for x, y in path) < 1e-9
    assert smooth(SQUARE)[0] == pytest.approx(SQUARE[0])
    assert curve(SQUARE)[-1] == pytest.approx(SQUARE[-1])


def test_mirrored_lists_the_middle_points_once() -> None:
    half = [(0, 0.1), (0.2, 0.3), (0, 0.5)]
    assert mirrored(half) == [(0, 0.1), (0.2, 0.3), (0, 0.5), (-0.2, 0.3)]


@pytest.mark.parametrize("outline", [oval((0.5, 0.4), 0.2, 0.1), rounded_box((0.5, 0.4), 0.2, 0.1)])
def test_ovals_have_the_wanted_extent(outline: list[tuple[float, float]]) -> None:
    points = np.array(outline)
    assert points.min(axis=0) == pytest.approx((0.3, 0.3), abs=1e-3)
    assert points.max(axis=0) == pytest.approx((0.7, 0.5), abs=1e-3)


def test_bumps_stick_out_by_their_size() -> None:
    distance = np.hypot(*np.array(bumpy_oval((0, 0), 0.2, 0.2, 6, 0.05)).T)
    assert distance.min() == pytest.approx(0.2)
    assert distance.max() == pytest.approx(0.25)


def test_colours() -> None:
    assert colour_of("0a14ff") == (10, 20, 255)
    assert mix((0, 0, 0), (100, 200, 50), 0.5) == (50, 100, 25)
