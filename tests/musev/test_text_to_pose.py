"""Poses from a prompt by the network that ships: any length and rate, one seed one motion."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from musev.control.drawing import JOINTS
from musev.models.text_to_pose import NUM_FEATURES, PAD, UNKNOWN, TextToPoseNet, load_text_to_pose
from musev.synthetic.clips import DEFAULT_SIZE_PX, draw_joints, plan_clip
from musev.text_to_pose import (
    from_features,
    make_poses,
    sample_window,
    to_features,
    word_numbers,
)
from musev.training.poses import shown_action
from musev.weight_parts import text_to_pose_folder

WRISTS = [JOINTS.index("right_wrist"), JOINTS.index("left_wrist")]


@pytest.fixture(scope="module")
def net() -> TextToPoseNet:
    return load_text_to_pose(text_to_pose_folder("package:drawn-poses"))


def test_features_are_joints_and_back() -> None:
    points_TK3 = np.random.default_rng(0).uniform(-0.4, 1.4, (5, 18, 3)).astype(np.float32)
    points_TK3[..., 2] = points_TK3[..., 2] > 0.5
    features_TF = to_features(points_TK3)
    assert features_TF.shape == (5, NUM_FEATURES)
    assert features_TF.abs().max() <= 4
    np.testing.assert_allclose(from_features(features_TF), points_TK3, atol=1e-6)


def test_words_that_nobody_taught_are_one_word(net: TextToPoseNet) -> None:
    rows = word_numbers(net.config, ["Waving, zyxw!", "waving", "..."]).tolist()
    waving = rows[1][0]
    assert net.config.words[waving - 2] == "waving"
    assert rows == [[waving, UNKNOWN], [waving, PAD], [UNKNOWN, PAD]]


@pytest.mark.parametrize("action", ["squatting", "jumping", "waving", "walking", "turning"])
def test_poses_show_the_action_that_the_prompt_names(net: TextToPoseNet, action: str) -> None:
    """By the judge of actions, which knows nothing of this network; most of twelve seeds."""
    words = {"turning": "turning the head"}.get(action, action)
    prompt = f"a person in a red shirt and blue trousers is {words} on the beach"
    clips = [make_poses(net, prompt, num_frames=12, fps=8.0, seed=seed) for seed in range(12)]
    assert [shown_action(points_TK3) for points_TK3 in clips].count(action) >= 10


def test_hands_wave_as_far_as_drawn_ones(net: TextToPoseNet) -> None:
    prompt = "a person in a red shirt and blue trousers is waving on the beach"
    made = [make_poses(net, prompt, num_frames=13, fps=8.0, seed=seed) for seed in range(12)]
    drawn = []
    for index in range(300):
        if len(drawn) < 12 and plan_clip(900001, index, held_out=True).action == "waving":
            joints = draw_joints(900001, index, held_out=True, num_frames=13)
            drawn.append(joints.points_TJ2 / DEFAULT_SIZE_PX)
    reach, wanted = (
        np.median([np.ptp(clip[:, WRISTS, :2], axis=0).max() for clip in clips])
        for clips in (made, drawn)
    )
    assert 0.6 < reach / wanted < 1.5


def test_a_shorter_clip_is_the_beginning_of_a_longer_one(net: TextToPoseNet) -> None:
    long = make_poses(net, "a person is dancing", num_frames=90, fps=8.0, seed=3)
    short = make_poses(net, "a person is dancing", num_frames=20, fps=8.0, seed=3)
    other = make_poses(net, "a person is dancing", num_frames=20, fps=8.0, seed=4)
    assert long.shape == (90, 18, 3)
    np.testing.assert_array_equal(long[:20], short)
    assert np.abs(other - short).max() > 0.01


def test_a_long_clip_moves_on_without_jumps_and_stays_where_it_is(net: TextToPoseNet) -> None:
    points_TK3 = make_poses(net, "a person is waving", num_frames=400, fps=8.0, seed=1)
    hips_T2 = points_TK3[:, [JOINTS.index("right_hip"), JOINTS.index("left_hip")], :2].mean(axis=1)
    assert np.abs(hips_T2 - hips_T2[0]).max() < 0.1
    steps_T = np.abs(np.diff(points_TK3[:, WRISTS, :2], axis=0)).max(axis=(1, 2))
    joins = np.arange(32, 399, 20) - 1  # from the last frame of a window to the first of the next
    assert steps_T[joins].mean() < 1.2 * steps_T.mean()
    assert steps_T[200:].mean() > 0.7 * steps_T[:200].mean()


def test_another_rate_shows_the_same_motion(net: TextToPoseNet) -> None:
    slow = make_poses(net, "a person is jumping", num_frames=17, fps=8.0, seed=2)
    fast = make_poses(net, "a person is jumping", num_frames=49, fps=24.0, seed=2)
    np.testing.assert_allclose(fast[::3, :, :2], slow[..., :2], atol=1e-5)
    between = (fast[0, :, :2] * 2 + fast[3, :, :2]) / 3
    np.testing.assert_allclose(fast[1, :, :2], between, atol=1e-5)
    assert set(np.unique(fast[..., 2])) <= {0.0, 1.0}


def test_given_frames_come_back_as_they_are(net: TextToPoseNet) -> None:
    words_BL = word_numbers(net.config, ["waving"])
    noise = torch.randn((1, 32, NUM_FEATURES), generator=torch.Generator().manual_seed(0))
    given = torch.randn((1, 12, NUM_FEATURES), generator=torch.Generator().manual_seed(1))
    made = sample_window(net, words_BL, noise, given_BTF=given, first_BF=given[:, 0], num_steps=3)
    assert torch.equal(made[:, :12], given)
    assert made.shape == noise.shape
    assert made.isfinite().all()
