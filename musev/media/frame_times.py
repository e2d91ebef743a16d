"""Which frames of a video are shown when, which of them a clip reads, and how to get at those.

Axes here: T frame, Y X pixel rows and columns, C channel.

Time stamps come from the packets, so nothing is decoded to know them. They make two things right
that a mean frame rate gets wrong: videos whose frames are not evenly spaced, and reading from the
middle of a file without decoding what lies before.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

import numpy as np

from musev.errors import MediaError
from musev.media.video import (
    EVERY_FRAME,
    OVER_DAMAGE,
    PacketTable,
    list_packets,
    read_video,
    seek_to,
    tabulate,
)

logger = logging.getLogger(__name__)

SEEK_FRAMES = 64
"""Fewer frames are decoded and thrown away sooner than a place in the file is looked for."""
_CLOSE_ENOUGH = Fraction(1, 100)
"""A moment so little before a change, in mean frames, counts as past it (``resample_frames``)."""


@dataclass(frozen=True, eq=False, kw_only=True)
class FrameTimes:
    """When each frame of a video is shown."""

    ticks_T: np.ndarray
    """int64, ascending; counted from the beginning of the file."""
    end_tick: int
    tick_s: Fraction
    damaged: bool = False
    """Whether only the frames in front of the first damage are counted."""

    @property
    def num_frames(self) -> int:
        """How many frames there are."""
        return len(self.ticks_T)

    @property
    def duration_s(self) -> Fraction:
        """From the first frame's beginning to the last one's end."""
        return (self.end_tick - int(self.ticks_T[0])) * self.tick_s

    @property
    def fps(self) -> float:
        """Mean rate; 0 for a single frame that lasts no time."""
        return float(self.num_frames / self.duration_s) if self.duration_s else 0.0


def time_frames(path: str | os.PathLike[str], *, may_be_cut: bool = False) -> FrameTimes:
    """Find out when each frame of a video is shown; of the pictures only the first is decoded.

    Args:
        path: Any file that ffmpeg reads.
        may_be_cut: Whether a damaged file may be read as far as its first damage. All of such a
            file is decoded to find that.

    Returns:
        The times of all frames that can be read.

    Raises:
        MediaError: If the file is missing, empty, no video, or damaged where it must not be.
    """
    source, broken = Path(path), False
    try:
        times = _times(list_packets(source))
        _decode_first(source, over_damage=False)
    except MediaError:
        if not may_be_cut:
            raise
        times, broken = _times(list_packets(source, over_damage=True)), True
        _decode_first(source, over_damage=True)
    if not may_be_cut:
        return times
    decoded = _times(tabulate(source, OVER_DAMAGE, *EVERY_FRAME))
    return _before_damage(times, decoded, broken=broken)


def _decode_first(source: Path, *, over_damage: bool) -> None:
    with closing(read_video(source, over_damage=over_damage)) as frames:
        if next(frames, None) is None:
            raise MediaError(f"{source}: no frame of the video can be decoded. Export it again.")


def _times(table: PacketTable) -> FrameTimes:
    ticks_T = np.sort(np.asarray(table.ticks, np.int64))
    if (np.diff(ticks_T) <= 0).any():  # stamps that are alike say nothing: spread the frames evenly
        num_ticks = max(table.num_ticks, len(ticks_T))
        ticks_T = ticks_T[0] + np.arange(len(ticks_T)) * num_ticks // len(ticks_T)
        return FrameTimes(
            ticks_T=ticks_T, end_tick=int(ticks_T[0]) + num_ticks, tick_s=table.tick_s
        )
    return FrameTimes(ticks_T=ticks_T, end_tick=table.end_tick, tick_s=table.tick_s)


def _before_damage(times: FrameTimes, decoded: FrameTimes, *, broken: bool) -> FrameTimes:
    """Keep the frames up to the first one that a decoder did not give."""
    num_good = decoded.num_frames
    if decoded.tick_s == times.tick_s:
        given_T = np.isin(times.ticks_T, decoded.ticks_T)
        num_good = len(given_T) if given_T.all() else int(np.argmin(given_T))
    if num_good >= times.num_frames:
        return replace(times, damaged=broken)
    if num_good == 0:
        raise MediaError("the first frame of the video is damaged already. Export it again.")
    end_tick = int(times.ticks_T[num_good])
    return replace(times, ticks_T=times.ticks_T[:num_good], end_tick=end_tick, damaged=True)


def pick_frames(times: FrameTimes, *, fps: float, sample_rate: int | None = None) -> np.ndarray:
    """Choose the frames of a video that a clip shows, one after another.

    Args:
        times: Of the video.
        fps: Frames a second of the clip: at each of its moments the frame is taken that is on
            screen then, so frames are left out or repeated.
        sample_rate: Take every so-manieth frame instead, whatever the time.

    Returns:
        ``numbers_T``: int64, never falling.

    Raises:
        MediaError: If the rate is no positive number.
    """
    if sample_rate is not None:
        return np.arange(0, times.num_frames, sample_rate)
    if not (math.isfinite(fps) and fps > 0):
        raise MediaError(f"fps must be above 0, got {fps}")
    if times.num_frames == 1:
        return np.zeros(1, np.int64)
    # In ticks; a stamp may be rounded by one.
    step = 1 / (Fraction(fps).limit_denominator(100_000) * times.tick_s)
    mean = Fraction(times.end_tick - int(times.ticks_T[0]), times.num_frames)
    slack = max(mean * _CLOSE_ENOUGH, min(Fraction(1), mean / 3))
    count = max(1, math.ceil((times.num_frames * mean - slack) / step))
    wanted_T = [math.floor(number * step + slack) for number in range(count)]
    ticks_T = times.ticks_T - times.ticks_T[0]
    return np.searchsorted(ticks_T, np.asarray(wanted_T, np.int64), side="right") - 1


def read_frames(
    path: str | os.PathLike[str], times: FrameTimes, numbers: Sequence[int] | np.ndarray
) -> Generator[np.ndarray]:
    """Read chosen frames of a video, one after another.

    What lies before the first of them is not decoded where the file's index leads there; that it
    led to the right frame is checked, and a file whose index lies is decoded from its beginning.

    Args:
        path: The file.
        times: Of its frames, from :func:`time_frames`.
        numbers: Of the frames, never falling.

    Yields:
        ``image_YXC``: uint8, one for each number.

    Raises:
        MediaError: If the file is damaged, or holds fewer frames than its packets promise.
    """
    if len(numbers) == 0:
        return
    first, start_s = _way_in(Path(path), times, int(numbers[0]))
    with closing(read_video(path, start_s=start_s, over_damage=times.damaged)) as frames:
        place, frame_YXC = first - 1, None
        for number in numbers:
            while place < number:
                frame_YXC = next(frames, None)
                place += 1
                if frame_YXC is None:
                    raise MediaError(
                        f"{path}: frame {number} of {times.num_frames} cannot be decoded. "
                        "Export the video again."
                    )
            assert frame_YXC is not None
            yield frame_YXC


def _way_in(source: Path, times: FrameTimes, number: int) -> tuple[int, float]:
    """Number of the first frame that is decoded, and the moment to start from."""
    if number < SEEK_FRAMES or times.damaged:
        return 0, 0.0
    before, wanted = (int(tick) for tick in times.ticks_T[number - 1 : number + 1])
    start_s = float(Fraction(before + wanted, 2) * times.tick_s)
    if start_s <= 0:
        return 0, 0.0
    try:
        table = tabulate(source, seek_to(start_s), *EVERY_FRAME, ("-frames:v", "1"))
    except MediaError:
        logger.warning("%s: no way into the middle of the file", source)
        return 0, 0.0
    off = table.ticks[0] * table.tick_s + Fraction(start_s) - wanted * times.tick_s
    if abs(off) > Fraction(wanted - before, 4) * times.tick_s:
        logger.warning("%s: its index leads %.3f s off; reading from the start", source, off)
        return 0, 0.0
    return number, start_s
