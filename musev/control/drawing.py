"""Keypoints of people to OpenPose-style control pictures, exactly and fast.

Two ways to draw the same picture. :func:`draw_body`, :func:`draw_hands` and :func:`draw_faces`
are the original's drawing, pixel for pixel: whole-pixel ends, a limb half width of 4 pixels on any
canvas. :func:`draw_skeletons` draws the body of one person in every frame of a clip, antialiased
and with widths that follow the canvas, which a canvas of 128 pixels needs.

Axes here: T frame, N person, J joint (OpenPose body 18), Y X pixel rows and columns, C channel.
Points are (x, y) in pixels, the centre of the first pixel at 0.
"""

from __future__ import annotations

import colorsys
import functools
import math

import cv2
import numpy as np

JOINTS = (
    "nose",
    "neck",
    "right_shoulder",
    "right_elbow",
    "right_wrist",
    "left_shoulder",
    "left_elbow",
    "left_wrist",
    "right_hip",
    "right_knee",
    "right_ankle",
    "left_hip",
    "left_knee",
    "left_ankle",
    "right_eye",
    "left_eye",
    "right_ear",
    "left_ear",
)
"""The OpenPose body-18 joints; right and left are the person's own."""

LIMBS = (
    (1, 2),
    (1, 5),
    (2, 3),
    (3, 4),
    (5, 6),
    (6, 7),
    (1, 8),
    (8, 9),
    (9, 10),
    (1, 11),
    (11, 12),
    (12, 13),
    (1, 0),
    (0, 14),
    (14, 16),
    (0, 15),
    (15, 17),
)
"""Joint pairs of the 17 drawn limbs, in drawing order."""

_WHEEL = (0, 85, 170, 255)
COLORS = (
    *((255, green, 0) for green in _WHEEL),
    *((red, 255, 0) for red in _WHEEL[2::-1]),
    *((0, 255, blue) for blue in _WHEEL[1:]),
    *((0, green, 255) for green in _WHEEL[2::-1]),
    *((red, 0, 255) for red in _WHEEL[1:]),
    *((255, 0, blue) for blue in _WHEEL[2:0:-1]),
)
"""RGB of the 18 joints, once round the colour wheel; limb i has the colour of joint i."""

HAND_EDGES = tuple(
    (0 if knuckle == 0 else 4 * finger + knuckle, 4 * finger + knuckle + 1)
    for finger in range(5)
    for knuckle in range(4)
)
"""Point pairs of a 21-point hand: five fingers of four bones, each from the wrist (0)."""

FACE_EYES = slice(36, 48)
"""The eyes among the 68 points of a face; the original's mode without the rest of the face."""

LIMB_DIMMING = 0.6
LIMB_HALF_WIDTH_PX = 4
JOINT_RADIUS_PX = 4
HAND_LINE_PX = 2
HAND_POINT_RADIUS_PX = 4
FACE_POINT_RADIUS_PX = 3
_HAND_POINT_COLOR = (0, 0, 255)
_FACE_POINT_COLOR = (255, 255, 255)

REFERENCE_SIDE_PX = 512
"""Short side for which the original's absolute widths were chosen (its detection resolution)."""
MIN_HALF_WIDTH_PX = 1.5
"""Thinner limbs lose their hue to antialiasing on small canvases."""

_SHIFT = 4  # OpenCV's fixed point: coordinates carry 1/16 pixel
_FINE_PX = 3.0  # half width from which outlines get twice as many corners
_ELLIPSE_POINTS = 8
_CIRCLE_POINTS = 6


