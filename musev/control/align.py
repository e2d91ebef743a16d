"""Posealign: poses of a driving video, moved onto the person of a portrait.

Each part of the driving person gets the length it has in the portrait, in every frame, and the neck
of the chosen frame lands on the portrait's. Follows MusePose's ``pose_align`` (ALGORITHM.md 14)
where that is right. Beyond it: missing points are not measured; parts that cannot be measured take
the mean of the others, also those of infinite scale; faces turn with their heads; everybody in the
frame is moved; and where the result would be a deformed figure it is refused.

Axes here: K keypoint. Lengths are in picture heights: x of :class:`Person` times the aspect (width
over height) of its own picture.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from musev.control.person import PARTS, FramePoses, Person
from musev.errors import RequestError

MIN_CONFIDENCE = 0.3
"""Points at most so sure are moved along, but nothing is measured with them."""

NECK, NOSE, RIGHT_WRIST, LEFT_WRIST = 1, 0, 4, 7

_LENGTHS: Mapping[str, tuple[tuple[int, int], ...]] = {
    "neck": ((0, 1),),
    "face": ((16, 17),),
    "shoulder": ((2, 5),),
    "arm_upper": ((2, 3), (5, 6)),
    "arm_lower": ((3, 4), (6, 7)),
    "leg_upper": ((8, 9), (11, 12)),
    "leg_lower": ((9, 10), (12, 13)),
}
"""Joint pairs whose length in the portrait over that in the video is a part's scale."""

_HIPS = (8, 11)
_KNUCKLES = (1, 5, 9, 13, 17)
PART_NAMES = (*_LENGTHS, "body_len", "hand")

_TREE: tuple[tuple[int, tuple[int, ...], str], ...] = (
    (0, (1,), "neck"),
    (14, (0, 1), "face"),
    (15, (0, 1), "face"),
    (16, (0, 1), "face"),
    (17, (0, 1), "face"),
    (2, (1,), "shoulder"),
    (5, (1,), "shoulder"),
    (3, (2, 1), "arm_upper"),
    (6, (5, 1), "arm_upper"),
    (4, (3, 2, 1), "arm_lower"),
    (7, (6, 5, 1), "arm_lower"),
    (8, (1,), "body_len"),
    (11, (1,), "body_len"),
    (9, (8, 1), "leg_upper"),
    (12, (11, 1), "leg_upper"),
    (10, (9, 8, 1), "leg_lower"),
    (13, (12, 11, 1), "leg_lower"),
)
"""Joint, what it hangs on (the first that is there counts), and the part between them."""

MIN_MEASURED = 3
MAX_STRETCH = 4.0
"""A part may be stretched so much more, or less, than the median part; people differ far less, so
beyond it a limb points at the camera in one of the two pictures."""
SAME_POSE = 0.02
"""Mean distance of joints, in picture heights, up to which two poses count as the same."""


@dataclass(frozen=True, eq=False)
class Alignment:
    """How a video's people are moved; made from one frame, used for all."""

    scales: Mapping[str, float]
    """Of each of :data:`PART_NAMES`: length in the portrait over length in the video."""
    measured: tuple[str, ...]
    """Parts whose scale was measured; that of the others is the mean of these."""
    offset_2: np.ndarray
    """Added to every point: portrait's neck minus video's, in picture heights."""
    anchor_2: np.ndarray
    """The neck in the chosen frame; people without one are scaled about it."""
    video_aspect: float
    reference_aspect: float

    @property
    def score(self) -> float:
        """How alike the figures are, 1: one is the other enlarged; 0.5: parts differ by half."""
        logs = np.log([self.scales[name] for name in self.measured])
        return float(np.exp(-np.abs(logs - np.median(logs)).max()))

    @property
    def mean_scale(self) -> float:
        """Mean of the measured scales."""
        return float(np.mean([self.scales[name] for name in self.measured]))


