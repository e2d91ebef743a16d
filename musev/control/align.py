"""Posealign: poses of a driving video, moved onto the person of a portrait.

Each part of the driving person gets the length it has in the portrait, in every frame, and the neck
of the chosen frame lands on the portrait's. Follows MusePose's ``pose_align`` (ALGORITHM.md 14)
where that is right. Beyond it: missing points are not measured, nor are limbs that point at the
camera; parts that cannot be measured take the mean of the others, also those of infinite scale;
faces turn with their heads; everybody in the frame is moved; and where the result would be a
deformed figure it is refused.

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
"""A ratio of lengths may be so much above or below the body's median. People differ far less:
beyond it a limb points at the camera in one of the two pictures, and is not measured."""
MAX_UNLIKELY = 2
"""With more parts than this beyond :data:`MAX_STRETCH`, nothing can be said of the figure."""
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
    for who, person in (("portrait", reference), ("driving video", first)):
        if _root(person.body_K3) is None:
            raise RequestError(
                f"align: the {who} shows neither a neck nor both shoulders. Use a picture with the "
                f"upper body in it, another first frame, or align=never."
            )
    ratios = _measure(reference, first, reference_aspect, video_aspect)
    likely, unlikely = _sort_out(ratios)
    if len(unlikely) > MAX_UNLIKELY:
        raise RequestError(
            f"align: the figure would be deformed: {', '.join(unlikely)} differ more than "
            f"{MAX_STRETCH:g}-fold from the rest of the body in their scales. Such limbs point at "
            f"the camera, or are hidden, in the portrait or in the first frame. Use another first "
            f"frame, another portrait, or align=never."
        )
    finite = _part_scales(likely)
    if len(finite) < MIN_MEASURED:
        raise RequestError(
            f"align: only {len(finite)} parts of the body can be measured in both the portrait and "
            f"the driving video ({', '.join(finite) or 'none'}), {MIN_MEASURED} are needed. Use a "
            f"portrait that shows more of the body, another first frame, or align=never."
        )
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


_Ratios = dict[str, list[float]]


def _sort_out(ratios: _Ratios) -> tuple[_Ratios, tuple[str, ...]]:
    """Keep the ratios that a body can have; name the parts of which none is left."""
    known = {
        part: [ratio for ratio in those if 0 < ratio < math.inf] for part, those in ratios.items()
    }
    everything = [ratio for those in known.values() for ratio in those]
    if not everything:
        return known, ()
    middle = float(np.median([np.mean(those) for those in known.values() if those]))
    low, high = middle / MAX_STRETCH, middle * MAX_STRETCH
    likely = {
        part: [ratio for ratio in those if low <= ratio <= high] for part, those in known.items()
    }
    return likely, tuple(part for part in known if known[part] and not likely[part])


def _part_scales(ratios: _Ratios) -> dict[str, float]:
    """Mean of each part's ratios; the hands' mean counts as much as that of each half arm."""
    scales = {part: float(np.mean(those)) for part, those in ratios.items() if those}
    arms = [scales[part] for part in ("hand", "arm_upper", "arm_lower") if part in scales]
    if arms:
        scales["hand"] = sum(arms) / len(arms)
    return scales


def _measure(
    reference: Person, first: Person, reference_aspect: float, video_aspect: float
) -> _Ratios:
    """Length ratios of each part where both pictures show it; 0 or infinite as they come."""
    bodies = (
        _lengths(reference.body_K3, reference_aspect),
        _lengths(first.body_K3, video_aspect),
    )
    ratios: _Ratios = {
        part: [_ratio(bodies, start, end) for start, end in pairs if _seen(bodies, start, end)]
        for part, pairs in _LENGTHS.items()
    }
    ratios["body_len"] = _trunk_ratios(bodies)
    knuckles: list[float] = []
    for side in ("right_hand", "left_hand"):
        hands = (
            _lengths(reference.part(side), reference_aspect),
            _lengths(first.part(side), video_aspect),
        )
        knuckles += [_ratio(hands, 0, k) for k in _KNUCKLES if _seen(hands, 0, k)]
    # Single knuckles differ a lot when a hand turns: only their mean is looked at.
    finite = [ratio for ratio in knuckles if 0 < ratio < math.inf]
    ratios["hand"] = [sum(finite) / len(finite)] if finite else []
    return ratios


def _seen(pair: tuple[np.ndarray, np.ndarray], *points: int) -> bool:
    return all(points_K3[list(points), 2].min() > MIN_CONFIDENCE for points_K3 in pair)


def _ratio(pair: tuple[np.ndarray, np.ndarray], start: int, end: int) -> float:
    lengths = [float(np.linalg.norm(p_K3[start, :2] - p_K3[end, :2])) for p_K3 in pair]
    return _divide(*lengths)


def _trunk_ratios(bodies: tuple[np.ndarray, np.ndarray]) -> list[float]:
    if not _seen(bodies, NECK, *_HIPS):
        return []
    hips = [body_K3[list(_HIPS), :2].mean(axis=0) for body_K3 in bodies]
    necks = [body_K3[NECK, :2] for body_K3 in bodies]
    lengths = [float(np.linalg.norm(n - h)) for n, h in zip(necks, hips, strict=True)]
    return [_divide(*lengths)]


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
