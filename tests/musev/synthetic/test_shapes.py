"""Outlines wrap what they should, and painting keeps order and mask."""

from __future__ import annotations

import numpy as np

from musev.synthetic.actions import draw_motion, pose_at
from musev.synthetic.people import RandomStream, draw_attributes, draw_person
from musev.synthetic.shapes import (
    SHADOW,
    SHIFT,
    Camera,
    Figure,
    Part,
    Shape,
    Sketch,
    contour_of,
    fills_of,
    fixed,
    paint,
    shade,
)
from musev.synthetic.skeleton import solve


def sketch_of(frames: int = 2, scale: float = 100.0) -> Sketch:
    person = draw_person(draw_attributes(RandomStream(1)), RandomStream(2))
    motion = draw_motion("standing", RandomStream(3))
    joints = solve(person.body, pose_at(motion, person.body, np.arange(frames) / 8))
    camera = Camera(*(np.full(frames, value) for value in (scale, 64.0, 120.0)))
    return Sketch(person, joints, camera, 128)


def at(*points: tuple[float, float]) -> np.ndarray:
    return np.array(points, float)


def square(x: float, y: float, half: float) -> list[np.ndarray]:
    return [fixed(np.array([x, y]) + half * np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]))]


def painted(layers: dict[str, list[Shape]], order: tuple[str, ...]) -> np.ndarray:
    canvas = np.zeros((32, 32, 4), np.uint8)
    empty = np.zeros((1, 18, 2))
    figure = Figure(layers, [order], empty, empty[..., 0] > 0)
    paint(fills_of(figure), order, 0, canvas)
    return canvas


def test_later_layers_cover_earlier_ones_and_shadows_stay_out_of_the_mask() -> None:
    layers = {
        "low": [Shape((200, 0, 0), outline_T=square(12, 12, 6))],
        "high": [Shape((0, 200, 0), outline_T=square(18, 12, 6))],
        SHADOW: [Shape((9, 9, 9), outline_T=square(12, 25, 4))],
    }
    canvas = painted(layers, (SHADOW, "low", "high"))
    assert tuple(canvas[12, 15]) == (0, 200, 0, 255)
    assert tuple(canvas[12, 9]) == (200, 0, 0, 255)
    assert tuple(canvas[25, 12]) == (9, 9, 9, 0)
    assert tuple(painted(layers, ("high", "low"))[12, 15]) == (200, 0, 0, 255)


def test_shapes_are_painted_only_where_shown() -> None:
    hidden = Shape((200, 0, 0), shown_T=[False], outline_T=square(12, 12, 6))
    assert not painted({"a": [hidden]}, ("a",)).any()


def test_a_bar_is_as_long_and_wide_as_asked() -> None:
    sketch = sketch_of()
    part = Part(at((20, 50), (20, 50)), at((80, 50), (20, 90)), 0.05, 0.03, (9, 9, 9))
    contour, fill = sketch.limb([part])
    sketch._finish_bars()
    across, upright = (outline / (1 << SHIFT) for outline in fill.outline_T)
    assert abs(np.ptp(across[:, 0]) - (60 + 5 + 3)) < 1.5
    assert abs(np.ptp(across[:, 1]) - 10) < 1.5
    assert abs(np.ptp(upright[:, 1]) - (40 + 5 + 3)) < 1.5
    assert np.ptp(contour.outline_T[0][:, 0]) > np.ptp(fill.outline_T[0][:, 0])


def test_a_bar_wholly_below_the_picture_is_left_out() -> None:
    sketch = sketch_of()
    part = Part(at((20, 50), (20, 300)), at((80, 50), (20, 340)), 0.05, 0.03, (9, 9, 9))
    _, fill = sketch.limb([part])
    sketch._finish_bars()
    assert fill.shown_T == [True, False]


def test_a_hull_wraps_its_discs() -> None:
    sketch = sketch_of()
    discs = [(at((30, 30), (30, 30)), 0.1), (at((70, 60), (30, 30)), 0.05)]
    contour, fill = sketch.hull(discs, (9, 9, 9))
    sketch._finish_hulls()
    first = fill.outline_T[0] / (1 << SHIFT)
    assert abs(first[:, 0].min() - 20) < 1
    assert abs(first[:, 0].max() - 75) < 1
    lone = fill.outline_T[1] / (1 << SHIFT)  # the second disc lies inside the first or beside it
    assert abs(np.ptp(lone[:, 1]) - 20) < 1
    assert contour.outline_T[0][:, 0].min() < fill.outline_T[0][:, 0].min()


def test_radii_follow_the_camera_frame_by_frame() -> None:
    sketch = sketch_of()
    sketch.camera = Camera(np.array([100.0, 200.0]), np.zeros(2), np.zeros(2))
    _, fill = sketch.hull([(at((0, 0), (0, 0)), 0.1)], (9, 9, 9))
    sketch._finish_hulls()
    near, far = (np.ptp(outline[:, 0]) for outline in fill.outline_T)
    assert 1.9 < far / near < 2.2


def test_contours_stand_out_from_every_surface() -> None:
    for color in ((240, 240, 240), (38, 38, 44), (214, 40, 44), (20, 20, 20)):
        assert max(abs(a - b) for a, b in zip(color, contour_of(color), strict=True)) > 30
    assert shade((100, 50, 0), 0.5) == (50, 25, 0)
    assert shade((0, 0, 0), 1.2) == (51, 51, 51)
