"""A picture painted through masks, and the outlines that are painted.

Lengths are in units of the picture's shorter side. Edges are sharp: draw at several times the
wanted size and scale down.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter

Colour = tuple[int, int, int]
Point = tuple[float, float]
Points = Sequence[Point]


class Canvas:
    """A picture that is painted through masks; takes points in units of the shorter side."""

    def __init__(self, width: int, height: int) -> None:
        self.unit = min(width, height)
        self.image = Image.new("RGB", (width, height))
        # The unit square sits in the middle; in a tall picture somewhat lower, and never so high
        # that a body 1.3 units long would end above the lower edge.
        self.left = (width - self.unit) / 2
        self.top = max((height - self.unit) * 0.6, height - 1.28 * self.unit)
        if height <= width:
            self.top = 0.0

    def outline(self, points: Points, *, blur: float = 0.0) -> Image.Image:
        """Mask of a polygon, edges softened by ``blur``."""
        mask = Image.new("L", self.image.size)
        pixels = [(self.left + x * self.unit, self.top + y * self.unit) for x, y in points]
        ImageDraw.Draw(mask).polygon(pixels, fill=255)
        if blur and (box := mask.getbbox()):
            # Only where the outline is: blurring is what takes the time.
            reach = round(4 * blur * self.unit)
            width, height = mask.size
            near = (
                *(max(0, box[0] - reach), max(0, box[1] - reach)),
                *(min(width, box[2] + reach), min(height, box[3] + reach)),
            )
            mask.paste(mask.crop(near).filter(ImageFilter.GaussianBlur(blur * self.unit)), near)
        return mask

    def paint(
        self,
        mask: Image.Image,
        colour: Colour,
        *,
        opacity: float = 1.0,
        inside: Image.Image | None = None,
    ) -> None:
        """Lay a colour over the picture where ``mask`` (and ``inside``) is white."""
        box = mask.getbbox()
        if box is None:
            return
        mask = mask.crop(box)
        if inside is not None:
            mask = ImageChops.multiply(mask, inside.crop(box))
        if opacity < 1:
            mask = mask.point([round(value * opacity) for value in range(256)])
        self.image.paste(colour, box, mask)

    def stroke(self, points: Points, width: float, colour: Colour, *, opacity: float = 1.0) -> None:
        """A line that is thick in its middle and thin at its ends."""
        path = np.asarray(points)
        along = np.gradient(path, axis=0)
        normal = np.stack([-along[:, 1], along[:, 0]], axis=1)
        normal /= np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-9)
        taper = np.sin(np.linspace(0.12, np.pi - 0.12, len(path)))[:, None] * width / 2
        both = np.concatenate([path + normal * taper, (path - normal * taper)[::-1]])
        self.paint(self.outline([tuple(p) for p in both]), colour, opacity=opacity)


def colour_of(text: str) -> Colour:
    """Read a colour from six hexadecimal digits."""
    return int(text[0:2], 16), int(text[2:4], 16), int(text[4:6], 16)


def mix(one: Colour, other: Colour, share: float) -> Colour:
    """Blend two colours; ``share`` is that of the second."""
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(one, other, strict=True))
    return red, green, blue


def oval(centre: Point, across: float, down: float) -> list[Point]:
    """An ellipse from its middle and its two half lengths."""
    angles = np.linspace(0, 2 * np.pi, 72, endpoint=False)
    return [(centre[0] + across * np.cos(a), centre[1] + down * np.sin(a)) for a in angles]


def rounded_box(centre: Point, across: float, down: float) -> list[Point]:
    """A rectangle with very round corners, from its middle and its two half lengths."""
    angles = np.linspace(0, 2 * np.pi, 96, endpoint=False)
    x = np.sign(np.cos(angles)) * np.abs(np.cos(angles)) ** 0.65
    y = np.sign(np.sin(angles)) * np.abs(np.sin(angles)) ** 0.65
    return [(centre[0] + across * a, centre[1] + down * b) for a, b in zip(x, y, strict=True)]


def bumpy_oval(centre: Point, across: float, down: float, bumps: int, size: float) -> list[Point]:
    """An ellipse with ``bumps`` round bumps of height ``size`` along its edge."""
    angles = np.linspace(0, 2 * np.pi, 24 * bumps, endpoint=False)
    grow = np.abs(np.sin(angles * bumps / 2)) * size
    return [
        (centre[0] + (across + g) * np.cos(a), centre[1] + (down + g) * np.sin(a))
        for a, g in zip(angles, grow, strict=True)
    ]


def arc(start: Point, end: Point, depth: float) -> list[Point]:
    """A shallow bow from ``start`` to ``end``, ``depth`` below the straight line in its middle."""
    along = np.linspace(0, 1, 33)
    return [
        (
            start[0] + (end[0] - start[0]) * t,
            start[1] + (end[1] - start[1]) * t + 4 * depth * t * (1 - t),
        )
        for t in along
    ]


def mirrored(half: Points) -> list[Point]:
    """A closed outline from its right half, listed from the middle to the middle."""
    left = [(-x, y) for x, y in reversed(half) if x > 0]
    return [*half, *left]


def curve(points: Points) -> list[Point]:
    """A smooth line through open points (Catmull-Rom)."""
    path = [points[0], *points, points[-1]]
    return [p for k in range(len(points) - 1) for p in _spline(path[k : k + 4])] + [points[-1]]


def smooth(points: Points) -> list[Point]:
    """A smooth closed outline through points (Catmull-Rom)."""
    count = len(points)
    return [
        place
        for k in range(count)
        for place in _spline([points[(k + offset - 1) % count] for offset in range(4)])
    ]


def _spline(points: Points) -> list[Point]:
    a, b, c, d = (np.asarray(point) for point in points)
    t = np.linspace(0, 1, 12, endpoint=False)[:, None]
    path = b + 0.5 * t * (c - a + t * (2 * a - 5 * b + 4 * c - d + t * (3 * (b - c) + d - a)))
    return [(float(x), float(y)) for x, y in path]
