from __future__ import annotations

import itertools

import pytest

from musev.errors import MediaError
from musev.media.resample import count_resampled, resample_frames


def chosen(source_fps: float, fps: float, **rest: float) -> list[int]:
    return list(resample_frames(range(100), source_fps=source_fps, fps=fps, **rest))


def test_the_same_rate_changes_nothing() -> None:
    assert chosen(25, 25) == list(range(100))
    assert chosen(29.97, 29.97) == list(range(100))


@pytest.mark.parametrize(
    ("source_fps", "fps", "first"),
    [
        (24, 8, [0, 3, 6, 9]),
        (30, 8, [0, 3, 7, 11, 15]),
        (8, 16, [0, 0, 1, 1, 2]),
        (24000 / 1001, 8, [0, 3, 6, 9]),
    ],
)
def test_the_frame_on_screen_is_chosen(source_fps: float, fps: float, first: list[int]) -> None:
    assert chosen(source_fps, fps)[: len(first)] == first


def test_every_source_second_gives_as_many_frames_as_wanted() -> None:
    found = chosen(25, 8)
    assert len(found) == 32
    assert [sum(second * 25 <= f < (second + 1) * 25 for f in found) for second in range(4)] == (
        [8] * 4
    )


def test_start_and_length() -> None:
    assert chosen(10, 5, start_s=2.0, num_frames=3) == [20, 22, 24]
    assert chosen(10, 5, start_s=9.5, num_frames=3) == [95, 97, 99]
    assert chosen(10, 5, start_s=50.0) == []
    assert chosen(10, 5, num_frames=0) == []


def test_an_endless_source_is_read_no_further_than_needed() -> None:
    source = itertools.count()
    assert list(resample_frames(source, source_fps=3, fps=1, num_frames=3)) == [0, 3, 6]
    assert next(source) == 7


@pytest.mark.parametrize(
    ("change", "phrase"),
    [
        ({"source_fps": 0.0}, "source_fps"),
        ({"fps": float("nan")}, "fps"),
        ({"start_s": -1.0}, "cannot start"),
    ],
)
def test_useless_numbers_are_refused(change: dict[str, float], phrase: str) -> None:
    with pytest.raises(MediaError, match=phrase):
        list(resample_frames([1], **{"source_fps": 1.0, "fps": 1.0, **change}))


@pytest.mark.parametrize("num_frames", [0, 1, 2, 7, 100])
@pytest.mark.parametrize(("source_fps", "fps"), [(25, 25), (24, 8), (30, 8), (8, 24), (29.97, 7)])
def test_the_count_is_known_without_reading(num_frames: int, source_fps: float, fps: float) -> None:
    frames = resample_frames(range(num_frames), source_fps=source_fps, fps=fps)
    assert count_resampled(num_frames, source_fps=source_fps, fps=fps) == len(list(frames))
