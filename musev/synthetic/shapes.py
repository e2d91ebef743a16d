"""Filled outlines through a clip: the vocabulary in which people are drawn, and its painting.

Axes here: T frame, N shape, P outline point, last axis 2 (pixels) or 3 (view space). Outlines are
int32 in OpenCV's fixed point (1/16 pixel). Shapes are noted first and their outlines computed
together, for all shapes and frames at once; only the filling goes frame by frame.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np

from musev.synthetic.people import Color, Person
from musev.synthetic.skeleton import Joints, columns

SHIFT = 4
EDGE_PX = 0.4
"""What OpenCV's antialiased border adds round a polygon; taken off every radius."""
SHADOW = "shadow"
"""The layer that is no part of the person's mask."""
_LEAST_RADIUS_PX = 0.2
_LINE = 0.0062
"""Thickness of contours in body heights."""


@dataclass(frozen=True)
class Camera:
    """View space to pixels, frame by frame."""

    scale_T: np.ndarray
    """Pixels per body height."""
    x_T: np.ndarray
    """Column of the body's middle."""
    ground_T: np.ndarray
    """Row of view height 0."""

    def project(self, points_TJ3: np.ndarray) -> np.ndarray:
        """Pixels (x, y) of points in view space, ``(T, J, 2)``."""
        origin_T12 = columns(self.x_T, self.ground_T)[:, None]
        scale_T11 = self.scale_T[:, None, None]
        return origin_T12 + scale_T11 * points_TJ3[..., :2] * np.array([1.0, -1.0])


@dataclass
class Shape:
    """One filled outline through the clip."""

    color: Color
    convex: bool = True
    shown_T: list[bool] | None = None
    """Frames in which it is drawn; None is all."""
    outline_T: np.ndarray | Sequence[np.ndarray] = ()


@dataclass
class Figure:
    """Layers of shapes, and the order in which every frame stacks them."""

    layers: dict[str, list[Shape]]
    order_T: list[tuple[str, ...]]
    points_TJ2: np.ndarray
    visible_TJ: np.ndarray


Fill = tuple[Sequence[np.ndarray], tuple[int, int, int, int], "list[bool] | None", bool]


def fills_of(figure: Figure) -> dict[str, list[Fill]]:
    """Every layer's shapes as the plain values that :func:`paint` needs in its inner loop."""
    return {
        name: [
            (
                list(shape.outline_T),
                (*shape.color, 0 if name == SHADOW else 255),
                shape.shown_T,
                shape.convex,
            )
            for shape in shapes
        ]
        for name, shapes in figure.layers.items()
    }


def paint(
    fills: dict[str, list[Fill]], order: Sequence[str], t: int, canvas_YX4: np.ndarray
) -> None:
    """Fill one frame's shapes in place; the fourth channel collects the person's mask.

    Args:
        fills: Shapes of the clip, from :func:`fills_of`.
        order: Layers from back to front.
        t: Which frame.
        canvas_YX4: uint8 RGB and mask; the backdrop is drawn already, with mask 0.
    """
    line_type, fill_convex = cv2.LINE_AA, cv2.fillConvexPoly
    for name in order:
        for outline_T, color, shown_T, convex in fills[name]:
            if shown_T is not None and not shown_T[t]:
                continue
            if convex:
                fill_convex(canvas_YX4, outline_T[t], color, line_type, SHIFT)
            else:
                cv2.fillPoly(canvas_YX4, [outline_T[t]], color, line_type, SHIFT)


@functools.lru_cache(maxsize=4096)
def shade(color: Color, factor: float) -> Color:
    """A colour darker (factor below 1) or, above 1, nearer to white."""
    if factor <= 1:
        red, green, blue = (round(c * factor) for c in color)
    else:
        red, green, blue = (round(c + (255 - c) * (factor - 1)) for c in color)
    return red, green, blue


def contour_of(color: Color) -> Color:
    """Colour of the line round a surface: darker, or lighter where the surface is nearly black."""
    return shade(color, 0.62) if sum(color) > 200 else shade(color, 1.22)


def fixed(points: np.ndarray) -> np.ndarray:
    """Pixels to OpenCV's fixed point."""
    return np.rint(points * (1 << SHIFT)).astype(np.int32)


@functools.cache
def circle(num_points: int, start: float = 0.0, sweep: float = 2 * np.pi) -> np.ndarray:
    """Points of the unit circle, ``(P, 2)``; the end of the sweep is left out."""
    angles = start + np.linspace(0, sweep, num_points, endpoint=False)
    return columns(np.cos(angles), np.sin(angles))


@functools.cache
def shares(num_points: int, low: float = 0.0, high: float = 1.0) -> np.ndarray:
    """Evenly spaced numbers, both ends included."""
    return np.linspace(low, high, num_points)


@dataclass(frozen=True)
class Part:
    """A limb's piece: a rounded bar from place to place, radii in body heights."""

    start_T2: np.ndarray
    end_T2: np.ndarray
    start_radius: float
    end_radius: float
    color: Color
    contoured: bool = True
    shown_T: list[bool] | None = None


