"""Curves: as long as they may be, with gaps where nothing is known."""

from __future__ import annotations

import numpy as np
import pytest

from musev.config import SamplingConfig, WindowConfig
from musev.quality import curves
from musev.quality.clip import Expected
from musev.quality.seams import last_step_windows
from tests.musev.quality.controls import drawn, frames, grainy, stepped, tinted

TILES = SamplingConfig(windows=WindowConfig(num_frames=12, overlap=0))


def test_a_clip_of_unknown_people_has_colours_only() -> None:
    found = curves.curves_of(frames(0, 24), Expected())
    assert set(found) == {"color_drift"}
    assert len(found["color_drift"]) == 24


def test_seams_are_counted_from_the_first_generated_frame() -> None:
    clip = stepped(grainy(frames(1, 37), 3), (13, 25), 15)
    expected = Expected(windows=last_step_windows(36, TILES), given=(0,))
    found = curves.curves_of(clip, expected)
    assert found["borders"] == [12, 24]
    assert len(found["seam_curve"]) == 35
    assert set(np.argsort(found["seam_curve"])[-2:] + 1) == {12, 24}


def test_long_curves_are_means_of_stretches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(curves, "MOST_POINTS", 8)
    clip = tinted(drawn(2, 48).frames_TYXC, 40)
    found = curves.curves_of(
        clip, Expected(attributes={"scene": "beach"}, windows=last_step_windows(48, TILES))
    )
    assert len(found["color_drift"]) == len(found["subject_drift"]) == 8
    assert found["color_drift"] == sorted(found["color_drift"])
    assert "seam_curve" not in found


def test_what_is_not_known_is_none() -> None:
    still = np.repeat(frames(0, 1), 36, axis=0)
    found = curves.curves_of(still, Expected(windows=last_step_windows(36, TILES)))
    assert found["seam_curve"] == [None] * 35
    assert found["color_drift"] == [0.0] * 36
