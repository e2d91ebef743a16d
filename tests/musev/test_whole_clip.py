"""Frames denoised here alone have the bits that a wavefront driven from elsewhere gives them."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from musev.conditions import ClipMedia, encode_conditions
from musev.config import ClipRequest, NoiseKind, SamplingConfig, WindowConfig
from musev.models.attachments import FramePositions
from musev.models.tiny import make_tiny_bundle
from musev.render import denoise_request
from musev.whole_clip import denoise_frames


@pytest.mark.parametrize("noise", ["counter", "upstream_video_fusion"])
@pytest.mark.parametrize("started", [False, True])
def test_alone_or_driven_the_bits_are_the_same(noise: NoiseKind, started: bool) -> None:
    """From noise or from a video; and the original's generator stands behind all that was drawn."""
    torch.set_num_threads(1)
    bundle = make_tiny_bundle(0)
    sampling = SamplingConfig(
        num_steps=2, strength=0.5, noise=noise, windows=WindowConfig(num_frames=4, overlap=1)
    )
    request = ClipRequest(
        request_id="r",
        num_frames=7,
        fps=8,
        width=64,
        height=64,
        seed=2,
        profile="p",
        sampling=sampling,
        start_from_video=started,
    )
    pictures = np.random.default_rng(0).integers(0, 256, (7, 64, 64, 3)).astype(np.uint8)
    media = ClipMedia(condition_image=pictures[:1])
    with torch.inference_mode():
        conditions = encode_conditions(bundle, request, media, source=pictures.__getitem__)
        driven = denoise_request(bundle, request, conditions)
        steps: list[int] = []
        alone, state = denoise_frames(
            bundle,
            request,
            conditions,
            None,
            num_frames=6,
            attached=FramePositions(motion_speed=sampling.motion_speed),
            on_step=lambda step, _latents: steps.append(step),
        )
        assert torch.equal(alone, driven[:, :, 1:])
        assert steps == ([0] if started else [0, 1])
        assert (state is None) == (noise == "counter")
        if state is not None:
            later = dataclasses.replace(conditions, noise_state=state)
            other, _ = denoise_frames(
                bundle,
                request,
                later,
                None,
                num_frames=6,
                attached=FramePositions(motion_speed=sampling.motion_speed),
            )
            assert not torch.equal(other, alone), "it goes on, and does not begin again"
