"""Where the frames of a clip stand in the finished video: given ones, and those that are generated.

The wavefront numbers the generated frames from 0. Control maps, noise and the finished video count
all frames. With conditioning frames in front, as usual, the one is the other minus their number;
with conditioning frames elsewhere, or in a later shot of a video, it is not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from musev.errors import RequestError


@dataclass(frozen=True)
class FramePlaces:
    """The frame number in the video of every conditioning frame and of every generated frame."""

    given: tuple[int, ...] = ()
    """Of each conditioning frame, ascending."""
    first: int = 0
    """No generated frame stands before it; conditioning frames may."""

    def of(self, generated: int) -> int:
        """Return the frame number in the video of a generated frame.

        Args:
            generated: Its number among the generated ones.

        Returns:
            The number: conditioning frames on the way are skipped.
        """
        place = self.first + generated
        for given in self.given:
            if self.first <= given <= place:
                place += 1
        return place

    def join(self, window: Sequence[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Order a window's frames and all conditioning frames as the network sees them.

        A conditioning frame stands before the first frame of the window that comes after it in the
        video: in front of all windows if it is the video's first, behind all if it is the last.

        Args:
            window: Numbers among the generated frames, in any order.

        Returns:
            Positions of the conditioning frames in the joint order, and the frame number in the
            video of every frame of the joint order.
        """
        joint = [(self.of(frame), False) for frame in window]
        for given in self.given:
            behind = (n for n, (place, fixed) in enumerate(joint) if not fixed and place > given)
            joint.insert(next(behind, len(joint)), (given, True))
        return (
            tuple(n for n, (_, fixed) in enumerate(joint) if fixed),
            tuple(place for place, _ in joint),
        )


def places_of(num_given: int, index: Sequence[int], num_frames: int) -> FramePlaces:
    """Place conditioning frames where a request wants them.

    Args:
        num_given: Conditioning frames.
        index: Frame number of each, ascending, negative ones from the end; empty for the front.
        num_frames: Of the finished video.

    Returns:
        The places.

    Raises:
        RequestError: If there are not as many numbers as frames, or two meet, or one lies outside.
    """
    if not index:
        return FramePlaces(tuple(range(num_given)))
    places = [frame + num_frames if frame < 0 else frame for frame in index]
    if len(places) != num_given:
        raise RequestError(
            f"condition_index has {len(places)} numbers for {num_given} condition images. Give one "
            "number an image, or leave it null for the first frames."
        )
    if places != sorted(set(places)) or not all(0 <= place < num_frames for place in places):
        raise RequestError(
            f"condition_index {list(index)} must name different frames of 0 to {num_frames - 1} in "
            "ascending order. Give every condition image a frame of its own; -1 is the last one."
        )
    return FramePlaces(tuple(places))