def draw_body(
    canvas_YXC: np.ndarray,
    points_NJ2: np.ndarray,
    visible_NJ: np.ndarray,
    *,
    half_width: int = LIMB_HALF_WIDTH_PX,
    radius: int = JOINT_RADIUS_PX,
) -> np.ndarray:
    """Draw bodies as the original does: limbs as filled ellipses, dimmed, then joints as discs.

    Args:
        canvas_YXC: uint8 RGB; whatever is on it is dimmed with the limbs. Not changed.
        points_NJ2: Joints of each person in pixels, floating point.
        visible_NJ: Which joints exist; a limb needs both ends.
        half_width: Half the width of a limb in pixels.
        radius: Radius of a joint in pixels.

    Returns:
        A new canvas.

    Source:
        DWpose's ``draw_bodypose`` as the original calls it (ALGORITHM.md 13).
    """
    canvas = np.ascontiguousarray(canvas_YXC).copy()
    for limb, (start, end) in enumerate(LIMBS):
        for points, visible in zip(points_NJ2, visible_NJ, strict=True):
            if visible[start] and visible[end]:
                outline = _limb_outline(points[start], points[end], half_width)
                cv2.fillConvexPoly(canvas, outline, COLORS[limb])
    canvas = (canvas * LIMB_DIMMING).astype(np.uint8)
    for joint, color in enumerate(COLORS):
        for points, visible in zip(points_NJ2, visible_NJ, strict=True):
            if visible[joint]:
                x, y = points[joint]
                cv2.circle(canvas, (int(x), int(y)), radius, color, thickness=-1)
    return canvas


def _limb_outline(start: np.ndarray, end: np.ndarray, half_width: int) -> np.ndarray:
    """Polygon of one limb, in whole pixels and degrees, cut off as the original does."""
    (x0, y0), (x1, y1) = start, end
    length = math.sqrt((y0 - y1) ** 2 + (x0 - x1) ** 2)
    angle = math.degrees(math.atan2(y0 - y1, x0 - x1))
    centre = (int((x0 + x1) / 2), int((y0 + y1) / 2))
    return cv2.ellipse2Poly(centre, (int(length / 2), half_width), int(angle), 0, 360, 1)


def draw_hands(canvas_YXC: np.ndarray, hands_NK2: np.ndarray) -> np.ndarray:
    """Draw hands as the original does: bones in twenty hues, points in blue.

    Args:
        canvas_YXC: uint8 RGB. Not changed.
        hands_NK2: 21 points of each hand in pixels; a point with x or y below one pixel is missing.

    Returns:
        A new canvas.

    Source:
        DWpose's ``draw_handpose`` (ALGORITHM.md 13).
    """
    canvas = np.ascontiguousarray(canvas_YXC).copy()
    for hand in hands_NK2:
        points = [(int(x), int(y)) for x, y in hand]
        for edge, (start, end) in enumerate(HAND_EDGES):
            if min(*points[start], *points[end]) > 0:
                hue = colorsys.hsv_to_rgb(edge / len(HAND_EDGES), 1.0, 1.0)
                color = [channel * 255 for channel in hue]
                cv2.line(canvas, points[start], points[end], color, thickness=HAND_LINE_PX)
        _draw_dots(canvas, points, HAND_POINT_RADIUS_PX, _HAND_POINT_COLOR)
    return canvas


def draw_faces(canvas_YXC: np.ndarray, faces_NK2: np.ndarray) -> np.ndarray:
    """Draw face points as the original does: white discs.

    Args:
        canvas_YXC: uint8 RGB. Not changed.
        faces_NK2: Points of each face in pixels; a point with x or y below one pixel is missing.

    Returns:
        A new canvas.

    Source:
        DWpose's ``draw_facepose`` (ALGORITHM.md 13).
    """
    canvas = np.ascontiguousarray(canvas_YXC).copy()
    for face in faces_NK2:
        points = [(int(x), int(y)) for x, y in face]
        _draw_dots(canvas, points, FACE_POINT_RADIUS_PX, _FACE_POINT_COLOR)
    return canvas


def _draw_dots(
    canvas_YXC: np.ndarray, points: list[tuple[int, int]], radius: int, color: tuple[int, int, int]
) -> None:
    for point in points:
        if min(point) > 0:
            cv2.circle(canvas_YXC, point, radius, color, thickness=-1)


