"""One person followed through a video: who it is in each frame, gaps filled, motion smoothed.

Everything here takes frames one after another and gives frames one after another; what is held in
between does not grow with the video. A filled or smoothed video has as many frames as before.

Axes here: K keypoint; of a whole person 128, in the order of ``person.PARTS``.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np

from musev.control.drawing import JOINTS, LIMBS
from musev.control.person import PARTS, FramePoses, Person

MIN_CONFIDENCE = 0.3
"""Points at most so sure count as missing."""

MAX_JUMP = 0.5
"""The followed person is looked for within so many of its own heights of where it should be."""
JUMP_GROWTH = 0.15
"""What every frame without it adds to that."""
MAX_LOST_FRAMES = 50
"""After so many frames without it, the most visible person is followed instead."""
_VELOCITY_KEPT = 0.7
_NUM_BODY = PARTS["body"]


def follow_person(poses: Iterable[FramePoses]) -> Iterator[FramePoses]:
    """Put the same person first in every frame.

    At the start that is the most visible one: the largest and surest. From then on it is the one
    nearest to where its motion leads, joint by joint, so that people may cross.

    Args:
        poses: The people of each frame, in any order.

    Yields:
        The people of each frame, the followed one first. Where it is not seen an empty person
        stands in its place, so that the others do not move up.
    """
    tracker = _Tracker()
    for people in poses:
        yield tracker.follow(people)


class _Tracker:
    def __init__(self) -> None:
        self._body: np.ndarray | None = None
        self._velocity = np.zeros(2)
        self._lost = 0

    def follow(self, people: FramePoses) -> FramePoses:
        index = self._find(people)
        if index is None:
            self._lost += 1
            return (Person.of(), *people) if people else ()
        self._remember(people[index].body_K3.astype(np.float64))
        return (people[index], *people[:index], *people[index + 1 :])

    def _find(self, people: FramePoses) -> int | None:
        if not people:
            return None
        if self._body is None or self._lost > MAX_LOST_FRAMES:
            best = max(range(len(people)), key=lambda n: _visibility(people[n].body_K3))
            return best if _visibility(people[best].body_K3) > 0 else None
        expected = self._body.copy()
        expected[:, :2] += self._velocity * (self._lost + 1)
        distances = [_distance(expected, person.body_K3) for person in people]
        nearest = int(np.argmin(distances))
        allowed = (MAX_JUMP + JUMP_GROWTH * self._lost) * max(_extent(self._body), 0.02)
        return nearest if distances[nearest] <= allowed else None

    def _remember(self, body_K3: np.ndarray) -> None:
        if self._body is not None and self._lost <= MAX_LOST_FRAMES:
            both = _sure(self._body) & _sure(body_K3)
            if both.any():
                moved = (body_K3[both, :2] - self._body[both, :2]).mean(axis=0) / (self._lost + 1)
                self._velocity = _VELOCITY_KEPT * self._velocity + (1 - _VELOCITY_KEPT) * moved
        else:
            self._velocity = np.zeros(2)
        self._body, self._lost = body_K3, 0


def _sure(points_K3: np.ndarray) -> np.ndarray:
    return points_K3[:, 2] > MIN_CONFIDENCE


def _extent(body_K3: np.ndarray) -> float:
    points = body_K3[_sure(body_K3), :2]
    return float(np.ptp(points, axis=0).max()) if len(points) else 0.0


def _visibility(body_K3: np.ndarray) -> float:
    return _extent(body_K3) * float(body_K3[:, 2].sum())


def _distance(expected_K3: np.ndarray, body_K3: np.ndarray) -> float:
    both = _sure(expected_K3) & _sure(body_K3)
    if not both.any():
        return float("inf")
    return float(np.linalg.norm(expected_K3[both, :2] - body_K3[both, :2], axis=1).mean())


def fill_gaps(poses: Iterable[FramePoses], max_gap_frames: int) -> Iterator[FramePoses]:
    """Draw a straight line through short gaps of the first person's keypoints.

    Args:
        poses: The followed person first (:func:`follow_person`); the others are left alone.
        max_gap_frames: Longer gaps stay; 0 changes nothing.

    Yields:
        As many frames as given. A filled point is as sure as the less sure of its two ends.
    """
    if max_gap_frames <= 0:
        yield from poses
        return
    waiting: deque[tuple[np.ndarray, FramePoses]] = deque()
    last_seen = np.full(_NUM_POINTS, -1)
    for frame, people in enumerate(poses):
        points_K3 = _to_array(people)
        seen = _sure(points_K3)
        gaps = frame - last_seen - 1
        short = seen & (last_seen >= 0) & (gaps >= 1) & (gaps <= max_gap_frames)
        for gap in set(gaps[short].tolist()):
            k = np.flatnonzero(short & (gaps == gap))
            start = waiting[-gap - 1][0][k]
            for step in range(1, gap + 1):
                share = step / (gap + 1)
                filled = (1 - share) * start + share * points_K3[k]
                filled[:, 2] = np.minimum(start[:, 2], points_K3[k, 2])
                waiting[step - gap - 1][0][k] = filled
        last_seen[seen] = frame
        waiting.append((points_K3, people))
        if len(waiting) > max_gap_frames + 1:
            yield _with_first(*waiting.popleft())
    while waiting:
        yield _with_first(*waiting.popleft())


def smooth_motion(poses: Iterable[FramePoses], share: float) -> Iterator[FramePoses]:
    """Steady the first person: each point keeps a share of where it was.

    A point that was missing starts afresh, so nothing is dragged in from before a gap.

    Args:
        poses: The followed person first (:func:`follow_person`); the others are left alone.
        share: Of the frame before, 0 to below 1; 0 changes nothing. Motion lags behind by
            ``share / (1 - share)`` frames.

    Yields:
        As many frames as given.
    """
    if share <= 0:
        yield from poses
        return
    before_K3: np.ndarray | None = None
    for people in poses:
        points_K3 = _to_array(people)
        if before_K3 is not None:
            both = _sure(points_K3) & _sure(before_K3)
            points_K3[both, :2] = share * before_K3[both, :2] + (1 - share) * points_K3[both, :2]
        yield _with_first(points_K3, people)
        before_K3 = points_K3


_NUM_POINTS = sum(PARTS.values())


def _to_array(people: FramePoses) -> np.ndarray:
    """All keypoints of the first person, ``[128, 3]`` float64; zeros where there is none."""
    if not people:
        return np.zeros((_NUM_POINTS, 3))
    return np.concatenate([people[0].part(name) for name in PARTS]).astype(np.float64)


def _with_first(points_K3: np.ndarray, people: FramePoses) -> FramePoses:
    if not people and not points_K3[:, 2].any():
        return ()
    parts, start = {}, 0
    for name, count in PARTS.items():
        parts[f"{name}_K3"] = points_K3[start : start + count]
        start += count
    return (Person.of(**parts), *people[1:])


@dataclass
class PoseReport:
    """What was found of the first person in a video; add frames one after another."""

    num_frames: int = 0
    frames_without_person: list[tuple[int, int]] = field(default_factory=list)
    """First and last frame of each stretch without a sure point of its body."""
    most_people: int = 0
    limb_frames: dict[str, int] = field(default_factory=dict)
    """In how many frames each limb was seen."""
    limb_losses: dict[str, int] = field(default_factory=dict)
    """How often each limb was gone in a frame after one that had it, the person still there."""
    _recent: deque[np.ndarray] = field(default_factory=lambda: deque(maxlen=3))
    _jitter_sum: float = 0.0
    _jitter_count: int = 0

    def add(self, people: FramePoses) -> None:
        """Count one more frame."""
        body_K3 = people[0].body_K3 if people else np.zeros((_NUM_BODY, 3), np.float32)
        present = sum(bool(_sure(person.body_K3).any()) for person in people)
        self.most_people = max(self.most_people, present)
        sure = _sure(body_K3)
        if not sure.any():
            self._count_absence()
        before = _sure(self._recent[-1]) if self._recent else np.zeros(_NUM_BODY, bool)
        for start, end in LIMBS:
            name = f"{JOINTS[start]}-{JOINTS[end]}"
            seen, was = bool(sure[start] and sure[end]), bool(before[start] and before[end])
            self.limb_frames[name] = self.limb_frames.get(name, 0) + int(seen)
            if was and not seen and sure.any():
                self.limb_losses[name] = self.limb_losses.get(name, 0) + 1
        self._recent.append(body_K3)
        self._count_jitter()
        self.num_frames += 1

    def _count_absence(self) -> None:
        stretches = self.frames_without_person
        if stretches and stretches[-1][1] == self.num_frames - 1:
            stretches[-1] = (stretches[-1][0], self.num_frames)
        else:
            stretches.append((self.num_frames, self.num_frames))

    def _count_jitter(self) -> None:
        if len(self._recent) < 3:
            return
        first, middle, last = self._recent
        all_three = _sure(first) & _sure(middle) & _sure(last)
        extent = _extent(middle)
        if not all_three.any() or extent == 0:
            return
        bend = first[all_three, :2] - 2 * middle[all_three, :2] + last[all_three, :2]
        self._jitter_sum += float(np.linalg.norm(bend, axis=1).mean()) / extent
        self._jitter_count += 1

    @property
    def jitter(self) -> float:
        """How much joints leave a straight, even motion from frame to frame, in body heights."""
        return self._jitter_sum / self._jitter_count if self._jitter_count else 0.0

    def as_dict(self) -> dict[str, object]:
        """The report for JSON: limbs never seen are left out."""
        missing = sum(last - first + 1 for first, last in self.frames_without_person)
        return {
            "num_frames": self.num_frames,
            "num_frames_without_person": missing,
            "frames_without_person": [list(stretch) for stretch in self.frames_without_person],
            "most_people": self.most_people,
            "jitter": round(self.jitter, 6),
            "limb_frames": {name: count for name, count in self.limb_frames.items() if count},
            "limb_losses": dict(self.limb_losses),
        }


def report_poses(poses: Iterable[FramePoses]) -> PoseReport:
    """Report on a whole video; see :class:`PoseReport`."""
    report = PoseReport()
    for people in poses:
        report.add(people)
    return report


def steady_people(
    poses: Iterable[FramePoses], *, max_gap_frames: int = 0, smoothing: float = 0.0
) -> Iterator[FramePoses]:
    """Follow one person, fill its gaps, smooth it; with both at 0 only the order changes.

    Args:
        poses: The people of each frame.
        max_gap_frames: See :func:`fill_gaps`.
        smoothing: See :func:`smooth_motion`.

    Yields:
        The people of each frame, the followed one first.
    """
    yield from smooth_motion(fill_gaps(follow_person(poses), max_gap_frames), smoothing)