@dataclass
class Sketch:
    """One person being drawn: who, where, and the shapes noted so far."""

    person: Person
    joints: Joints
    camera: Camera
    height: int
    """Rows of the picture; what lies wholly below is not drawn."""
    pixels_TJ2: np.ndarray = field(init=False)
    line_T: np.ndarray = field(init=False)
    _bars: list[tuple[Part, Shape | None, Shape]] = field(default_factory=list)
    _hulls: list[tuple[list, Shape, Shape]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.pixels_TJ2 = self.camera.project(self.joints.points_TJ3)
        self.line_T = np.clip(_LINE * self.camera.scale_T, 0.55, 4.0)

    @property
    def num_frames(self) -> int:
        """Frames of the clip."""
        return len(self.pixels_TJ2)

    def limb(self, parts: Sequence[Part]) -> list[Shape]:
        """Note a chain of bars: all contours lie under all fills, so that its joints close."""
        contours, fills = [], []
        for part in parts:
            contour = None
            if part.contoured:
                contour = Shape(contour_of(part.color), shown_T=part.shown_T)
                contours.append(contour)
            fill = Shape(part.color, shown_T=part.shown_T)
            fills.append(fill)
            self._bars.append((part, contour, fill))
        return contours + fills

    def hull(
        self,
        discs: Sequence[tuple[np.ndarray, float]],
        color: Color,
        *,
        shown_T: list[bool] | None = None,
    ) -> tuple[Shape, Shape]:
        """Note the tightest skin round discs (centre in pixels, radius in body heights).

        Args:
            discs: What to wrap.
            color: Of the surface.
            shown_T: Frames in which it is drawn; None is all.

        Returns:
            Its contour and its fill.
        """
        contour, fill = Shape(contour_of(color), shown_T=shown_T), Shape(color, shown_T=shown_T)
        self._hulls.append((list(discs), contour, fill))
        return contour, fill

    def finish(self) -> None:
        """Compute the outlines of every shape noted."""
        self._finish_bars()
        self._finish_hulls()

    def _finish_bars(self) -> None:
        parts = [part for part, _, _ in self._bars]
        start_NT2 = np.array([part.start_T2 for part in parts])
        end_NT2 = np.array([part.end_T2 for part in parts])
        scale_T = self.camera.scale_T
        radii = np.array([(part.start_radius, part.end_radius) for part in parts])
        radius_2NT = radii.T[:, :, None] * scale_T
        along = end_NT2 - start_NT2
        length = np.sqrt((along**2).sum(-1, keepdims=True)) + 1e-6
        unit = along / length
        across = columns(-unit[..., 1], unit[..., 0])
        num_points = 5 if scale_T.max() < 400 else 10
        arc = circle(num_points, -np.pi / 2, np.pi * num_points / (num_points - 1))
        # (N, T, P, 2): half circles round the end, and their opposites round the start.
        turned = unit[:, :, None] * arc[:, :1] + across[:, :, None] * arc[:, 1:]
        hidden_NT = (
            np.minimum(start_NT2[..., 1], end_NT2[..., 1]) - radius_2NT.max(axis=0) > self.height
        )
        any_hidden = hidden_NT.any(axis=1)

        def outline(grow_T: np.ndarray | float) -> np.ndarray:
            first, last = np.maximum(radius_2NT + grow_T - EDGE_PX, _LEAST_RADIUS_PX)
            return fixed(
                np.concatenate(
                    [
                        end_NT2[:, :, None] + last[:, :, None, None] * turned,
                        start_NT2[:, :, None] - first[:, :, None, None] * turned,
                    ],
                    axis=2,
                )
            )

        fills, contours = outline(0.0), outline(self.line_T)
        for n, (_, contour, fill) in enumerate(self._bars):
            for shape, outlines in ((contour, contours), (fill, fills)):
                if shape is not None:
                    shape.outline_T = outlines[n]
                    if any_hidden[n]:
                        shape.shown_T = _both(shape.shown_T, ~hidden_NT[n])

    def _finish_hulls(self) -> None:
        """Wrap the discs: in each of many directions the hull's corner lies on one of them."""
        groups = [discs for discs, _, _ in self._hulls]
        most = max(map(len, groups))
        # Every group as long as the longest: its last disc again and again changes nothing.
        padded = [disc for group in groups for disc in group + group[-1:] * (most - len(group))]
        shape = (len(groups), most, self.num_frames)
        centre_NDT2 = np.array([centre for centre, _ in padded]).reshape(*shape, 2)
        scale_T = self.camera.scale_T
        radius_ND = np.array([radius for _, radius in padded]).reshape(shape[:2])
        radius_NDT = np.maximum(radius_ND[..., None] * scale_T - EDGE_PX, _LEAST_RADIUS_PX)
        directions = circle(16 if scale_T.max() < 400 else 48)
        reach_NDTP = centre_NDT2 @ directions.T + radius_NDT[..., None]
        furthest_N1TP = reach_NDTP.argmax(axis=1)[:, None]
        corners = np.stack(
            [
                np.take_along_axis(centre_NDT2[..., axis, None], furthest_N1TP, axis=1)[:, 0]
                for axis in (0, 1)
            ],
            axis=-1,
        )
        radius_NTP1 = np.take_along_axis(radius_NDT[..., None], furthest_N1TP, axis=1)[
            :, 0, ..., None
        ]
        inner = fixed(corners + radius_NTP1 * directions)
        outer = fixed(corners + (radius_NTP1 + self.line_T[:, None, None]) * directions)
        for n, (_, contour, fill) in enumerate(self._hulls):
            contour.outline_T, fill.outline_T = outer[n], inner[n]


def _both(shown_T: list[bool] | None, more_T: np.ndarray) -> list[bool]:
    if shown_T is None:
        return more_T.tolist()
    return [old and new for old, new in zip(shown_T, more_T.tolist(), strict=True)]
