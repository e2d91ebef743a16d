"""Keypoints read back from the colours of an OpenPose drawing: a judge that shares no code with it.

A joint is a bright disc of its own hue, a limb a dimmer ellipse of another; eighteen hues, twenty
degrees apart. Discs alone are ambiguous (hands are drawn in the same hues), so people are put
together by the limbs between them: the best tree of joints, exactly, then the next best.

Axes here: J joint, M candidate places of one joint, Y X pixel rows and columns, C channel.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from musev.control.drawing import COLORS, LIMB_DIMMING, LIMBS, REFERENCE_SIDE_PX
from musev.control.person import NUM_BODY, FramePoses, Person

DISC_VALUE = 172
"""Pixels at least so bright belong to discs (255 when drawn, limbs 153)."""
LIMB_VALUES = (95, 205)
"""Pixels of limbs after video compression."""
HUE_SHARE = 10.0
"""Degrees about a joint's hue that are its own; half the distance to the next."""
MIN_SATURATION = 0.55
MIN_LIMB = 0.35
"""Share of a limb that must show its colour for it to count in favour."""
MIN_LIMBS = 3
"""Fewer limbs with both their discs, each longer than wide, are what is left of a drawing or the
colours of a hand, not a person."""
MAX_PEOPLE = 8
MAX_COVERED = 0.3
"""A picture with more than this share of it not black is no pose map."""
_BLACK = 48
_SAMPLES = np.linspace(0.2, 0.8, 13)
_LIMB_HUE_SHARE = 14.0
_DISC_BONUS = 0.1
_MIN_DISC_PX = 2
_NEAR_PX = 14.0  # of a short side of 512: wider than a limb or a disc is drawn
_MAX_CANDIDATES = 60


@dataclass(frozen=True)
class _Hsv:
    hue_YX: np.ndarray
    saturation_YX: np.ndarray
    value_YX: np.ndarray


def read_pose_colors(map_YXC: np.ndarray) -> FramePoses:
    """Read the bodies in one pose map.

    Args:
        map_YXC: uint8 RGB as OpenPose or DWPose draw it, perhaps resized or compressed.

    Returns:
        People with bodies only, the clearest first. A joint's confidence is 1 where a limb leads
        to it, 0.5 where it is a disc alone.
    """
    hsv = _to_hsv(map_YXC)
    if (hsv.value_YX > _BLACK).mean() > MAX_COVERED:
        return ()
    places = _find_discs(hsv)
    height, width = map_YXC.shape[:2]
    people = []
    while len(people) < MAX_PEOPLE:
        evidence = [_limb_evidence(hsv, limb, places) for limb in range(len(LIMBS))]
        chosen = _best_tree(places, evidence)
        clear = [
            limb
            for limb in _seen_limbs(chosen, evidence)
            if _length_px(places, chosen, limb) > _near_px(height, width)
        ]
        if len(clear) < MIN_LIMBS:
            break
        people.append(_to_person(places, chosen, evidence, height=height, width=width))
        _take_away(hsv, places, chosen)
    return tuple(people)


def _take_away(hsv: _Hsv, places: list[np.ndarray], chosen: list[int | None]) -> None:
    """Remove a person with all that lies under it, so that its rest makes no second one."""
    height, width = hsv.value_YX.shape
    thickness = _near_px(height, width)
    mask = np.zeros((height, width), np.uint8)
    ends = [None if index is None else places[joint][index] for joint, index in enumerate(chosen)]
    for start, end in LIMBS:
        if ends[start] is not None and ends[end] is not None:
            line = [np.rint(ends[joint]).astype(int).tolist() for joint in (start, end)]
            cv2.line(mask, line[0], line[1], 1, thickness=thickness)
    for place in ends:
        if place is not None:
            cv2.circle(mask, np.rint(place).astype(int).tolist(), thickness, 1, thickness=-1)
    hsv.value_YX[mask > 0] = 0.0
    for joint, candidates in enumerate(places):
        columns, rows = np.rint(candidates).astype(int).T
        places[joint] = candidates[mask[rows, columns] == 0]


def _near_px(height: int, width: int) -> int:
    return max(round(_NEAR_PX * min(height, width) / REFERENCE_SIDE_PX), 3)


def _length_px(places: list[np.ndarray], chosen: list[int | None], limb: int) -> float:
    start, end = (places[joint][chosen[joint]] for joint in LIMBS[limb])
    return float(np.linalg.norm(start - end))


def _to_hsv(map_YXC: np.ndarray) -> _Hsv:
    hsv = cv2.cvtColor(map_YXC.astype(np.float32), cv2.COLOR_RGB2HSV)
    return _Hsv(hsv[..., 0], hsv[..., 1], hsv[..., 2])


def _hue(color: tuple[int, int, int]) -> float:
    return float(_to_hsv(np.array([[color]], np.uint8)).hue_YX[0, 0])


_HUES = tuple(_hue(color) for color in COLORS)


def _hue_distance(hues: np.ndarray, hue: float) -> np.ndarray:
    return np.abs((hues - hue + 180.0) % 360.0 - 180.0)


