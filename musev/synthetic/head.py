"""The head of a drawn person: skull, face and hair on a turning ball.

Features live on a unit ball (x to the person's left, y up, z to the front), are turned with the
head, flattened to the plane of the picture, stretched to the head's width and height and tilted.
Axes here: T frame, P outline point, last axis 2 (plane or pixels) or 3 (ball).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from musev.synthetic.people import Person
from musev.synthetic.shapes import Shape, Sketch, circle, contour_of, fixed, shade, shares
from musev.synthetic.skeleton import CHEST, HEAD, columns, rotation

DETAIL_PX = 13.0
"""Half height of a head from which eyes get whites, irises and lids."""
HEAD_DEPTH = 1.14
"""A head is this much deeper than wide."""
_EYE_TURN = 0.42
_LIP = (176, 66, 68)
_EYE_DARK = (34, 26, 28)
_WHITE = (250, 250, 250)
_LID = np.array([0.0, 0.025, 0.0])
_SHINE = np.array([0.045, 0.05, 0.0])


@dataclass(frozen=True)
class Face:
    """What a face does."""

    blink_T: np.ndarray
    """How far the eyes are closed, 0 to 1."""
    mouth_T: np.ndarray
    """How far the mouth is open, 0 to 1."""
    smile: float
    """Corners of the mouth up, 0 to 1."""


def on_ball(azimuth: np.ndarray | float, elevation: np.ndarray | float) -> np.ndarray:
    """Points of the unit ball from angles: azimuth to the person's left, elevation up."""
    flat = np.cos(elevation)
    return columns(np.sin(azimuth) * flat, np.sin(elevation), np.cos(azimuth) * flat)


class Ball:
    """A head's ball in every frame, the way from it to pixels, and the shapes noted on it."""

    def __init__(self, sketch: Sketch) -> None:
        joints, body = sketch.joints, sketch.person.body
        up = joints.turn_T33[:, :, 1]
        tilt_T = np.arctan2(-up[:, 0], up[:, 1])
        self.upright_T33 = rotation(2, -tilt_T) @ joints.turn_T33
        front = self.upright_T33[:, :, 2]
        self.yaw_T = np.arctan2(front[:, 0], front[:, 2])
        half_width_T = body.head_half_width * np.hypot(
            np.cos(self.yaw_T), HEAD_DEPTH * np.sin(self.yaw_T)
        )
        scale_T = sketch.camera.scale_T
        self.half_width_T = scale_T * half_width_T
        self.height_T = scale_T * body.head_half_height
        """Half height in pixels."""
        self.line_T = sketch.line_T / self.height_T
        """Thickness of contours on the ball."""
        self.detailed_T = self.height_T >= DETAIL_PX
        self.fine = float(self.height_T.max()) > 48
        self._centre_T2 = sketch.pixels_TJ2[:, HEAD]
        self._tilt_T22 = rotation(2, tilt_T)[:, :2, :2] * np.array([[1.0], [-1.0]])
        self._planes: list[tuple[np.ndarray, Shape]] = []
        self._spots: list[tuple[np.ndarray, float, np.ndarray | float, Shape]] = []

    def turn(self, points_P3: np.ndarray) -> np.ndarray:
        """Ball points, one set or one a frame, turned into view, ``(T, P, 3)``."""
        return points_P3 @ self.upright_T33.transpose(0, 2, 1)

    def pixels(self, plane_TP2: np.ndarray) -> np.ndarray:
        """Points of the plane (ball seen from the front, radius 1) to pixels; narrows the jaw."""
        below = np.clip(-plane_TP2[..., 1], 0, 1.2)
        x_TP = plane_TP2[..., 0] * (1 - 0.17 * below**2) * self.half_width_T[:, None]
        y_TP = plane_TP2[..., 1] * self.height_T[:, None]
        shaped = columns(x_TP, y_TP)
        return self._centre_T2[:, None] + shaped @ self._tilt_T22.transpose(0, 2, 1)

    def outline(self, plane_TP2: np.ndarray, shape: Shape) -> Shape:
        """Note a shape by its outline in the plane."""
        self._planes.append((plane_TP2, shape))
        return shape

    def spot(
        self, centre_T3: np.ndarray, radius_x: float, radius_y: np.ndarray | float, shape: Shape
    ) -> Shape:
        """Note a flat ellipse on the ball's surface; it narrows where the surface turns away."""
        self._spots.append((centre_T3, radius_x, radius_y, shape))
        return shape

    def finish(self) -> None:
        """Compute the outlines of every shape noted."""
        ring = circle(24 if self.fine else 8)
        centre_TN3 = np.array([centre for centre, *_ in self._spots]).transpose(1, 0, 2)
        narrow_TN = np.sqrt(np.clip(1 - centre_TN3[..., 0] ** 2, 0.12, 1))
        wide_TN = narrow_TN * np.array([radius_x for _, radius_x, _, _ in self._spots])
        frames = len(self.yaw_T)
        radii = np.empty((frames, len(self._spots), 2))
        radii[..., 0] = wide_TN
        for n, (_, _, radius_y, _) in enumerate(self._spots):
            radii[:, n, 1] = radius_y
        spots = centre_TN3[:, :, None, :2] + radii[:, :, None] * ring
        planes = [plane for plane, _ in self._planes]
        everything = np.concatenate([spots.reshape(frames, -1, 2), *planes], axis=1)
        outlines = fixed(self.pixels(everything))
        first = 0
        sizes = [len(ring)] * len(self._spots) + [plane.shape[1] for plane in planes]
        shapes = [shape for *_, shape in self._spots] + [shape for _, shape in self._planes]
        for size, shape in zip(sizes, shapes, strict=True):
            shape.outline_T = outlines[:, first : first + size]
            first += size


