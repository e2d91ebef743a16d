"""Where people are drawn: seven scenes that a glance, or a small network, tells apart.

Axes here: Y X pixel rows and columns, C channel. A scene is drawn once a clip and stands still.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import cv2
import numpy as np

from musev.synthetic.people import Color, RandomStream
from musev.synthetic.shapes import SHIFT, circle, fixed, shares

HORIZON = {"full": 0.62, "half": 0.74, "portrait": 0.8}
"""Row of the horizon as a share of the picture's height; a closer camera sees less ground."""


class Backdrop:
    """A picture under construction, addressed in shares of its own size."""

    def __init__(self, height: int, width: int, horizon: float, stream: RandomStream) -> None:
        self.image_YXC = np.zeros((height, width, 3), np.uint8)
        self.height, self.width = height, width
        self.unit = min(height, width)
        self.horizon = horizon
        self.stream = stream

    def bands(self, top: float, bottom: float, upper: Color, lower: Color) -> None:
        """Fill rows with a gradient."""
        first, last = round(top * self.height), round(bottom * self.height)
        if last > first:
            share = shares(last - first)[:, None, None]
            rows = (np.array(upper) * (1 - share) + np.array(lower) * share).astype(np.uint8)
            self.image_YXC[first:last] = cv2.repeat(rows, 1, self.width)

    def disc(self, x: float, y: float, radius: float, color: Color, flat: float = 1.0) -> None:
        """Fill an ellipse; the radius is a share of the short side."""
        size = radius * self.unit
        corners = circle(8 if size < 2 else 20 if size < 24 else 60)
        outline = np.array([x * self.width, y * self.height]) + corners * [size, size * flat]
        cv2.fillConvexPoly(self.image_YXC, fixed(outline), color, cv2.LINE_AA, SHIFT)

    def specks(self, places: list[tuple[float, float, float]], color: Color) -> None:
        """Fill many small discs of one colour, each (x, y, radius)."""
        x_N, y_N, radius_N = np.array(places).T
        centres = np.stack([x_N * self.width, y_N * self.height], axis=-1)[:, None]
        outlines = fixed(centres + (radius_N * self.unit)[:, None, None] * circle(8))
        cv2.fillPoly(self.image_YXC, list(outlines), color, cv2.LINE_AA, SHIFT)

    def shape(self, points: list[tuple[float, float]], color: Color) -> None:
        """Fill a polygon."""
        outline = fixed(np.array(points) * [self.width, self.height])
        cv2.fillPoly(self.image_YXC, [outline], color, cv2.LINE_AA, SHIFT)

    def hills(self, base: float, height: float, color: Color, waves: float) -> None:
        """Fill from a wavy line down to the bottom."""
        phase = self.stream.uniform(0, 6.28)
        xs = shares(33)
        ys = base - height * (
            0.5 + 0.5 * np.sin(waves * 6.28 * xs * self.width / self.unit + phase)
        )
        self.shape([*zip(xs.tolist(), ys.tolist(), strict=True), (1, 1), (0, 1)], color)

    def across(self) -> float:
        """A random column."""
        return self.stream.uniform(0.04, 0.96)

    def aside(self) -> float:
        """A random column away from the middle, where the person stands."""
        return self.stream.pick((self.stream.uniform(0.04, 0.26), self.stream.uniform(0.74, 0.96)))


def draw_scene(
    scene: str, framing: str, stream: RandomStream, *, height: int, width: int
) -> tuple[np.ndarray, Color]:
    """Draw a scene without anybody in it.

    Args:
        scene: One of :data:`musev.synthetic.people.SCENES`.
        framing: How close the camera is; sets the horizon.
        stream: Where things stand.
        height: Rows.
        width: Columns.

    Returns:
        ``(image_YXC, shadow)``: uint8 RGB, and the colour of a shadow on its ground.
    """
    horizon = HORIZON[framing] + stream.uniform(-0.05, 0.03)
    backdrop = Backdrop(height, width, horizon, stream)
    shadow = _SCENES[scene](backdrop)
    return backdrop.image_YXC, shadow


@functools.lru_cache(maxsize=8)
def draw_neutral(*, height: int, width: int) -> np.ndarray:
    """Draw the plain backdrop of a reference portrait: light grey, a little darker below."""
    backdrop = Backdrop(height, width, 1.0, RandomStream(0))
    backdrop.bands(0, 1, (206, 206, 208), (172, 172, 176))
    backdrop.image_YXC.setflags(write=False)
    return backdrop.image_YXC


