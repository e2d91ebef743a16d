"""Training of text to pose: batches are functions of their seed, and the network learns."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import Tensor

from musev.models.text_to_pose import NUM_JOINTS, PAD, UNKNOWN, TextToPoseNet
from musev.synthetic.captions import ACTION_PHRASES
from musev.synthetic.clips import DEFAULT_SIZE_PX, draw_clip, draw_joints, plan_clip
from musev.text_to_pose import from_features, sample_window, word_numbers
from musev.training import poses
from musev.training.optimizer import OptimizerConfig, make_optimizer, update
from musev.training.poses import (
    ACTION_FRAMES,
    PoseClips,
    PoseCorruptionConfig,
    PoseTraining,
    drawn_words_config,
    right_actions,
    shown_action,
)

CONFIG = drawn_words_config(num_frames=8, num_given=3, width=32, depth=1)
PLAIN = PoseCorruptionConfig(go_on=0.0, drop_text=0.0, unknown_words=0.0, given_noise=0.0)


@pytest.fixture(scope="module")
def clips() -> PoseClips:
    return PoseClips(CONFIG, seed=4, num_clips=12)


def test_every_way_to_name_an_action_tells_and_nothing_else_does() -> None:
    for phrases in ACTION_PHRASES.values():
        assert all(CONFIG.tells(f"a person is {phrase}") for phrase in phrases)
    for prompt in (
        "portrait of a person in a red shirt on the beach",
        "a lighthouse on the left side of a bay",
        "a still lake at dawn",
        "a red car turning into a street",
        "an old clock with two hands",
    ):
        assert not CONFIG.tells(prompt)
    assert CONFIG.tells("A woman is raising her arms")


def test_a_batch_is_a_function_of_its_seed(clips: PoseClips) -> None:
    first, again, other = (
        clips.batch(range(12), PoseCorruptionConfig(), seed=seed) for seed in (1, 1, 2)
    )
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["noise_BTF"], other["noise_BTF"])


def test_joints_are_those_of_the_drawn_clip(clips: PoseClips) -> None:
    batch = clips.batch([5], PLAIN, seed=0)
    drawn = draw_clip(4, 5, num_frames=8)
    points = from_features(batch["clean_BTF"][0])
    shares = torch.from_numpy((drawn.points_TJ2 + 0.5) / DEFAULT_SIZE_PX).clamp(-0.5, 1.5)
    torch.testing.assert_close(torch.from_numpy(points[..., :2]), shares, atol=2e-3, rtol=0)
    assert (points[..., 2][drawn.visible_TJ] == 1).all()
    assert torch.equal(batch["words_BL"], word_numbers(CONFIG, [drawn.caption]))
    assert not batch["is_given_BT"].any()


def test_windows_that_go_on_are_given_their_beginning_and_the_clips_first_frame(
    clips: PoseClips,
) -> None:
    batch = clips.batch([7], dataclasses.replace(PLAIN, go_on=1.0), seed=0)
    assert batch["is_given_BT"].tolist() == [[True] * 3 + [False] * 5]
    assert torch.equal(batch["given_BTF"], batch["clean_BTF"])
    assert torch.equal(batch["first_BF"], clips.features_NTF[[7], 0].float())
    assert not torch.equal(batch["clean_BTF"][:, 0], batch["first_BF"])
    noisy = clips.batch([7], dataclasses.replace(PLAIN, go_on=1.0, given_noise=0.1), seed=0)
    assert 0.05 < (noisy["given_BTF"] - noisy["clean_BTF"]).std() < 0.15


def test_words_are_left_out_and_made_unknown(clips: PoseClips) -> None:
    dropped = clips.batch(range(12), dataclasses.replace(PLAIN, drop_text=1.0), seed=0)["words_BL"]
    assert (dropped[:, 0] == UNKNOWN).all()
    assert (dropped[:, 1:] == PAD).all()
    half = dataclasses.replace(PLAIN, unknown_words=0.5)
    words_BL = clips.batch(range(12), half, seed=0)["words_BL"]
    share = (words_BL == UNKNOWN).sum() / (words_BL != PAD).sum()
    assert 0.5 < share < 0.8  # half of the words, and as many put in


def test_frames_that_are_given_cost_nothing(clips: PoseClips) -> None:
    torch.manual_seed(0)
    module = PoseTraining(TextToPoseNet(CONFIG), PLAIN)
    batch = clips.batch([1, 2], dataclasses.replace(PLAIN, go_on=1.0), seed=0)
    batch["is_given_BT"][:] = True
    assert module(batch)["loss"] == 0


def test_it_learns_and_is_judged_by_its_poses(clips: PoseClips) -> None:
    torch.manual_seed(0)
    module = PoseTraining(TextToPoseNet(CONFIG), PLAIN)
    optimizer = make_optimizer(module, OptimizerConfig(learning_rate=3e-3))
    batch = clips.batch(range(12), PLAIN, seed=0)
    before = float(module(batch)["mse"])
    for _ in range(60):
        update(module, [batch], optimizer, learning_rate=3e-3, max_grad_norm=1.0)
    assert float(module(batch)["mse"]) < before / 4
    with pytest.raises(ValueError, match="12 frames"):  # too short for the judge of actions
        right_actions(module.net, clips, seed=0)


def test_errors_that_could_be_helped_count_more(clips: PoseClips) -> None:
    """At hardly any noise a clip weighs what the bound says, at nothing but noise it weighs one."""
    torch.manual_seed(0)
    module = PoseTraining(TextToPoseNet(CONFIG), dataclasses.replace(PLAIN, speed=0.0))
    batch = clips.batch([1, 2], PLAIN, seed=0)
    for time, weight in ((0.001, PLAIN.most_weight), (1.0, 1.0)):
        batch["times_B"][:] = time
        losses = module(batch)
        torch.testing.assert_close(losses["loss"], weight * losses["mse"], rtol=1e-3, atol=0)


def test_what_hardly_moves_shows_no_action() -> None:
    """A hand held up is no waving one, whatever its place says."""
    index = next(i for i in range(99) if plan_clip(4, i).action == "waving")
    joints = draw_joints(4, index, num_frames=ACTION_FRAMES)
    shares = (joints.points_TJ2 + 0.5) / DEFAULT_SIZE_PX
    drawn_TK3 = np.dstack([shares, joints.facing_TJ])
    assert shown_action(drawn_TK3) == "waving"
    held = shown_action(np.repeat(drawn_TK3[:1], ACTION_FRAMES, axis=0))
    assert held in ("pointing", "standing")


class _Elsewhere:
    """Stands for a tensor on a GPU, which must be fetched before numpy sees it."""

    def __init__(self, tensor: Tensor) -> None:
        self._tensor = tensor

    def cpu(self) -> Tensor:
        return self._tensor


def test_poses_are_judged_wherever_the_network_lies(monkeypatch: pytest.MonkeyPatch) -> None:
    config = drawn_words_config(num_frames=ACTION_FRAMES, num_given=3, width=32, depth=1)
    clips = PoseClips(config, seed=4, num_clips=2)
    net = TextToPoseNet(config).to("meta")

    def sample(_net: TextToPoseNet, words_BL: Tensor, noise_BTF: Tensor) -> _Elsewhere:
        assert {words_BL.device.type, noise_BTF.device.type} == {"meta"}
        return _Elsewhere(torch.zeros(noise_BTF.shape))

    monkeypatch.setattr(poses, "sample_window", sample)
    assert 0 <= right_actions(net, clips, seed=0) <= 1


def test_a_window_is_made_where_its_noise_is() -> None:
    net = TextToPoseNet(CONFIG).to("meta")
    words_BL = torch.ones(2, 3, dtype=torch.int64, device="meta")
    noise_BTF = torch.zeros(2, 8, 3 * NUM_JOINTS, device="meta")
    made = sample_window(net, words_BL, noise_BTF, num_steps=2)
    assert (made.device.type, made.shape) == ("meta", noise_BTF.shape)