_EYES = on_ball(np.array([-_EYE_TURN, _EYE_TURN]), 0.0)
_EARS = np.array([[-1.0, -0.06, -0.1], [1.0, -0.06, -0.1]])
_BROWS = np.concatenate(
    [
        on_ball(sign * np.array([0.2, 0.42, 0.64, 0.64, 0.42, 0.2]), height)
        for sign in (-1, 1)
        for height in [np.array([0.31, 0.37, 0.29, 0.25, 0.30, 0.24])]
    ]
)
_MARKS = np.concatenate(
    [
        [[0.0, -0.2, 1.0]],
        _EYES,
        _EARS * [0.93, 1.0, 1.0],
        _EARS,
        [[0.0, -0.27, 1.0], [0.0, -0.1, 0.9], [0.0, -0.25, 1.17]],
        on_ball(np.array([0.0]), -0.5),
        _BROWS,
    ]
)
"""Every fixed point of a head: five keypoints, ears, nose (shade, bridge, tip), mouth, brows."""
_FACES_CAMERA = np.array([-0.1, 0.05, 0.05, -0.4, -0.4])


def build_head(sketch: Sketch, face: Face) -> tuple[dict[str, list[Shape]], np.ndarray, np.ndarray]:
    """Outlines of a head and the five keypoints on it.

    Args:
        sketch: The person and the camera.
        face: Blinks and mouth.

    Returns:
        ``(layers, points_T52, visible_T5)``: layers ``back_hair`` and ``head``; nose, right eye,
        left eye, right ear and left ear in pixels, and whether they face the camera.
    """
    ball = Ball(sketch)
    marks = ball.turn(_MARKS)
    bald = sketch.person.hair_style == "bald"
    layers = {
        "back_hair": _back_hair(sketch, ball),
        "head": [
            *_skull(sketch, ball, marks),
            *_features(sketch, ball, marks, face),
            *([] if bald else _hair_cap(sketch, ball)),
        ],
    }
    ball.finish()
    keys = marks[:, :5]
    length = np.linalg.norm(keys[..., :2], axis=-1, keepdims=True)
    inside = keys[..., :2] * (0.9 / np.maximum(length, 0.9))
    return layers, ball.pixels(inside), keys[..., 2] > _FACES_CAMERA


def _skull(sketch: Sketch, ball: Ball, marks: np.ndarray) -> list[Shape]:
    """Ears behind, skull, nose, and the ear that a turned head shows."""
    person, skin = sketch.person, sketch.person.skin
    back, front = [], []
    if person.hair_style not in ("long", "curly"):
        for side in (0, 1):
            centre = marks[:, 5 + side]
            near = centre[:, 2] > 0.08
            for grow, color in ((0.03, contour_of(skin)), (-0.03, shade(skin, 0.94))):
                for shapes, shown in ((back, ~near), (front, near)):
                    if shown.any():
                        shape = Shape(color, shown_T=shown.tolist())
                        shapes.append(ball.spot(centre, 0.17 + grow, 0.2 + grow, shape))
    ring = circle(48 if ball.fine else 18)
    line, trim = ball.line_T[:, None, None], (0.4 / ball.height_T)[:, None, None]
    contour = ball.outline(ring * (1 + line), Shape(contour_of(skin)))
    fill = ball.outline(ring * (1 - trim), Shape(skin))
    aside = np.abs(ball.yaw_T) > 0.3
    if not aside.any():
        return [*back, contour, fill, *front]
    bridge_tip = ball.pixels(marks[:, 8:10, :2])
    size = person.body.head_half_height
    nose, nose_fill = sketch.hull(
        [(bridge_tip[:, 0], 0.1 * size), (bridge_tip[:, 1], 0.085 * size)],
        skin,
        shown_T=aside.tolist(),
    )
    return [*back, contour, nose, fill, nose_fill, *front]


