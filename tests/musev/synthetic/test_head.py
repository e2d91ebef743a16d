"""Heads turn: features and keypoints go with them and vanish behind."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from musev.synthetic.head import Ball, Face, build_head, on_ball
from musev.synthetic.people import HAIR_STYLES, RandomStream, draw_attributes, draw_person
from musev.synthetic.shapes import Camera, Sketch
from musev.synthetic.skeleton import HEAD, Pose, solve


def sketch_of(turns: list[float], style: str = "short", scale: float = 300.0) -> Sketch:
    attributes = dataclasses.replace(draw_attributes(RandomStream(1)), hair_style=style)
    person = draw_person(attributes, RandomStream(2))
    pose = Pose(len(turns))
    pose.head_T3[:, 0] = turns
    camera = Camera(*(np.full(len(turns), value) for value in (scale, 64.0, 320.0)))
    return Sketch(person, solve(person.body, pose), camera, 1000)


def face(frames: int) -> Face:
    return Face(blink_T=np.zeros(frames), mouth_T=np.zeros(frames), smile=0.5)


def test_a_frontal_face_is_symmetric_with_everything_visible() -> None:
    sketch = sketch_of([0.0])
    _, points, visible = build_head(sketch, face(1))
    assert visible.all()
    middle = sketch.pixels_TJ2[0, HEAD, 0]
    nose, right_eye, left_eye, right_ear, left_ear = points[0]
    assert nose[0] == pytest.approx(middle, abs=0.5)
    assert right_ear[0] < right_eye[0] < nose[0] < left_eye[0] < left_ear[0]
    assert middle - right_eye[0] == pytest.approx(left_eye[0] - middle, abs=0.5)
    assert nose[1] > right_eye[1]


def test_turning_left_moves_the_nose_and_hides_the_far_ear_then_the_far_eye() -> None:
    _, points, visible = build_head(sketch_of([0.0, 0.6, 1.3]), face(3))
    assert points[0, 0, 0] < points[1, 0, 0] < points[2, 0, 0]
    assert visible[:, 4].tolist() == [True, False, False]  # left ear
    assert visible[:, 2].tolist() == [True, True, False]  # left eye
    assert visible[:, 3].all()  # right ear


@pytest.mark.parametrize("style", HAIR_STYLES)
def test_every_style_gives_finite_outlines_for_all_turns(style: str) -> None:
    turns = np.linspace(-1.4, 1.4, 15).tolist()
    sketch = sketch_of(turns, style)
    layers, _, _ = build_head(sketch, face(15))
    sketch._finish_hulls()
    limit = 16 * 1000
    for shape in [*layers["head"], *layers["back_hair"]]:
        assert len(shape.outline_T) == 15
        assert all(np.abs(outline).max() < limit for outline in shape.outline_T)


def test_bald_heads_have_no_hair_colour() -> None:
    for style, has_hair in (("bald", False), ("short", True)):
        sketch = sketch_of([0.0], style)
        layers, _, _ = build_head(sketch, face(1))
        colors = {shape.color for shapes in layers.values() for shape in shapes}
        assert (sketch.person.hair in colors) == has_hair


def test_small_heads_get_plain_eyes_and_large_ones_get_whites() -> None:
    for scale, whites in ((100.0, False), (300.0, True)):
        layers, _, _ = build_head(sketch_of([0.0], scale=scale), face(1))
        assert ((250, 250, 250) in {shape.color for shape in layers["head"]}) == whites


def test_closed_eyes_hide_their_whites() -> None:
    closed = Face(blink_T=np.array([0.0, 1.0]), mouth_T=np.zeros(2), smile=0.5)
    layers, _, _ = build_head(sketch_of([0.0, 0.0]), closed)
    whites = [shape for shape in layers["head"] if shape.color == (250, 250, 250)]
    assert whites
    assert all(shape.shown_T == [True, False] for shape in whites)


def test_an_open_mouth_is_taller() -> None:
    opening = Face(blink_T=np.zeros(2), mouth_T=np.array([0.0, 1.0]), smile=0.5)
    layers, _, _ = build_head(sketch_of([0.0, 0.0]), opening)
    mouth = next(shape for shape in layers["head"] if shape.color == (176, 66, 68))
    shut, wide = (np.ptp(outline[:, 1]) for outline in mouth.outline_T)
    assert wide > 1.5 * shut


def test_ball_points_have_length_one_and_a_profile_is_wider() -> None:
    np.testing.assert_allclose(np.linalg.norm(on_ball(np.array([0.3, 2.0]), 0.4), axis=-1), 1.0)
    ball = Ball(sketch_of([0.0, 1.5]))
    assert ball.half_width_T[1] > 1.1 * ball.half_width_T[0]
