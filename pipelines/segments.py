"""Which segments of a long video can be encoded, are being encoded, are stored."""

from __future__ import annotations

import math
from collections.abc import Iterable

from musev.clip_front import ClipFacts
from musev.denoise.wavefront import Wavefront


class Segments:
    """The segments of one video, as numbers.

    Generated frames count from the first one that is denoised, so frames that are
    given have numbers below 0.

    Args:
        num_frames: Of the video.
        segment_frames: Of one segment.
        facts: Tell how many frames are given.
    """

    def __init__(self, num_frames: int, segment_frames: int, facts: ClipFacts) -> None:
        self.count = math.ceil(num_frames / segment_frames)
        self._num_frames = num_frames
        self._size = segment_frames
        self._num_given = facts.num_given
        self._missing = [
            max(0, stop - max(first, 0))
            for first, stop in (self.generated(number) for number in range(self.count))
        ]
        self._waiting = [number for number in range(self.count) if not self._missing[number]]
        self._stored: set[int] = set()

    @property
    def num_waiting(self) -> int:
        """Segments that could be encoded now."""
        return len(self._waiting)

    @property
    def num_stored(self) -> int:
        """Segments that lie in storage."""
        return len(self._stored)

    @property
    def finished(self) -> bool:
        """Whether all segments lie in storage."""
        return len(self._stored) == self.count

    def generated(self, number: int) -> tuple[int, int]:
        """Range of a segment's frames; negative ones are given."""
        first = number * self._size
        return first - self._num_given, min(first + self._size, self._num_frames) - self._num_given

    def start(self, front: Wavefront) -> None:
        """Take over what a checkpoint says: frames that are done, and those that are gone.

        A segment that is stored but whose frames the checkpoint still holds is written again: the
        bytes are the same, and one rule is enough.
        """
        clean = front.done_ranges()
        done = [frame for first, stop in clean for frame in range(first, stop)]
        held = set(done)
        for number in range(self.count):
            first, stop = self.generated(number)
            frames = range(max(first, 0), stop)
            reached = [front.step_of(frame) == front.num_steps for frame in frames]
            if frames and all(reached) and not held & set(frames):
                self._stored.add(number)
                self._missing[number] = -1
        self.complete(done)

    def complete(self, frames: Iterable[int]) -> None:
        """Count frames as done."""
        for frame in frames:
            number = (frame + self._num_given) // self._size
            self._missing[number] -= 1
            if self._missing[number] == 0:
                self._waiting.append(number)

    def take_next(self) -> int | None:
        """Take the segment to encode next; None if none is complete."""
        return self._waiting.pop(0) if self._waiting else None

    def give_back(self, number: int) -> None:
        """Make a segment wait again whose worker was lost or is late, or one after the other."""
        if number not in self._stored and number not in self._waiting:
            self._waiting.insert(0, number)

    def store(self, number: int) -> bool:
        """Count a segment as stored; False if it was already."""
        if number in self._stored:
            return False
        self._stored.add(number)
        if number in self._waiting:
            self._waiting.remove(number)
        return True
