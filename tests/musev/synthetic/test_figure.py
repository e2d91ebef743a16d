"""Layers of a person: far before near, hands as asked."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from musev.synthetic.figure import build_figure
from musev.synthetic.head import Face
from musev.synthetic.people import (
    SHIRT_SHAPES,
    TROUSERS_SHAPES,
    RandomStream,
    draw_attributes,
    draw_person,
)
from musev.synthetic.shapes import Camera, Figure
from musev.synthetic.skeleton import Pose, solve

FRAMES = 2


def figure_of(
    yaw: float,
    *,
    hands: tuple[str, str] = ("relaxed", "relaxed"),
    scale: float = 100.0,
    **looks: str,
) -> Figure:
    attributes = dataclasses.replace(draw_attributes(RandomStream(1)), **looks)
    person = draw_person(attributes, RandomStream(2))
    pose = Pose(FRAMES)
    pose.facing_T[:] = yaw
    camera = Camera(*(np.full(FRAMES, value) for value in (scale, 64.0, 120.0)))
    face = Face(blink_T=np.zeros(FRAMES), mouth_T=np.zeros(FRAMES), smile=0.5)
    return build_figure(
        person,
        solve(person.body, pose),
        camera,
        hands,
        face,
        height=128,
        hands_T=np.array([True, False]),
    )


@pytest.mark.parametrize(("yaw", "far"), [(1.2, 1), (-1.2, 0)])
def test_the_far_side_is_drawn_behind_the_near_one(yaw: float, far: int) -> None:
    order = figure_of(yaw).order_T[0]
    near = 1 - far
    assert order.index(f"arm{far}") < order.index("trunk") < order.index(f"arm{near}")
    assert order.index(f"leg{far}") < order.index(f"leg{near}") < order.index("pelvis")


def test_from_the_front_both_arms_lie_over_the_trunk_and_hair_lies_behind() -> None:
    order = figure_of(0.0).order_T[0]
    assert order[0] == "back_hair"
    assert all(order.index(f"arm{side}") > order.index("trunk") for side in (0, 1))
    assert order.index("trunk") < order.index("head")


def test_every_layer_is_stacked_once() -> None:
    figure = figure_of(0.4)
    for order in figure.order_T:
        assert sorted(order) == sorted(figure.layers)


def test_keypoints_are_complete_and_finite() -> None:
    figure = figure_of(0.0)
    assert figure.points_TJ2.shape == (FRAMES, 18, 2)
    assert np.isfinite(figure.points_TJ2).all()
    assert figure.visible_TJ.all()
    assert not figure_of(1.3).visible_TJ.all()


def test_open_hands_get_fingers_only_where_they_can_be_seen() -> None:
    def shapes(**values: object) -> int:
        return len(figure_of(0.0, **values).layers["arm0"])

    assert shapes(hands=("open", "relaxed"), scale=300.0) == shapes(scale=300.0) + 8
    assert shapes(hands=("open", "relaxed"), scale=100.0) == shapes(scale=100.0)
    fingers = figure_of(0.0, hands=("open", "relaxed"), scale=300.0).layers["arm0"]
    assert [True, False] in [shape.shown_T for shape in fingers]


@pytest.mark.parametrize("trousers", TROUSERS_SHAPES)
@pytest.mark.parametrize("shirt", SHIRT_SHAPES)
def test_clothes_cover_what_their_shape_says(shirt: str, trousers: str) -> None:
    figure = figure_of(0.0, shirt_shape=shirt, trousers_shape=trousers)
    person_colors = {name: {s.color for s in shapes} for name, shapes in figure.layers.items()}
    person = draw_person(
        dataclasses.replace(
            draw_attributes(RandomStream(1)), shirt_shape=shirt, trousers_shape=trousers
        ),
        RandomStream(2),
    )
    assert (person.shirt in person_colors["arm0"]) == (shirt != "none")
    assert (person.trousers in person_colors["leg0"]) == (trousers != "skirt")
    assert (person.skin in person_colors["leg0"]) == (trousers != "trousers")
    assert person.trousers in person_colors["pelvis"]
    assert person.shirt in person_colors["trunk"]


def test_a_raised_arm_lies_between_trunk_and_head() -> None:
    person = draw_person(draw_attributes(RandomStream(1)), RandomStream(2))
    pose = Pose(1)
    pose.upper_ST3[0] = [0.4, 1.0, 0.0]
    pose.fore_ST3[0] = [0.1, 1.0, 0.0]
    order = build_figure(
        person,
        solve(person.body, pose),
        Camera(np.array([100.0]), np.array([64.0]), np.array([120.0])),
        ("relaxed", "relaxed"),
        Face(blink_T=np.zeros(1), mouth_T=np.zeros(1), smile=0.5),
        height=128,
        hands_T=np.array([True]),
    ).order_T[0]
    assert order.index("trunk") < order.index("arm0") < order.index("head") < order.index("arm1")
