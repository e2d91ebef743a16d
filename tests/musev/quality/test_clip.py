"""All judges of a clip in one call, each with the one damage it is there for."""

from __future__ import annotations

import math

import numpy as np
import pytest

from musev.config import SamplingConfig, WindowConfig
from musev.errors import ShapeError
from musev.quality.clip import ALWAYS, Expected, judge_clip, score_clip
from musev.quality.seams import last_step_windows
from tests.musev.quality.controls import blurred, drawn, flickering, frames, stepped, tinted

TILES = SamplingConfig(windows=WindowConfig(num_frames=12, overlap=0))


def everything(index: int, num_frames: int = 48) -> Expected:
    clip = drawn(index, num_frames)
    attributes = {
        name: getattr(clip.attributes, name) for name in ("scene", "shirt_color", "action")
    }
    return Expected(
        attributes=attributes,
        points_TJ2=clip.points_TJ2,
        visible_TJ=clip.visible_TJ,
        reference_YXC=clip.reference_YXC,
        condition_YXC=clip.frames_TYXC[0],
        truth_TYXC=clip.frames_TYXC,
        windows=last_step_windows(num_frames, TILES),
    )


def test_frames_alone_get_every_judge_that_needs_no_more() -> None:
    scores = judge_clip(frames(0, 48))
    assert set(scores) == set(ALWAYS)
    assert all(score.known or score.reason for score in scores.values())


def test_the_truth_itself_is_perfect() -> None:
    scores = judge_clip(frames(3, 48), everything(3))
    assert scores["psnr"].value == math.inf
    assert scores["ssim"].value == pytest.approx(1)
    assert scores["first_frame_psnr"].value == math.inf
    for name in ("scene_accuracy", "shirt_color_accuracy", "action_accuracy", "identity"):
        assert scores[name].value == 1, name
    assert scores["pck_0.1"].value > 0.95
    assert abs(scores["subject_drift_slope"].value) < 3
    assert "exactly the truth" in scores["seam_ratio"].reason


def test_every_damage_moves_its_own_judge() -> None:
    clip = frames(3, 48)
    expected = everything(3)
    clean = score_clip(clip, expected)
    tint = score_clip(tinted(clip, 60), expected)
    assert tint["drift_slope"] > clean["drift_slope"] + 10
    assert score_clip(flickering(clip), expected)["flicker"] < clean["flicker"] - 0.02
    assert score_clip(blurred(clip, 1), expected)["sharpness"] < clean["sharpness"] / 4
    steps = stepped(clip, (12, 24, 36), 15)
    assert score_clip(steps, Expected(windows=expected.windows))["seam_ratio"] > 1.5
    assert clean["num_cuts"] == 0
    wrong = Expected(attributes={"scene": "nowhere", "shirt_color": "nothing"})
    scores = score_clip(clip, wrong)
    assert (scores["scene_accuracy"], scores["shirt_color_accuracy"]) == (0, 0)


def test_given_frames_are_no_part_of_any_window() -> None:
    """A clip whose first frame was given: its windows count from the first generated frame."""
    clip = frames(4, 49)
    clip = np.concatenate([clip[:1], stepped(clip[1:], (12, 24, 36), 15)])
    windows = last_step_windows(48, TILES)
    right = score_clip(clip, Expected(windows=windows, given=(0,)))["seam_ratio"]
    assert right > 1.5
    with pytest.raises(ShapeError, match="in no window"):
        score_clip(clip, Expected(windows=windows))


def test_given_frames_are_left_out_wherever_they_stand() -> None:
    clip = frames(4, 6)
    assert np.array_equal(Expected(given=(2, 5)).generated(clip), clip[[0, 1, 3, 4]])
    for given, rest in (((), clip), ((0, 1), clip[2:])):
        in_front = Expected(given=given).generated(clip)
        assert np.array_equal(in_front, rest)
        assert np.shares_memory(in_front, clip)
