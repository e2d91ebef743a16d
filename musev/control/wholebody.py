"""The 133 points of COCO-WholeBody, as DWPose and RTMPose give them, to people.

Axes here: N person, P point of the 133, K keypoint.
"""

from __future__ import annotations

import numpy as np

from musev.control.person import FramePoses, Person

NUM_POINTS = 133
_SHOULDERS = (5, 6)
_NECK = -1
BODY_FROM_133 = (0, _NECK, 6, 8, 10, 5, 7, 9, 12, 14, 16, 11, 13, 15, 2, 1, 4, 3)
"""Point of each OpenPose joint; the neck is the middle of the shoulders, as sure as the less sure
of the two (ALGORITHM.md 13: seen if both are). Points 17 to 22, the feet, are not used."""
FACE, LEFT_HAND, RIGHT_HAND = slice(23, 91), slice(91, 112), slice(112, 133)


def people_from_wholebody(
    points_NP2: np.ndarray, sure_NP: np.ndarray, *, height: int, width: int
) -> FramePoses:
    """Bring detected points into our order.

    Args:
        points_NP2: Pixels.
        sure_NP: Confidences; clipped to 0..1.
        height: Rows of the picture.
        width: Its columns.

    Returns:
        The people, in the order given.
    """
    fractions_NP2 = points_NP2 / np.array([width, height], np.float64)
    all_NP3 = np.concatenate([fractions_NP2, np.clip(sure_NP, 0, 1)[..., None]], axis=-1)
    people = []
    for all_P3 in all_NP3:
        body_K3 = all_P3[list(BODY_FROM_133)]
        shoulders = all_P3[list(_SHOULDERS)]
        body_K3[1] = [*shoulders[:, :2].mean(axis=0), shoulders[:, 2].min()]
        people.append(
            Person.of(
                body_K3,
                left_hand_K3=all_P3[LEFT_HAND],
                right_hand_K3=all_P3[RIGHT_HAND],
                face_K3=all_P3[FACE],
            )
        )
    return tuple(people)
