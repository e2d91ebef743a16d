"""A posed person as shapes in pixels, back to front.

Axes here: T frame, last axis 2 (pixels); sides 0 the person's right, 1 left.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np

from musev.synthetic.head import Face, build_head
from musev.synthetic.people import Person
from musev.synthetic.shapes import Camera, Figure, Part, Shape, Sketch
from musev.synthetic.skeleton import CHEST, HAND, HEAD, HEEL, PELVIS, TOE, WAIST, Joints, columns

_RIGHT, _LEFT = 0, 1
_HEAD_JOINTS = [0, 14, 15, 16, 17]
FINGERS_PX = 170.0
"""Height of a body in pixels from which an open hand gets fingers."""


def build_figure(
    person: Person,
    joints: Joints,
    camera: Camera,
    hands: Sequence[str],
    face: Face,
    *,
    height: int,
    hands_T: np.ndarray,
) -> Figure:
    """Outlines of a posed person.

    Args:
        person: Body and colours.
        joints: Solved pose.
        camera: View space to pixels.
        hands: Shape of the right and the left hand.
        face: What the face does.
        height: Rows of the picture.
        hands_T: Frames in which the hands have their shapes; elsewhere they are relaxed.

    Returns:
        Layers and their order in every frame, with the keypoints in pixels.
    """
    sketch = Sketch(person, joints, camera, height)
    layers = {f"leg{side}": _leg(sketch, side) for side in (_RIGHT, _LEFT)}
    for side in (_RIGHT, _LEFT):
        layers[f"arm{side}"] = _arm(sketch, side, hands[side], hands_T)
    layers["pelvis"] = _pelvis(sketch)
    layers["trunk"] = _trunk(sketch)
    head_layers, head_points, head_visible = build_head(sketch, face)
    sketch.finish()
    points_TJ2 = sketch.pixels_TJ2[:, :18].copy()
    points_TJ2[:, _HEAD_JOINTS] = head_points
    visible = np.ones(points_TJ2.shape[:2], bool)
    visible[:, _HEAD_JOINTS] = head_visible
    return Figure(layers | head_layers, _orders(joints), points_TJ2, visible)


def _leg(sketch: Sketch, side: int) -> list[Shape]:
    person, at = sketch.person, sketch.pixels_TJ2
    hip, knee, ankle = (at[:, 8 + 3 * side + k] for k in range(3))
    long = person.trousers_shape == "trousers"
    below = person.trousers if long else person.skin
    above = person.skin if person.trousers_shape == "skirt" else person.trousers
    girth = person.body.girth**0.6
    slim = girth if long else 0.85 * girth
    parts = [
        Part(at[:, HEEL + side], at[:, TOE + side], 0.021, 0.018, person.shoes),
        Part(knee, ankle, 0.034 * slim, 0.025 * slim, below),
    ]
    if person.trousers_shape == "shorts":
        cuff = hip + 0.88 * (knee - hip)
        parts.append(Part(hip, cuff, 0.05 * girth, 0.044 * girth, above))
    else:
        parts.append(Part(hip, knee, 0.049 * girth, 0.036 * girth, above))
    return sketch.limb(parts)


def _arm(sketch: Sketch, side: int, hand: str, hands_T: np.ndarray) -> list[Shape]:
    person, at = sketch.person, sketch.pixels_TJ2
    shoulder, elbow, wrist = (at[:, 2 + 3 * side + k] for k in range(3))
    sleeve, shirt, skin = person.shirt_shape, person.shirt, person.skin
    girth = person.body.girth**0.6
    upper: list[Part] = []
    if sleeve == "short":
        cuff = shoulder + 0.55 * (elbow - shoulder)
        upper.append(Part(shoulder, elbow, 0.029 * girth, 0.0275 * girth, skin))
        upper.append(Part(shoulder, cuff, 0.035 * girth, 0.036 * girth, shirt))
    else:
        color, thick = (shirt, 0.035) if sleeve == "long" else (skin, 0.031)
        upper.append(Part(shoulder, elbow, thick * girth, 0.03 * girth, color))
    if sleeve != "none":
        # Cloth without a contour over the seam: the sleeve grows out of the shirt.
        inside = shoulder + 0.26 * (at[:, CHEST] - shoulder)
        upper.append(Part(inside, shoulder, 0.03 * girth, 0.034 * girth, shirt, contoured=False))
    fore = Part(elbow, wrist, 0.0275 * girth, 0.021 * girth, shirt if sleeve == "long" else skin)
    return sketch.limb([*upper, *_hand(sketch, side, hand, hands_T), fore])


def _hand(sketch: Sketch, side: int, hand: str, hands_T: np.ndarray) -> list[Part]:
    """Palm, thumb and, where they would show, fingers, as parts of the arm's chain."""
    wrist, skin = sketch.pixels_TJ2[:, 4 + 3 * side], sketch.person.skin
    along = sketch.pixels_TJ2[:, HAND + side] - wrist
    unit = along / (np.sqrt((along**2).sum(axis=-1, keepdims=True)) + 1e-6)
    across = columns(-unit[:, 1], unit[:, 0]) * (1 if side else -1)
    across = across * 0.052 * sketch.camera.scale_T[:, None]

    def at(forward: float, sideways: float) -> np.ndarray:
        return wrist + forward * along + sideways * across

    near = bool(sketch.camera.scale_T[0] > FINGERS_PX)
    parts = [
        Part(wrist, at(0.8, 0.0), 0.02, 0.022, skin),
        Part(at(0.2, 0.0), at(0.75, -0.62), 0.011, 0.009, skin, contoured=near),
    ]
    if hand == "point":
        shown = hands_T.tolist()
        parts.append(Part(at(0.5, -0.15), at(2.0, -0.15), 0.011, 0.0085, skin, shown_T=shown))
    fingers_T = hands_T & (sketch.camera.scale_T > FINGERS_PX)
    if hand == "open" and fingers_T.any():
        shown = fingers_T.tolist()
        for spread, reach in ((-0.42, 1.65), (-0.14, 1.95), (0.14, 1.9), (0.42, 1.6)):
            base, tip = at(0.8, 0.75 * spread), at(reach, 1.6 * spread)
            parts.append(Part(base, tip, 0.0095, 0.0085, skin, shown_T=shown))
    return parts


