"""Frames by number: as they came, produced once, however they are asked for."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator

import numpy as np
import pytest

from musev.errors import MediaError
from musev.media.frame_store import FrameStore


def numbered(count: int, asked: list[int], *, side: int = 16) -> Iterator[np.ndarray]:
    for number in range(count):
        asked.append(number)
        yield np.full((side, side + 2, 3), number % 256, np.uint8)


def test_any_order_gives_the_frames_and_each_is_produced_once() -> None:
    asked: list[int] = []
    with FrameStore(numbered(9, asked), name="a video") as store:
        for number in (4, 0, 4, 8, 3, 8, 0):
            frame = store.read(number)
            assert frame.shape == (16, 18, 3)
            assert np.all(frame == number)
    assert asked == list(range(9))


def test_the_stream_is_read_no_further_than_needed_and_stopped() -> None:
    asked: list[int] = []
    frames = numbered(9, asked)
    with FrameStore(frames, name="a video") as store:
        store.read(2)
        assert asked == [0, 1, 2]
    assert next(frames, None) is None


def test_a_stream_that_ends_early_is_named_with_both_numbers() -> None:
    with (
        FrameStore(numbered(3, []), name="dance.mp4") as store,
        pytest.raises(MediaError, match=r"dance\.mp4: frame 5 is needed, .* only 3\. Give a"),
    ):
        store.read(5)


def test_memory_does_not_grow_with_pixels() -> None:
    with FrameStore(numbered(400, [], side=128), name="a video") as store:
        store.read(10)
        tracemalloc.start()
        for number in range(400):
            store.read(number)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak < 8 * 128 * 130 * 3