def plan_alignment(
    reference: Person, first: Person, *, reference_aspect: float, video_aspect: float
) -> Alignment:
    """Measure how a video's person must be changed to be the portrait's.

    Args:
        reference: The person in the portrait.
        first: The person in the frame of the video that is to match it.
        reference_aspect: Width over height of the portrait.
        video_aspect: Width over height of the video.

    Returns:
        The plan.

    Raises:
        RequestError: If the two cannot be compared, or a part would be deformed.
    """
    measured = _measure(reference, first, reference_aspect, video_aspect)
    finite = {name: scale for name, scale in measured.items() if _usable(scale)}
    for who, person in (("portrait", reference), ("driving video", first)):
        if _root(person.body_K3) is None:
            raise RequestError(
                f"align: the {who} shows neither a neck nor both shoulders. Use a picture with the "
                f"upper body in it, another first frame, or align=never."
            )
    if len(finite) < MIN_MEASURED:
        raise RequestError(
            f"align: only {len(finite)} parts of the body can be measured in both the portrait and "
            f"the driving video ({', '.join(finite) or 'none'}), {MIN_MEASURED} are needed. Use a "
            f"portrait that shows more of the body, another first frame, or align=never."
        )
    _refuse_deformed(finite)
    mean = float(np.mean(list(finite.values())))
    anchor_2 = _root(_lengths(first.body_K3, video_aspect))
    target_2 = _root(_lengths(reference.body_K3, reference_aspect))
    assert anchor_2 is not None
    assert target_2 is not None
    return Alignment(
        scales={name: finite.get(name, mean) for name in PART_NAMES},
        measured=tuple(finite),
        offset_2=target_2 - anchor_2,
        anchor_2=anchor_2,
        video_aspect=video_aspect,
        reference_aspect=reference_aspect,
    )


def _usable(scale: float | None) -> bool:
    return scale is not None and math.isfinite(scale) and scale > 0


def _refuse_deformed(scales: Mapping[str, float]) -> None:
    middle = float(np.median(list(scales.values())))
    worst = max(scales, key=lambda name: abs(math.log(scales[name] / middle)))
    stretch = scales[worst] / middle
    if not 1 / MAX_STRETCH <= stretch <= MAX_STRETCH:
        raise RequestError(
            f"align: {worst} would be scaled by {scales[worst]:.2f}, the body by {middle:.2f}: a "
            f"deformed figure. It probably points at the camera, or is hidden, in the portrait or "
            f"in the first frame. Use another first frame, another portrait, or align=never."
        )


def _measure(
    reference: Person, first: Person, reference_aspect: float, video_aspect: float
) -> dict[str, float | None]:
    """Scale of each part; None where a point is missing, not finite as the division gives it."""
    bodies = (
        _lengths(reference.body_K3, reference_aspect),
        _lengths(first.body_K3, video_aspect),
    )
    scales: dict[str, float | None] = {
        name: _mean([_ratio(bodies, start, end) for start, end in pairs])
        for name, pairs in _LENGTHS.items()
    }
    scales["body_len"] = _trunk_ratio(bodies)
    knuckles = []
    for side in ("right_hand", "left_hand"):
        hands = (
            _lengths(reference.part(side), reference_aspect),
            _lengths(first.part(side), video_aspect),
        )
        knuckles += [_ratio(hands, 0, knuckle) for knuckle in _KNUCKLES]
    # A ratio of 0 does not count, as in the original.
    of_hands = _mean([ratio for ratio in knuckles if ratio != 0])
    scales["hand"] = _mean([of_hands, scales["arm_upper"], scales["arm_lower"]])
    return scales


def _mean(ratios: list[float | None]) -> float | None:
    known = [ratio for ratio in ratios if ratio is not None]
    return sum(known) / len(known) if known else None


def _ratio(pair: tuple[np.ndarray, np.ndarray], start: int, end: int) -> float | None:
    reference, video = pair
    if min(*reference[[start, end], 2], *video[[start, end], 2]) <= MIN_CONFIDENCE:
        return None
    return _divide(
        float(np.linalg.norm(reference[start, :2] - reference[end, :2])),
        float(np.linalg.norm(video[start, :2] - video[end, :2])),
    )


def _trunk_ratio(bodies: tuple[np.ndarray, np.ndarray]) -> float | None:
    lengths = []
    for body_K3 in bodies:
        if body_K3[[NECK, *_HIPS], 2].min() <= MIN_CONFIDENCE:
            return None
        hips = body_K3[list(_HIPS), :2].mean(axis=0)
        lengths.append(float(np.linalg.norm(body_K3[NECK, :2] - hips)))
    return _divide(*lengths)


def _divide(reference: float, video: float) -> float:
    """Length ratio; 1 where both are nothing, as in the original."""
    if video > 0:
        return reference / video
    return math.inf if reference > 0 else 1.0


