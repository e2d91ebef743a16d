"""Keypoints in place of a driving video: which frames a clip reads, and where they lie in it.

Axes here: T frame, K keypoint.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import numpy as np

from musev.control.person import PARTS, FramePoses, Person, PoseVideo, iter_poses, scan_poses
from musev.errors import MediaError
from musev.media import FrameTimes


def time_people(path: Path, *, fps: float) -> FrameTimes:
    """Find out when each frame of keypoints is shown.

    Args:
        path: The keypoints.
        fps: Taken where the file does not tell its rate.

    Returns:
        Evenly spaced times.

    Raises:
        MediaError: If the file holds no frames or is no Parquet file.
    """
    video = scan_poses(path)
    if video.num_frames < 1:
        raise MediaError(f"{path}: holds keypoints of no frame. Give some.")
    rate = Fraction(video.fps or fps).limit_denominator(100_000)
    return FrameTimes(
        ticks_T=np.arange(video.num_frames, dtype=np.int64),
        end_tick=video.num_frames,
        tick_s=1 / rate,
    )


def read_people(path: Path, numbers: Sequence[int] | np.ndarray) -> Iterator[FramePoses]:
    """Read the people of chosen frames, one after another.

    Args:
        path: The keypoints.
        numbers: Of the frames, never falling.

    Yields:
        Everybody in each.

    Raises:
        MediaError: If there are fewer frames than the file tells.
    """
    frames = enumerate(iter_poses(path))
    place, people = -1, ()
    assert all(before <= after for before, after in pairwise(numbers))
    for number in numbers:
        while place < number:
            place, people = next(frames, (number, None))
        if people is None:
            raise MediaError(f"{path}: frame {number} is missing. Write the file again.")
        yield people


def fit_people(people: FramePoses, video: PoseVideo, *, width: int, height: int) -> FramePoses:
    """Move people as their picture moves when its middle is cut to another aspect.

    Args:
        people: Of one frame of the video.
        video: Its size; unknown, it has the wanted aspect already.
        width: Wanted.
        height: Wanted.

    Returns:
        The people as fractions of the wanted picture.
    """
    if not (video.width and video.height):
        return people
    wider = video.aspect / (width / height)
    stretch = np.array([max(wider, 1), max(1 / wider, 1), 1], np.float32)
    centre = np.array([0.5, 0.5, 0], np.float32)
    return tuple(
        dataclasses.replace(
            person,
            **{
                f"{part}_K3": ((person.part(part) - centre) * stretch + centre)
                * _seen(person, part)
                for part in PARTS
            },
        )
        for person in people
    )


def _seen(person: Person, part: str) -> np.ndarray:
    """Missing points stay zero."""
    return person.part(part)[:, 2:] > 0