def _clouds(backdrop: Backdrop, color: Color) -> None:
    for _ in range(backdrop.stream.pick((1, 2, 3))):
        x, y = backdrop.across(), backdrop.stream.uniform(0.06, 0.26)
        size = backdrop.stream.uniform(0.04, 0.07)
        for step, part in ((-1.1, 0.7), (0.0, 1.0), (1.1, 0.65)):
            offset = step * size * backdrop.unit / backdrop.width
            backdrop.disc(x + offset, y, size * part, color, flat=0.62)


def _beach(b: Backdrop) -> Color:
    water = b.horizon - 0.02
    sand = water + 0.13
    b.bands(0, water, (120, 200, 246), (196, 234, 250))
    b.bands(water, 1, (20, 132, 178), (46, 172, 200))
    b.disc(b.aside(), b.stream.uniform(0.1, 0.22), 0.075, (255, 236, 120))
    _clouds(b, (248, 252, 254))
    b.hills(sand + 0.018, 0.026, (226, 244, 244), 0.8)
    b.hills(sand + 0.04, 0.026, (240, 216, 158), 0.8)
    for _ in range(4):
        b.disc(b.across(), b.stream.uniform(sand + 0.08, 0.98), 0.008, (214, 186, 128))
    return (206, 180, 124)


def _meadow(b: Backdrop) -> Color:
    b.bands(0, 1, (134, 196, 244), (214, 236, 248))
    _clouds(b, (252, 252, 252))
    b.hills(b.horizon, 0.1, (132, 190, 108), 0.5)
    b.hills(b.horizon + 0.03, 0.04, (108, 176, 74), 0.35)
    for petal in ((252, 244, 240), (250, 218, 80), (240, 130, 160)):
        rows = [b.stream.uniform(b.horizon + 0.07, 0.99) for _ in range(5)]
        b.specks([(b.across(), y, 0.008 + 0.012 * (y - b.horizon)) for y in rows], petal)
    return (78, 138, 54)


def _night(b: Backdrop) -> Color:
    b.bands(0, 1, (10, 14, 48), (62, 72, 150))
    draw = b.stream.uniform
    sky = b.horizon - 0.08
    stars = [(b.across(), draw(0.01, sky), draw(0.004, 0.009)) for _ in range(26)]
    b.specks(stars, (244, 244, 214))
    x, y = b.aside(), b.stream.uniform(0.12, 0.22)
    b.disc(x, y, 0.075, (246, 242, 206))
    b.disc(x + 0.03 * b.unit / b.width, y - 0.012, 0.06, (18, 23, 60))
    b.hills(b.horizon + 0.02, 0.07, (30, 38, 78), 0.6)
    b.hills(b.horizon + 0.05, 0.02, (58, 70, 110), 0.3)
    return (40, 50, 84)


def _room(b: Backdrop) -> Color:
    wall = b.stream.pick(((232, 206, 176), (226, 200, 190), (214, 208, 178)))
    floor = b.horizon + 0.06
    b.bands(0, floor, wall, tuple(round(0.94 * c) for c in wall))
    b.bands(floor, 1, (150, 96, 58), (178, 120, 76))
    b.bands(floor - 0.025, floor, (250, 246, 238), (240, 234, 224))
    for k in range(-6, 7):
        x = 0.5 + 0.11 * k
        b.shape(
            [
                (x, floor),
                (x + 0.006, floor),
                (0.5 + 2.2 * (x - 0.494), 1),
                (0.5 + 2.2 * (x - 0.5), 1),
            ],
            (134, 84, 50),
        )
    half = 0.14 * b.unit / b.width
    x, top, low = b.stream.pick((0.2, 0.8)), 0.12, 0.42
    b.shape([(x - half, top), (x + half, top), (x + half, low), (x - half, low)], (252, 250, 244))
    for left, right in ((x - half * 0.88, x - half * 0.06), (x + half * 0.06, x + half * 0.88)):
        b.shape(
            [(left, top + 0.02), (right, top + 0.02), (right, low - 0.02), (left, low - 0.02)],
            (158, 212, 240),
        )
    x = 1 - x
    b.shape(
        [
            (x - half * 0.7, 0.17),
            (x + half * 0.7, 0.17),
            (x + half * 0.7, 0.36),
            (x - half * 0.7, 0.36),
        ],
        (112, 70, 44),
    )
    b.shape(
        [
            (x - half * 0.55, 0.19),
            (x + half * 0.55, 0.19),
            (x + half * 0.55, 0.34),
            (x - half * 0.55, 0.34),
        ],
        b.stream.pick(((92, 150, 160), (196, 120, 96), (140, 160, 104))),
    )
    return (124, 78, 46)