def limb_half_width(height: int, width: int) -> float:
    """Half width of a limb, in pixels, that suits a canvas.

    The rule: as if drawn with the original's 4 pixels on a short side of 512 and then resized, but
    never under 1.5 pixels (short sides up to 192).
    """
    scaled = LIMB_HALF_WIDTH_PX * min(height, width) / REFERENCE_SIDE_PX
    return max(MIN_HALF_WIDTH_PX, scaled)


def draw_skeletons(
    points_TJ2: np.ndarray, visible_TJ: np.ndarray, *, height: int, width: int
) -> np.ndarray:
    """Draw one person's skeleton in every frame, antialiased, widths after :func:`limb_half_width`.

    Colours, order and shapes are those of :func:`draw_body`; positions keep their fractions of a
    pixel, so that slow motion does not jump.

    Args:
        points_TJ2: Joints in pixels, floating point; may lie outside the canvas.
        visible_TJ: Which joints are drawn; a limb needs both ends.
        height: Rows of the canvas.
        width: Columns of the canvas.

    Returns:
        ``control_TYXC``: uint8 RGB on black.
    """
    half_width = limb_half_width(height, width)
    limbs_TLP2, discs_TJP2 = _skeleton_outlines(np.asarray(points_TJ2, np.float64), half_width)
    control_TYXC = np.zeros((len(points_TJ2), height, width, 3), np.uint8)
    # Twice per clip instead of once per shape: plain lists of ints are what the loop below costs.
    shown_TJ = np.asarray(visible_TJ, bool).tolist()
    fill, line_type = cv2.fillConvexPoly, cv2.LINE_AA
    for canvas, limbs, discs, shown in zip(
        control_TYXC, limbs_TLP2, discs_TJP2, shown_TJ, strict=True
    ):
        for (start, end), outline, color in zip(LIMBS, limbs, _DIMMED, strict=False):
            if shown[start] and shown[end]:
                fill(canvas, outline, color, line_type, _SHIFT)
        for drawn, outline, color in zip(shown, discs, COLORS, strict=True):
            if drawn:
                fill(canvas, outline, color, line_type, _SHIFT)
    return control_TYXC


_DIMMED = tuple(tuple(int(LIMB_DIMMING * c) for c in color) for color in COLORS)
_EDGE_PX = 0.5  # what OpenCV's antialiased border adds round a polygon


@functools.cache
def _unit_circle(num_points: int) -> np.ndarray:
    angles = np.linspace(0.0, 2 * np.pi, num_points, endpoint=False)
    return np.stack([np.cos(angles), np.sin(angles)], axis=-1)


def _skeleton_outlines(points_TJ2: np.ndarray, half_width: float) -> tuple[np.ndarray, np.ndarray]:
    """Outlines of all limbs and joints of a clip, in OpenCV's fixed point."""
    thin = half_width - _EDGE_PX
    finer = 2 if half_width >= _FINE_PX else 1
    starts, ends = (points_TJ2[:, [limb[side] for limb in LIMBS]] for side in (0, 1))
    along = (ends - starts) / 2
    length = np.maximum(np.linalg.norm(along, axis=-1, keepdims=True), 1e-6)
    across = np.stack([-along[..., 1], along[..., 0]], axis=-1) / length * thin
    circle = _unit_circle(finer * _ELLIPSE_POINTS)
    limbs = (
        ((starts + ends) / 2)[:, :, None]
        + circle[:, :1] * along[:, :, None]
        + circle[:, 1:] * across[:, :, None]
    )
    discs = points_TJ2[:, :, None] + thin * _unit_circle(finer * _CIRCLE_POINTS)
    scale = 1 << _SHIFT
    return np.rint(limbs * scale).astype(np.int32), np.rint(discs * scale).astype(np.int32)