def _features(sketch: Sketch, ball: Ball, marks: np.ndarray, face: Face) -> list[Shape]:
    """Eyes, brows, nose and mouth, each only while it faces the camera."""
    person = sketch.person
    shapes = []
    detailed_T = ball.detailed_T
    if detailed_T.any():
        nose = marks[:, 7]
        shown = ((nose[:, 2] > 0) & detailed_T).tolist()
        shapes.append(ball.spot(nose, 0.12, 0.07, Shape(shade(person.skin, 0.84), shown_T=shown)))
    for side in (0, 1):
        centre = marks[:, 1 + side]
        seen_T = centre[:, 2] > 0.12
        if not detailed_T.all():
            shown = (seen_T & ~detailed_T).tolist()
            shape = Shape(_EYE_DARK, shown_T=shown)
            shapes.append(ball.spot(centre, 0.125, 0.03 + 0.13 * (1 - face.blink_T), shape))
        if detailed_T.any():
            seen_T = seen_T & detailed_T
            shapes += _eye(ball, centre, seen_T, face.blink_T, person)
            brow = Shape(shade(person.hair, 0.8), convex=False, shown_T=seen_T.tolist())
            first = 11 + 6 * side
            shapes.append(ball.outline(marks[:, first : first + 6, :2], brow))
    shapes.append(_mouth(ball, face, (marks[:, 10, 2] > 0.1).tolist()))
    return shapes


def _eye(
    ball: Ball, centre: np.ndarray, seen_T: np.ndarray, blink_T: np.ndarray, person: Person
) -> list[Shape]:
    """Lid, white, iris, pupil and shine."""
    open_T = 1 - blink_T
    seen, awake = seen_T.tolist(), (seen_T & (blink_T < 0.6)).tolist()
    lid, shine = centre + _LID, centre + _SHINE
    lash = Shape(shade(person.skin, 0.42), shown_T=seen)
    white, iris = Shape(_WHITE, shown_T=awake), Shape(person.eyes, shown_T=awake)
    pupil, light = Shape((16, 14, 16), shown_T=awake), Shape(_WHITE, shown_T=awake)
    return [
        ball.spot(lid, 0.19, 0.02 + 0.165 * open_T, lash),
        ball.spot(centre, 0.165, 0.14 * open_T, white),
        ball.spot(centre, 0.105, 0.125 * open_T, iris),
        ball.spot(centre, 0.055, 0.07 * open_T, pupil),
        ball.spot(shine, 0.035, 0.035 * open_T, light),
    ]


def _mouth(ball: Ball, face: Face, seen: list[bool]) -> Shape:
    along = shares(9 if ball.fine else 5, -1.0, 1.0)
    top = -0.54 + 0.1 * face.smile * (along**2 - 0.6)
    thick_T = np.where(ball.detailed_T, 0.035, 0.05) + 0.03 + 0.22 * face.mouth_T
    bottom_TP = top - 0.03 - thick_T[:, None] * (1 - along**2)
    azimuth = 0.33 * along
    heights_TP = np.empty((len(thick_T), 2 * len(along)))
    heights_TP[:, : len(along)] = top
    heights_TP[:, len(along) :] = bottom_TP[:, ::-1]
    ring = ball.turn(on_ball(np.concatenate([azimuth, azimuth[::-1]]), heights_TP))
    return ball.outline(ring[..., :2], Shape(_LIP, convex=False, shown_T=seen))


_HAIRLINE_ANGLES = np.radians([0, 30, 60, 80, 95, 120])
_HAIRLINES = {
    "short": np.radians([40, 38, 24, 4, -6, -28]),
    "long": np.radians([42, 34, 8, -22, -48, -62]),
    "curly": np.radians([40, 34, 14, -10, -26, -40]),
    "bun": np.radians([46, 42, 28, 8, -4, -24]),
    "tied": np.radians([46, 42, 28, 8, -4, -24]),
}
_ARC = {False: (11, 21), True: (31, 25)}
"""Corners of the hair's upper edge: on small or large heads, smooth or curly."""
_VOLUME = {"short": 0.09, "long": 0.1, "curly": 0.2, "bun": 0.06, "tied": 0.06}