def _find_discs(hsv: _Hsv) -> list[np.ndarray]:
    """Candidate places of each joint, ``[M, 2]`` pixels, the largest first."""
    bright = (hsv.value_YX >= DISC_VALUE) & (hsv.saturation_YX >= MIN_SATURATION)
    rows, columns = np.nonzero(bright)
    if not len(rows):
        return [np.zeros((0, 2)) for _ in COLORS]
    hues = hsv.hue_YX[rows, columns]
    places = []
    for hue in _HUES:
        own = _hue_distance(hues, hue) <= HUE_SHARE
        mask = np.zeros(bright.shape, np.uint8)
        mask[rows[own], columns[own]] = 1
        _, _, stats, centres = cv2.connectedComponentsWithStats(mask, connectivity=8)
        areas = stats[1:, cv2.CC_STAT_AREA]
        order = np.argsort(-areas)[:_MAX_CANDIDATES]
        places.append(centres[1:][order[areas[order] >= _MIN_DISC_PX]])
    return places


def _limb_evidence(hsv: _Hsv, limb: int, places: list[np.ndarray]) -> np.ndarray:
    """Share of each possible limb's length that has its colour, ``[M start, M end]``."""
    starts, ends = (places[joint] for joint in LIMBS[limb])
    if not len(starts) or not len(ends):
        return np.zeros((len(starts), len(ends)))
    between = starts[:, None, None] + _SAMPLES[:, None] * (
        ends[None, :, None] - starts[:, None, None]
    )
    height, width = hsv.value_YX.shape
    columns = np.clip(np.rint(between[..., 0]).astype(int), 0, width - 1)
    rows = np.clip(np.rint(between[..., 1]).astype(int), 0, height - 1)
    value = hsv.value_YX[rows, columns]
    own = (
        (_hue_distance(hsv.hue_YX[rows, columns], _HUES[limb]) <= _LIMB_HUE_SHARE)
        & (hsv.saturation_YX[rows, columns] >= MIN_SATURATION)
        & (value >= LIMB_VALUES[0])
        & (value <= LIMB_VALUES[1])
    )
    return own.mean(axis=-1)


_ROOT = 1


def _children(joint: int) -> list[tuple[int, int, bool]]:
    """``(limb, other joint, whether this joint is the limb's start)`` away from the neck."""
    depth = _depths()
    found = []
    for limb, (start, end) in enumerate(LIMBS):
        if joint in (start, end):
            other = end if joint == start else start
            if depth[other] > depth[joint]:
                found.append((limb, other, joint == start))
    return found


def _depths() -> dict[int, int]:
    depth = {_ROOT: 0}
    while len(depth) < NUM_BODY:
        for start, end in LIMBS:
            for near, far in ((start, end), (end, start)):
                if near in depth and far not in depth:
                    depth[far] = depth[near] + 1
    return depth


_CHILDREN = tuple(_children(joint) for joint in range(NUM_BODY))


def _best_tree(places: list[np.ndarray], evidence: list[np.ndarray]) -> list[int | None]:
    """Choose a place, or none, for every joint so that the limbs agree best; exact.

    A limb between two chosen places adds twice its evidence above :data:`MIN_LIMB`, which may be
    negative; a joint that is left out neither adds nor takes away.
    """
    chosen: list[int | None] = [None] * NUM_BODY

    def solve(joint: int) -> tuple[np.ndarray, list[np.ndarray]]:
        """Best sum under a joint for each of its places (the last: none), and its children's."""
        count = len(places[joint])
        best = np.append(np.full(count, _DISC_BONUS), 0.0)
        picks = []
        for limb, child, is_start in _CHILDREN[joint]:
            below, _ = solved.setdefault(child, solve(child))
            pair = evidence[limb] if is_start else evidence[limb].T
            gains = np.zeros((count + 1, len(places[child]) + 1))
            gains[:count, :-1] = 2 * (pair - MIN_LIMB)
            total = gains + below[None]
            picks.append(total.argmax(axis=1))
            best += total.max(axis=1)
        return best, picks

    solved: dict[int, tuple[np.ndarray, list[np.ndarray]]] = {}
    solved[_ROOT] = solve(_ROOT)
    best, _ = solved[_ROOT]
    stack = [(_ROOT, int(best.argmax()))]
    while stack:
        joint, pick = stack.pop()
        chosen[joint] = pick if pick < len(places[joint]) else None
        for (_, child, _), picks in zip(_CHILDREN[joint], solved[joint][1], strict=True):
            stack.append((child, int(picks[pick])))
    return chosen


def _to_person(
    places: list[np.ndarray],
    chosen: list[int | None],
    evidence: list[np.ndarray],
    *,
    height: int,
    width: int,
) -> Person:
    body_K3 = np.zeros((NUM_BODY, 3))
    for joint, index in enumerate(chosen):
        if index is not None:
            x, y = places[joint][index]
            body_K3[joint] = [x / width, y / height, 0.5]
    for limb in _seen_limbs(chosen, evidence):
        body_K3[list(LIMBS[limb]), 2] = 1.0
    return Person.of(body_K3)


def _seen_limbs(chosen: list[int | None], evidence: list[np.ndarray]) -> list[int]:
    """Limbs whose two ends are chosen and whose colour is between them."""
    seen = []
    for limb, (start, end) in enumerate(LIMBS):
        one, other = chosen[start], chosen[end]
        if one is not None and other is not None and evidence[limb][one, other] >= MIN_LIMB:
            seen.append(limb)
    return seen


assert 255 * LIMB_DIMMING < DISC_VALUE, "discs and limbs are told apart by their brightness"
