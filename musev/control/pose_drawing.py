"""Pose maps from people: which parts are drawn, and what counts as seen.

The drawing itself is :mod:`musev.control.drawing`'s. Axes here: K keypoint, N person, J body joint,
Y X pixel rows and columns, C channel.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np

from musev.control.drawing import draw_body, draw_faces, draw_hands
from musev.control.person import PARTS, Person

DRAWN_PARTS = ("body", "hands", "face")
MIN_CONFIDENCE = 0.3
"""Keypoints at most so sure are not drawn; DWPose's threshold (ALGORITHM.md 13)."""


def draw_people(
    people: Sequence[Person],
    *,
    height: int,
    width: int,
    parts: Collection[str] = DRAWN_PARTS,
    min_confidence: float = MIN_CONFIDENCE,
) -> np.ndarray:
    """Draw everybody in one frame as the original's DWPose does.

    Args:
        people: Anybody without a keypoint that is sure enough leaves no trace.
        height: Rows of the canvas.
        width: Columns of the canvas.
        parts: Which of :data:`DRAWN_PARTS` are drawn, each by itself or with others.
        min_confidence: Keypoints must be surer than this.

    Returns:
        ``map_YXC``: uint8 RGB on black.
    """
    unknown = set(parts) - set(DRAWN_PARTS)
    assert not unknown, f"no such parts: {unknown}"
    canvas = np.zeros((height, width, 3), np.uint8)
    if not people:
        return canvas
    size = np.array([width, height], np.float64)
    if "body" in parts:
        bodies_NJ3 = np.stack([person.body_K3 for person in people])
        seen_NJ = bodies_NJ3[:, :, 2] > min_confidence
        canvas = draw_body(canvas, bodies_NJ3[:, :, :2] * size, seen_NJ)
    if "hands" in parts:
        # All left hands, then all right ones: that order decides which lies on top.
        for side in ("left_hand", "right_hand"):
            canvas = draw_hands(canvas, _shown(people, side, size, min_confidence))
    if "face" in parts:
        canvas = draw_faces(canvas, _shown(people, "face", size, min_confidence))
    return canvas


def _shown(
    people: Sequence[Person], part: str, size: np.ndarray, min_confidence: float
) -> np.ndarray:
    """Pixels of one part of everybody, ``[N, K, 2]``; -1 where a point is not to be drawn."""
    assert part in PARTS
    points_NK3 = np.stack([person.part(part) for person in people])
    unseen_NK = points_NK3[:, :, 2] <= min_confidence
    pixels_NK2 = points_NK3[:, :, :2] * size
    pixels_NK2[unseen_NK] = -1.0
    return pixels_NK2
