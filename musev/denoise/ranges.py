"""Sets of frames that grow frame by frame and are read as ranges."""

from __future__ import annotations

from collections.abc import Iterable


class FrameRanges:
    """Frames as disjoint ranges [first, stop); adding a frame costs the same for any clip."""

    def __init__(self) -> None:
        self._stop_of: dict[int, int] = {}
        self._first_of: dict[int, int] = {}

    def add(self, frames: Iterable[int]) -> None:
        """Add frames that are not in the set yet."""
        for frame in frames:
            first = self._first_of.pop(frame, frame)
            stop = self._stop_of.pop(frame + 1, frame + 1)
            self._stop_of[first], self._first_of[stop] = stop, first

    def remove(self, first: int, stop: int) -> None:
        """Take a range out.

        Args:
            first: First frame.
            stop: Frame after the last.

        Raises:
            ValueError: If not all its frames are in the set.
        """
        holders = [item for item in self._stop_of.items() if item[0] <= first and stop <= item[1]]
        if not holders or first >= stop:
            raise ValueError(
                f"frames {first} to {stop} are not all there; there are {self.sorted()}"
            )
        (low, high), *_ = holders
        del self._stop_of[low], self._first_of[high]
        for left, right in ((low, first), (stop, high)):
            if left < right:
                self._stop_of[left], self._first_of[right] = right, left

    def sorted(self) -> tuple[tuple[int, int], ...]:
        """List the ranges in order; neighbours are always merged."""
        return tuple(sorted(self._stop_of.items()))