def _desert(b: Backdrop) -> Color:
    b.bands(0, 1, (248, 168, 92), (254, 240, 190))
    b.disc(b.aside(), b.stream.uniform(0.12, 0.3), 0.09, (255, 246, 208))
    b.hills(b.horizon + 0.01, 0.11, (206, 128, 78), 0.45)
    for _ in range(b.stream.pick((1, 2))):
        _cactus(b, b.aside(), b.horizon + b.stream.uniform(0.04, 0.1), b.stream.uniform(0.8, 1.15))
    b.hills(b.horizon + 0.05, 0.04, (226, 154, 92), 0.3)
    return (182, 114, 62)


def _cactus(b: Backdrop, x: float, base: float, size: float) -> None:
    green, wide = (62, 124, 78), 0.022 * size * b.unit / b.width
    tall = 0.24 * size

    def post(left: float, top: float, bottom: float) -> None:
        b.shape(
            [(left - wide, top), (left + wide, top), (left + wide, bottom), (left - wide, bottom)],
            green,
        )
        b.disc(left, top, 0.022 * size, green)

    post(x, base - tall, base + 0.06)
    for sign, low in ((-1, 0.35), (1, 0.5)):
        elbow = base - low * tall
        post(x + sign * 3.2 * wide, elbow - 0.3 * tall, elbow)
        b.shape(
            [
                (x, elbow - wide),
                (x + sign * 3.2 * wide, elbow - wide),
                (x + sign * 3.2 * wide, elbow + wide),
                (x, elbow + wide),
            ],
            green,
        )
        b.disc(x + sign * 3.2 * wide, elbow, 0.022 * size, green)


def _snow(b: Backdrop) -> Color:
    b.bands(0, 1, (142, 170, 202), (230, 240, 246))
    b.hills(b.horizon + 0.02, 0.08, (222, 232, 240), 0.5)
    for _ in range(b.stream.pick((3, 4, 5))):
        x, base = b.aside(), b.horizon + b.stream.uniform(0.0, 0.06)
        size = b.stream.uniform(0.8, 1.25)
        for step in range(3):
            half = (0.075 - 0.017 * step) * size * b.unit / b.width
            low = base - 0.075 * step * size
            b.shape([(x - half, low), (x + half, low), (x, low - 0.13 * size)], (40, 96, 84))
            b.shape(
                [
                    (x - half * 0.36, low - 0.085 * size),
                    (x + half * 0.36, low - 0.085 * size),
                    (x, low - 0.13 * size),
                ],
                (238, 244, 248),
            )
    b.hills(b.horizon + 0.06, 0.03, (236, 242, 248), 0.3)
    draw = b.stream.uniform
    flakes = [(b.across(), draw(0.0, 0.98), draw(0.005, 0.01)) for _ in range(22)]
    b.specks(flakes, (252, 254, 255))
    return (196, 208, 222)


def _stage(b: Backdrop) -> Color:
    floor = b.horizon + 0.05
    b.bands(0, floor, (120, 18, 40), (152, 28, 52))
    folds = 9
    for k in range(folds):
        x = (k + 0.5) / folds
        half = 0.2 / folds
        b.shape([(x - half, 0), (x + half, 0), (x + half, floor), (x - half, floor)], (98, 12, 32))
    b.bands(floor, 1, (96, 66, 50), (128, 90, 66))
    b.disc(0.5, 0.93, 0.42, (196, 158, 116), flat=0.22)
    for k in range(7):
        b.disc((k + 0.5) / 7, 0.0, 0.085, (188, 146, 52), flat=0.9)
    return (140, 106, 76)


_SCENES: dict[str, Callable[[Backdrop], Color]] = {
    "beach": _beach,
    "meadow": _meadow,
    "night": _night,
    "room": _room,
    "desert": _desert,
    "snow": _snow,
    "stage": _stage,
}