def _pelvis(sketch: Sketch) -> list[Shape]:
    person, at = sketch.person, sketch.pixels_TJ2
    girth = person.body.girth
    hips = [at[:, 8], at[:, 11]]
    waist, pelvis = at[:, WAIST], at[:, PELVIS]
    if person.trousers_shape == "skirt":
        hems = [
            hip + 0.62 * (knee - hip) for hip, knee in zip(hips, (at[:, 9], at[:, 12]), strict=True)
        ]
        middle = (hems[0] + hems[1]) / 2
        discs = [(hip, 0.056 * girth) for hip in hips]
        discs += [(middle + 1.25 * (hem - middle), 0.062 * girth) for hem in hems]
        return [*sketch.hull([(pelvis, 0.06 * girth), *discs], person.trousers)]
    discs = [(hip, 0.05 * girth) for hip in hips]
    return [*sketch.hull([*discs, ((waist + pelvis) / 2, 0.05 * girth)], person.trousers)]


def _trunk(sketch: Sketch) -> list[Shape]:
    """Neck, then the shirt in two hulls that meet in the waist, so that the trunk can bend."""
    person, at = sketch.person, sketch.pixels_TJ2
    girth = person.body.girth
    shoulders, hips = [at[:, 2], at[:, 5]], [at[:, 8], at[:, 11]]
    waist, chest, head = at[:, WAIST], at[:, CHEST], at[:, HEAD]
    across = (shoulders[1] - shoulders[0]) * 0.3
    waists = [(waist - across, 0.052 * girth), (waist + across, 0.052 * girth)]
    hem = [(hip + 0.35 * (waist - at[:, PELVIS]), 0.05 * girth) for hip in hips]
    top = [(shoulder + 0.1 * (waist - shoulder), 0.034 * girth) for shoulder in shoulders]
    breast = [(chest + 0.25 * (waist - chest), 0.064 * girth)]
    lower, lower_fill = sketch.hull([*waists, *hem], person.shirt)
    upper, upper_fill = sketch.hull([*top, *breast, *waists], person.shirt)
    collar = chest + 0.16 * (head - chest)
    neck, neck_fill, opening = sketch.limb(
        [
            Part(chest, head, 0.031, 0.031, person.skin),
            Part(chest, collar, 0.026, 0.03, person.skin, contoured=False),
        ]
    )
    return [neck, lower, upper, neck_fill, lower_fill, upper_fill, opening]


def _orders(joints: Joints) -> list[tuple[str, ...]]:
    """Stack every frame by depth: the far arm behind the trunk, the nearer leg over the other."""
    depth = joints.points_TJ3[..., 2]
    legs = depth[:, [9, 12]] + depth[:, [10, 13]]
    hands = depth[:, [3, 6]] + depth[:, [4, 7]] - 2 * depth[:, [CHEST]]
    shoulders = depth[:, [2, 5]] - depth[:, [CHEST]]
    behind = (shoulders < -0.045) & (hands < 0.16)
    # A raised upper arm lies beside the head, under hair and cheek.
    height = joints.points_TJ3[..., 1]
    raised = (height[:, [3, 6]] > height[:, [2, 5]] + 0.05) & (hands < 0.2)
    places = np.where(behind, 0, np.where(raised, 1, 2))
    left_leg_T = (legs[:, 1] > legs[:, 0]).tolist()
    left_hand_T = (hands[:, 1] >= hands[:, 0]).tolist()
    return [*map(_order, left_leg_T, left_hand_T, *places.T.tolist())]


@functools.cache
def _order(
    left_leg_nearer: bool, left_hand_nearer: bool, right_place: int, left_place: int
) -> tuple[str, ...]:
    """Layers from back to front; an arm's place: 0 behind the trunk, 1 the head, 2 before both."""
    near_leg = int(left_leg_nearer)
    places = (right_place, left_place)
    arms = [
        [f"arm{side}" for side in ((0, 1) if left_hand_nearer else (1, 0)) if places[side] == place]
        for place in range(3)
    ]
    legs = (f"leg{1 - near_leg}", f"leg{near_leg}")
    return ("back_hair", *arms[0], *legs, "pelvis", "trunk", *arms[1], "head", *arms[2])
