"""Another frame rate by choosing frames: nearest in time, none blended, none invented.

Axes here: T frame, Y X pixel rows and columns, C channel.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from fractions import Fraction
from itertools import count
from typing import TypeVar

from musev.errors import MediaError

Frame = TypeVar("Frame")
_CLOSE_ENOUGH = Fraction(1, 100)


def resample_frames(
    frames: Iterable[Frame],
    *,
    source_fps: float,
    fps: float,
    start_s: float = 0.0,
    num_frames: int | None = None,
) -> Iterator[Frame]:
    """Show at every wanted moment the frame that is on screen then.

    Reads no further than it must, and holds one frame. A moment within a hundredth of a source
    frame of a change counts as past it, so that rates with long fractions do not flicker.

    Args:
        frames: In order of time, evenly spaced.
        source_fps: Their rate.
        fps: The wanted rate; higher ones repeat frames.
        start_s: Moment of the first wanted frame.
        num_frames: How many are wanted; None for all there are.

    Yields:
        Frames, as they came.

    Raises:
        MediaError: If a rate or the start is no usable number.
    """
    step = _source_frames_a_frame(source_fps, fps)
    if not (math.isfinite(start_s) and start_s >= 0):
        raise MediaError(f"a clip cannot start at {start_s} s; give 0 or more")
    first = Fraction(start_s).limit_denominator(100_000) * Fraction(source_fps)
    wanted = (math.floor(first + number * step + _CLOSE_ENOUGH) for number in count())
    given, next_wanted = 0, next(wanted)
    for position, frame in enumerate(frames):
        while next_wanted == position:
            if given == num_frames:
                return
            yield frame
            given += 1
            next_wanted = next(wanted)
        if given == num_frames:
            return


def count_resampled(num_frames: int, *, source_fps: float, fps: float) -> int:
    """Count what :func:`resample_frames` makes of a whole video.

    Args:
        num_frames: Of the video.
        source_fps: Its rate.
        fps: The wanted rate.

    Returns:
        The number of frames, at least 1 for a video that has one.
    """
    step = _source_frames_a_frame(source_fps, fps)
    return max(0, math.ceil((num_frames - _CLOSE_ENOUGH) / step))


def _source_frames_a_frame(source_fps: float, fps: float) -> Fraction:
    for name, value in (("source_fps", source_fps), ("fps", fps)):
        if not (math.isfinite(value) and value > 0):
            raise MediaError(f"{name} must be above 0, got {value}")
    return Fraction(source_fps).limit_denominator(100_000) / Fraction(fps).limit_denominator(
        100_000
    )