def _lengths(points_K3: np.ndarray, aspect: float) -> np.ndarray:
    """Points in picture heights, float64."""
    return points_K3.astype(np.float64) * np.array([aspect, 1.0, 1.0])


def _root(body_K3: np.ndarray) -> np.ndarray | None:
    """The neck, or the middle of the shoulders."""
    if body_K3[NECK, 2] > 0:
        return body_K3[NECK, :2].astype(np.float64)
    if body_K3[[2, 5], 2].min() > 0:
        return body_K3[[2, 5], :2].astype(np.float64).mean(axis=0)
    return None


def align_people(people: FramePoses, alignment: Alignment) -> FramePoses:
    """Move everybody in one frame.

    The first person is the one that was measured. The others get the same lengths, and their
    distance to the first is scaled with the body, so that a group keeps its arrangement.

    Args:
        people: Of the video, the followed person first.
        alignment: From :func:`plan_alignment`.

    Returns:
        The same people in the portrait's coordinates.
    """
    if not people:
        return ()
    leader = _root(_lengths(people[0].body_K3, alignment.video_aspect))
    return tuple(_align(person, alignment, leader) for person in people)


def _align(person: Person, alignment: Alignment, leader: np.ndarray | None) -> Person:
    parts = {name: _lengths(person.part(name), alignment.video_aspect) for name in PARTS}
    old = parts["body"]
    root = _root(old)
    if root is None:
        moved = {name: _zoomed(points, alignment) for name, points in parts.items()}
    else:
        moved = _limb_by_limb(parts, root, alignment)
        if leader is not None:
            shift = (alignment.mean_scale - 1.0) * (root - leader)
            for points in moved.values():
                points[:, :2] += shift
    size = np.array([alignment.reference_aspect, 1.0])
    for points in moved.values():
        points[:, :2] = (points[:, :2] + alignment.offset_2) / size
        points[points[:, 2] <= 0] = 0.0
    return Person.of(**{f"{name}_K3": points for name, points in moved.items()})


def _limb_by_limb(
    parts: Mapping[str, np.ndarray], root: np.ndarray, alignment: Alignment
) -> dict[str, np.ndarray]:
    """Every part in its new length, the neck where it was."""
    old, scales = parts["body"], alignment.scales
    before, new = old[:, :2].copy(), old.copy()
    before[NECK] = new[NECK, :2] = root
    there = old[:, 2] > 0
    there[NECK] = True
    for joint, parents, part in _TREE:
        if there[joint]:
            parent = next(p for p in parents if there[p])
            new[joint, :2] = new[parent, :2] + scales[part] * (before[joint] - before[parent])

    def hang(name: str, joint: int, part: str) -> np.ndarray:
        points = parts[name].copy()
        if there[joint]:
            points[:, :2] = new[joint, :2] + scales[part] * (points[:, :2] - before[joint])
        else:
            points[:, :2] = root + alignment.mean_scale * (points[:, :2] - root)
        return points

    return {
        "body": new,
        "right_hand": hang("right_hand", RIGHT_WRIST, "hand"),
        "left_hand": hang("left_hand", LEFT_WRIST, "hand"),
        "face": hang("face", NOSE, "face"),
    }


def _zoomed(points_K3: np.ndarray, alignment: Alignment) -> np.ndarray:
    moved = points_K3.copy()
    centre = alignment.anchor_2
    moved[:, :2] = centre + alignment.mean_scale * (points_K3[:, :2] - centre)
    return moved


def pose_distance(reference: Person, first: Person, *, reference_aspect: float) -> float:
    """Measure how far two people's joints are apart when one picture is laid over the other.

    Args:
        reference: The person in the portrait.
        first: The person in the video's frame.
        reference_aspect: Width over height of the portrait, onto which the video is stretched.

    Returns:
        Mean distance of the joints that both show, in picture heights; infinite without any.
    """
    one = _lengths(reference.body_K3, reference_aspect)
    other = _lengths(first.body_K3, reference_aspect)
    both = (one[:, 2] > MIN_CONFIDENCE) & (other[:, 2] > MIN_CONFIDENCE)
    if not both.any():
        return math.inf
    return float(np.linalg.norm(one[both, :2] - other[both, :2], axis=1).mean())


def needs_alignment(reference: Person, first: Person, *, reference_aspect: float) -> bool:
    """Decide for ``align: auto``: whether portrait and first frame differ; :data:`SAME_POSE`."""
    return pose_distance(reference, first, reference_aspect=reference_aspect) > SAME_POSE
