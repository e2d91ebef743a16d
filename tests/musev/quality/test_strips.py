"""Strips show the frames they claim to show."""

from __future__ import annotations

import numpy as np

from musev.config import SamplingConfig, WindowConfig
from musev.quality.seams import last_step_windows
from musev.quality.strips import frame_strip, seam_strip
from tests.musev.quality.controls import frames, grainy, stepped

TILES = SamplingConfig(windows=WindowConfig(num_frames=12, overlap=0))


def test_the_worst_seam_is_shown_with_its_frames_and_a_hotter_difference() -> None:
    clip = grainy(frames(1, 48), 3)
    clip[24:] = stepped(clip[24:], (), 0)
    clip[24:] = np.clip(clip[24:] + np.array([30, -20, 20]), 0, 255)
    strip = seam_strip(clip, last_step_windows(48, TILES), max_seams=1)
    assert strip is not None
    assert strip.shape == (128, 6 * 128 + 5 * 4, 3)
    places = [slice(132 * n, 132 * n + 128) for n in range(6)]
    for place, number in zip(places, (22, 23, 24, 25), strict=False):
        assert np.array_equal(strip[:, place], clip[number])
    assert (strip[:, 2 * 132 - 4 : 2 * 132] == (216, 60, 50)).all()
    across, before = (strip[:, place].mean() for place in places[4:])
    assert across > 2 * before


def test_rows_are_at_most_as_many_as_asked_for_and_shrunk() -> None:
    strip = seam_strip(frames(0, 96), last_step_windows(96, TILES), max_seams=3, side_px=64)
    assert strip is not None
    assert strip.shape[0] == 3 * 64 + 2 * 4
    assert seam_strip(frames(0, 12), last_step_windows(12, TILES)) is None


def test_frames_of_a_strip_are_first_to_last() -> None:
    clip = frames(0, 24)
    strip = frame_strip(clip, count=4)
    assert strip.shape == (128, 4 * 128 + 3 * 4, 3)
    assert np.array_equal(strip[:, :128], clip[0])
    assert np.array_equal(strip[:, -128:], clip[-1])
    assert frame_strip(clip[:, :64], count=2, side_px=32).shape == (16, 2 * 32 + 4, 3)
