"""Where given and generated frames stand in a video, and how a window shows them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from musev.denoise.places import FramePlaces, places_of
from musev.errors import RequestError


def test_conditioning_frames_in_front_shift_the_generated_ones() -> None:
    """The usual case: every window has the given frames in front of it."""
    places = places_of(2, (), 10)
    assert [places.of(frame) for frame in range(3)] == [2, 3, 4]
    assert places.join((4, 5, 6)) == ((0, 1), (0, 1, 6, 7, 8))


def test_a_frame_at_the_end_stands_behind_every_window() -> None:
    """First and last frame given: what lies between them is generated."""
    places = places_of(2, (0, -1), 10)
    assert [places.of(frame) for frame in (0, 7)] == [1, 8]
    assert places.join((0, 1, 2)) == ((0, 4), (0, 1, 2, 3, 9))


def test_a_frame_in_the_middle_stands_among_its_neighbours() -> None:
    """It is skipped by the generated frames and seen at its own place."""
    places = places_of(1, (3,), 6)
    assert [places.of(frame) for frame in range(5)] == [0, 1, 2, 4, 5]
    assert places.join((1, 2, 3)) == ((2,), (1, 2, 3, 4))


def test_a_later_shot_goes_on_from_the_frame_before_it() -> None:
    """Carried frames lie before the shot and take none of its places."""
    places = FramePlaces(given=(11,), first=12)
    assert [places.of(frame) for frame in range(3)] == [12, 13, 14]
    assert places.join((0, 1)) == ((0,), (11, 12, 13))


def test_windows_that_wrap_around_keep_their_order() -> None:
    """The original's closed loop: the end of a window is the beginning of the clip."""
    assert FramePlaces((0,)).join((8, 9, 0, 1)) == ((0,), (0, 9, 10, 1, 2))


@given(st.sets(st.integers(0, 19), max_size=6))
def test_given_and_generated_frames_fill_the_video(chosen: set[int]) -> None:
    """Every frame of the video is one or the other, once."""
    places = FramePlaces(tuple(sorted(chosen)))
    generated = [places.of(frame) for frame in range(20 - len(chosen))]
    assert sorted([*generated, *chosen]) == list(range(20))
    assert generated == sorted(generated)


@pytest.mark.parametrize(
    ("index", "remedy"),
    [((0,), "one number an image"), ((0, 0), "different"), ((5, 2), "ascending"), ((0, 9), "0 to")],
)
def test_places_that_cannot_be(index: tuple[int, ...], remedy: str) -> None:
    """Too few, twice the same, out of order, outside."""
    with pytest.raises(RequestError, match=remedy):
        places_of(2, index, 9)
