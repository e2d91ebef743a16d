"""Drift: none in drawn clips, the right amount in tinted ones."""

from __future__ import annotations

import numpy as np
import pytest

from musev.quality.drift import (
    color_drift,
    drift_slope,
    sharpness_slope,
    slope_of,
    subject_drift,
    subject_drift_slope,
)
from musev.quality.fidelity import to_lab
from musev.quality.pose import find_people
from tests.musev.quality.controls import blurred, clip_of, frames, tinted


def test_a_slope_is_that_of_a_line_whatever_a_few_frames_do() -> None:
    line = 0.02 * np.arange(300)
    assert slope_of(line).value == pytest.approx(2.0)
    wild = line.copy()
    wild[::9] += 50
    assert slope_of(wild).value == pytest.approx(2.0, rel=0.1)
    holes = line.copy()
    holes[10:200] = np.nan
    assert slope_of(holes).value == pytest.approx(2.0)
    assert not slope_of(line[:20]).known


def test_drawn_clips_do_not_drift() -> None:
    for index in range(8):
        clip = frames(index, 96)
        assert abs(drift_slope(clip).value) < 1
        assert abs(sharpness_slope(clip).value) < 0.6
        assert color_drift(clip).max() < 2


def test_a_tint_that_grows_is_measured() -> None:
    """The slope is near the colour distance between first and last frame of a still picture."""
    clip = clip_of("standing", 96).frames_TYXC
    spoiled = tinted(clip, 30)
    calm = np.linalg.norm(to_lab(spoiled[-1]) - to_lab(clip[-1]), axis=-1)
    assert drift_slope(spoiled).value == pytest.approx(100 / 96 * np.median(calm), rel=0.4)
    assert drift_slope(spoiled).value > 5
    curve = color_drift(spoiled)
    assert curve[90:].mean() > curve[45:55].mean() > curve[8:16].mean()


def test_a_person_who_changes_clothes_drifts_and_the_scene_does_not() -> None:
    clip = clip_of("waving", 48, framing="half")
    share_T = np.linspace(0, 0.6, 48)[:, None, None, None]
    person_TYX1 = (clip.mask_TYX > 0)[..., None]
    grey = clip.frames_TYXC.mean(axis=-1, keepdims=True)
    faded = np.where(
        person_TYX1, clip.frames_TYXC * (1 - share_T) + grey * share_T, clip.frames_TYXC
    ).astype(np.uint8)
    before = subject_drift_slope(clip.frames_TYXC, find_people(clip.frames_TYXC)).value
    found = find_people(faded)
    assert abs(before) < 2
    assert subject_drift_slope(faded, found).value > before + 8
    assert abs(drift_slope(faded).value) < 1
    assert subject_drift(faded, found)[-1] > 8


def test_a_blur_that_grows_is_measured() -> None:
    clip = frames(1, 48)
    softer = np.concatenate([blurred(clip[t : t + 1], 0.3 + t / 48) for t in range(48)])
    assert sharpness_slope(softer).value < -2


def test_nobody_to_be_seen_is_nan() -> None:
    empty = np.full((4, 128, 128, 3), 128, np.uint8)
    found = find_people(empty)
    found.parts_TPYX[:] = 0
    assert np.isnan(subject_drift(empty, found)).all()
