"""Seams: 1 for drawn clips at any plan, above 1 where steps stand at the plan's borders."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from musev.config import EncoderConfig, SamplingConfig, WindowConfig
from musev.errors import ShapeError
from musev.media import read_video, write_segment
from musev.quality.seams import last_step_windows, seam_curve, seam_ratio, window_borders
from tests.musev.quality.controls import frames, grainy, stepped

TILES = SamplingConfig(windows=WindowConfig(num_frames=12, overlap=0))
OVERLAPS = SamplingConfig(windows=WindowConfig(num_frames=12, overlap=4))


def test_borders_are_where_the_windows_of_a_frame_change() -> None:
    assert window_borders(last_step_windows(36, TILES), 36) == (12, 24)
    assert window_borders(last_step_windows(28, OVERLAPS), 28) == (8, 12, 16, 20)
    assert window_borders(last_step_windows(12, TILES), 12) == ()


def test_rotating_tiles_are_judged_at_the_borders_of_their_own_last_step() -> None:
    windows = WindowConfig(num_frames=12, overlap=4, layout="rotating", settle_steps=0)
    rotating = last_step_windows(48, SamplingConfig(num_steps=6, windows=windows))
    assert window_borders(rotating, 48) != window_borders(last_step_windows(48, TILES), 48)
    settled = WindowConfig(num_frames=12, overlap=4, layout="rotating", settle_steps=2)
    assert last_step_windows(48, SamplingConfig(windows=settled)) == last_step_windows(48, OVERLAPS)


@pytest.mark.parametrize("sampling", [TILES, OVERLAPS])
def test_drawn_clips_have_no_seams_and_steps_at_borders_are_seen(sampling: SamplingConfig) -> None:
    windows = last_step_windows(96, sampling)
    borders = window_borders(windows, 96)
    clean, weak, plain = [], [], []
    for index in range(4):
        truth = frames(index, 96)
        clip = grainy(truth, 3)
        clean.append(seam_ratio(clip, windows).value)
        weak.append(seam_ratio(stepped(clip, borders, 3), windows).value)
        plain.append(seam_ratio(stepped(clip, borders, 12), windows).value)
        assert seam_ratio(stepped(clip, borders, 12), windows, truth).value > 1.5
        assert seam_ratio(clip, windows, truth).value == pytest.approx(1, abs=0.02)
    assert np.mean(clean) == pytest.approx(1, abs=0.05)
    assert np.mean(weak) > 1.1
    assert np.mean(plain) > 1.6


def test_steps_elsewhere_are_no_seams() -> None:
    windows = last_step_windows(96, TILES)
    clip = stepped(grainy(frames(0, 96), 3), (6, 18, 30, 42, 54, 66, 78, 90), 12)
    assert seam_ratio(clip, windows).value < 1


def test_windows_that_stand_still_with_a_jump_at_each_border_have_seams() -> None:
    windows = last_step_windows(48, TILES)
    still = np.repeat(frames(0, 1), 48, axis=0)
    jumping = stepped(still, (12, 24, 36), 3)
    for truth in (None, still):
        assert seam_ratio(jumping, windows, truth).value > 20
        curve = seam_curve(jumping, windows, truth)
        assert set(np.flatnonzero(curve > 20) + 1) == {12, 24, 36}
        assert np.delete(curve, [11, 23, 35]) == pytest.approx(1)


def test_what_an_encoder_does_to_a_still_picture_is_no_change(tmp_path: Path) -> None:
    still = np.repeat(frames(0, 1), 48, axis=0)
    write_segment(tmp_path / "v.mp4", still, fps=8.0, encoder=EncoderConfig())
    encoded = np.stack([*read_video(tmp_path / "v.mp4")])
    assert len(np.unique(encoded, axis=0)) > 1
    assert "do not change" in seam_ratio(encoded, last_step_windows(48, TILES)).reason


def test_the_curve_has_its_peaks_at_the_borders() -> None:
    windows = last_step_windows(48, TILES)
    curve = seam_curve(stepped(grainy(frames(2, 48), 3), (12, 24, 36), 12), windows)
    assert set(np.argsort(curve)[-3:] + 1) == {12, 24, 36}
    away = np.delete(curve, [11, 23, 35])
    assert np.exp(np.log(away).mean()) == pytest.approx(1)


def test_reasons_and_refusals() -> None:
    clip = frames(0, 24)
    assert "one window" in seam_ratio(clip[:12], last_step_windows(12, TILES)).reason
    tiny = SamplingConfig(windows=WindowConfig(num_frames=1, overlap=0))
    assert "nearly every" in seam_ratio(clip, last_step_windows(24, tiny)).reason
    still = np.repeat(clip[:1], 24, axis=0)
    assert "do not change" in seam_ratio(still, last_step_windows(24, TILES)).reason
    assert "exactly" in seam_ratio(clip, last_step_windows(24, TILES), clip).reason
    with pytest.raises(ShapeError):
        seam_ratio(clip, last_step_windows(24, TILES), clip[:12])
