"""Guidance halves: what the networks compute together, they compute apart."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from musev.models.attachments import FramePositions, ImagePrompt, PoseFeatures
from musev.models.tiny import make_tiny_bundle
from musev.window_denoiser import CarefulDenoiser, ClipConditions, WindowDenoiser


@torch.inference_mode()
@pytest.mark.parametrize("given", [0, 1])
def test_halves_are_the_two_rows_of_the_whole(given: int) -> None:
    torch.set_num_threads(1)
    unet = make_tiny_bundle(0).unet
    torch.manual_seed(0)
    width = unet.config.cross_attention_dim
    text, tokens = torch.randn(2, 5, width), torch.randn(2, 4, width)
    network = unet.prepare(text, (ImagePrompt(tokens),))
    frames = torch.randn(1, 4, 1, 8, 8) if given else None
    conditions = ClipConditions(network, text, frames, guided=True)
    noisy, window = torch.randn(1, 4, 3, 8, 8), (4, 5, 6)

    def estimate(of: ClipConditions) -> torch.Tensor:
        return WindowDenoiser(unet, of, always=(FramePositions(),))(noisy, 500.0, window)

    whole = estimate(conditions)
    assert whole.shape == (2, 4, 3, 8, 8)
    for index in range(2):
        half = estimate(conditions.half(index))
        assert half.shape == (1, 4, 3, 8, 8)
        torch.testing.assert_close(half[0], whole[index], atol=5e-5, rtol=0)
    assert not torch.allclose(whole[0], whole[1], atol=1e-3)


class GuidesPoses:
    """A control of a pose guider alone: features that are the same for all guidance halves."""

    guess = True

    def __init__(self, features_RCHW: torch.Tensor) -> None:
        self._features_RCHW = features_RCHW

    def residuals(self, *_: object) -> None:
        """No ControlNet is there."""

    def pose_features(self, timestep: float, frames: object, *, batch: int) -> PoseFeatures:
        return PoseFeatures(self._features_RCHW.repeat(batch, 1, 1, 1))


@torch.inference_mode()
def test_a_pose_guider_leads_both_halves_together_and_apart() -> None:
    """Also where ControlNets are left out of the unconditional half (``control_guess``)."""
    torch.set_num_threads(1)
    unet = make_tiny_bundle(0).unet
    torch.manual_seed(0)
    text = torch.randn(2, 5, unet.config.cross_attention_dim)
    conditions = ClipConditions(unet.prepare(text, ()), text, None, guided=True)
    noisy, window = torch.randn(1, 4, 3, 8, 8), (4, 5, 6)
    control: Any = GuidesPoses(torch.randn(3, unet.config.block_out_channels[0], 8, 8))

    def estimate(of: ClipConditions, led: Any) -> torch.Tensor:
        return WindowDenoiser(unet, of, always=(FramePositions(),), control=led)(
            noisy, 500.0, window
        )

    whole, free = estimate(conditions, control), estimate(conditions, None)
    for index in range(2):
        half = estimate(conditions.half(index), control)
        torch.testing.assert_close(half[0], whole[index], atol=5e-5, rtol=0)
        assert not torch.allclose(whole[index], free[index], atol=1e-3)


@torch.inference_mode()
def test_a_half_that_is_told_less_is_what_it_is_without_the_picture() -> None:
    torch.set_num_threads(1)
    unet = make_tiny_bundle(0).unet
    torch.manual_seed(0)
    width = unet.config.cross_attention_dim
    text, tokens = torch.randn(2, 5, width), torch.randn(2, 4, width)
    noisy, window = torch.randn(1, 4, 3, 8, 8), (4, 5, 6)

    def estimate(of: ClipConditions) -> torch.Tensor:
        return CarefulDenoiser(unet, of, always=(FramePositions(),))(noisy, 500.0, window)

    shown = estimate(
        ClipConditions(unet.prepare(text, (ImagePrompt(tokens),)), text, None, guided=True)
    )
    alone = estimate(ClipConditions(unet.prepare(text, ()), text, None, guided=True))
    network = unet.prepare(text[1:], (ImagePrompt(tokens[1:]),))
    bare = unet.prepare(text[:1], ())
    mixed = estimate(ClipConditions(network, text, None, guided=True, bare=bare))
    assert mixed.shape == (2, 4, 3, 8, 8)
    torch.testing.assert_close(mixed[0], alone[0], atol=5e-5, rtol=0)
    torch.testing.assert_close(mixed[1], shown[1], atol=5e-5, rtol=0)
    assert not torch.allclose(alone[0], shown[0], atol=1e-3)