def _hair_cap(sketch: Sketch, ball: Ball) -> list[Shape]:
    """Hair on the skull: from the hairline, where it faces the camera, to the crown."""
    person = sketch.person
    style = person.hair_style
    end = _HAIRLINE_ANGLES[-1]
    first_T = np.clip(-np.pi / 2 - ball.yaw_T, -end, end)
    last_T = np.clip(np.pi / 2 - ball.yaw_T, -end, end)
    share = shares(21 if ball.fine else 9)
    azimuth_TP = first_T[:, None] + (last_T - first_T)[:, None] * share
    height_TP = np.interp(np.abs(azimuth_TP), _HAIRLINE_ANGLES, _HAIRLINES[style])
    # A fringe that falls low everywhere but at the parting.
    middle = np.exp(-((azimuth_TP / 0.75) ** 2))
    parting = np.exp(-(((azimuth_TP - 0.55 * person.parting) / 0.3) ** 2))
    height_TP = height_TP - 0.3 * person.fringe * middle + 0.24 * person.fringe * parting
    line = ball.turn(on_ball(azimuth_TP, height_TP))
    length = np.linalg.norm(line[..., :2], axis=-1, keepdims=True)
    line_TP2 = np.where(
        line[..., 2:] < 0.02, line[..., :2] / np.maximum(length, 1e-6), line[..., :2]
    )
    line_TP2[:, [0, -1]] *= 1.02

    start_T = np.arctan2(line_TP2[:, -1, 1], line_TP2[:, -1, 0])
    stop_T = np.arctan2(line_TP2[:, 0, 1], line_TP2[:, 0, 0])
    sweep_T = np.mod(stop_T - start_T, 2 * np.pi)
    share = shares(_ARC[ball.fine][style == "curly"])
    angle_TP = start_T[:, None] + sweep_T[:, None] * share
    bulge = _VOLUME[style] * np.sin(np.pi * share) ** 0.5
    if style == "curly":
        bulge = bulge + 0.045 * np.cos(np.arange(len(share)) * np.pi)
    arc_TP2 = (1.0 + bulge)[:, None] * columns(np.cos(angle_TP), np.sin(angle_TP))
    contour = arc_TP2 * (1 + ball.line_T[:, None, None])
    inner = line_TP2 * (1 - 0.4 * ball.line_T[:, None, None])
    return [
        ball.outline(
            np.concatenate([inner, contour], axis=1), Shape(contour_of(person.hair), convex=False)
        ),
        ball.outline(np.concatenate([line_TP2, arc_TP2], axis=1), Shape(person.hair, convex=False)),
    ]


def _back_hair(sketch: Sketch, ball: Ball) -> list[Shape]:
    """Hair that hangs or sits behind the head."""
    person, style = sketch.person, sketch.person.hair_style
    size = person.body.head_half_height
    if style in ("short", "bald"):
        return []
    if style == "tied":
        side = 1 if person.parting > 0 else -1
        tail = np.array([[0.35, 0.62, -0.9], [1.0, 0.1, -1.15], [1.15, -0.95, -0.95]])
        at = ball.pixels(ball.turn(tail * [side, 1, 1])[..., :2])
        discs = [(at[:, k], radius * size) for k, radius in enumerate((0.16, 0.27, 0.1))]
        knot, end = sketch.hull(discs[:2], person.hair), sketch.hull(discs[1:], person.hair)
        return [knot[0], end[0], knot[1], end[1]]
    place, radius = {
        "long": ([0.0, 0.1, -0.15], 0.92),
        "curly": ([0.0, 0.0, -0.25], 1.07),
        "bun": ([0.0, 1.05, -0.55], 0.42),
    }[style]
    crown = ball.pixels(ball.turn(np.array([place]))[..., :2])[:, 0]
    discs = [(crown, radius * size)]
    if style == "long":
        scale_T1 = sketch.camera.scale_T[:, None]
        back = -0.05 * scale_T1 * sketch.joints.turn_T33[:, :2, 2] * [1, -1]
        nape = sketch.pixels_TJ2[:, CHEST] + [0.0, 0.1 * size] * scale_T1 + back
        across = 0.8 * ball.half_width_T[:, None] * [1.0, 0.0]
        discs += [(nape + sign * across, 0.34 * size) for sign in (-1, 1)]
    return [*sketch.hull(discs, person.hair)]
