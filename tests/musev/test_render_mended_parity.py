"""Recorded calls in which the original raises: here they work, and give what they should.

Where the goldens state no numbers the result is held against one that must agree with it.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from musev.conditions import ClipMedia, encode_conditions
from musev.config import ClipRequest, GuidanceConfig
from musev.control.clip_control import ClipControl, EmbeddedFrames
from musev.models.bundle import ModelBundle
from musev.render import decode_segments, denoise_request, first_picture, make_denoiser
from musev.shots import denoise_shots
from tests.goldens import pipeline_case, require_goldens
from tests.musev import test_shots_parity as predictor
from tests.musev.test_render_parity import bundle_for, controlnets, frames_of, request_for

pytestmark = pytest.mark.parity

Recorded = dict[str, torch.Tensor]


def opened(name: str) -> tuple[ModelBundle, ClipRequest, ClipMedia, Recorded, dict[str, Any]]:
    """Networks, request and pictures of a recorded call."""
    require_goldens()
    case, recorded = pipeline_case(name)
    parts = case["components"]
    bundle = bundle_for(
        case["unet"],
        referencenet=bool(parts.get("referencenet")),
        ip_adapter=bool(parts.get("ip_adapter")),
        zero_snr=False,
    )
    media = ClipMedia(
        condition_image=frames_of(recorded, "condition_images"),
        reference_image=frames_of(recorded, "refer_image"),
        ip_adapter_image=frames_of(recorded, "ip_adapter_image"),
    )
    num_given = 0 if media.condition_image is None else len(media.condition_image)
    return bundle, request_for(case, num_given), media, recorded, case


def latents_of(
    bundle: ModelBundle,
    request: ClipRequest,
    media: ClipMedia,
    control: ClipControl | None = None,
) -> torch.Tensor:
    """Latents of a clip."""
    with torch.inference_mode():
        conditions = encode_conditions(bundle, request, media)
        return denoise_request(bundle, request, conditions, control)


def guided_by(request: ClipRequest, scale: float) -> ClipRequest:
    """The same request with another guidance scale."""
    sampling = dataclasses.replace(request.sampling, guidance=GuidanceConfig(scale=scale))
    return dataclasses.replace(request, sampling=sampling)


def test_pipeline_nocfg_cond_reference_fails() -> None:
    """Without guidance a clip follows its condition image; scale 1 is the limit of guidance."""
    bundle, request, media, _, _ = opened("nocfg_cond_reference_fails")
    assert not request.sampling.guidance.active
    found = latents_of(bundle, request, media)
    nearly = latents_of(bundle, guided_by(request, 1.000001), media)
    assert (found - nearly).abs().max() < 2e-3
    assert (found - latents_of(bundle, guided_by(request, 3.5), media)).abs().max() > 0.1


def test_pipeline_output_type_tensor_reference_fails() -> None:
    """Frames come out whatever they are wanted as."""
    bundle, request, media, _, _ = opened("output_type_tensor_reference_fails")
    latents = latents_of(bundle, request, media)
    frames_TYXC = np.concatenate(list(decode_segments(bundle, latents, 2)))
    assert frames_TYXC.shape == (request.num_frames, request.height, request.width, 3)
    assert frames_TYXC.std() > 0


def test_pipeline_parallel_b2_nocond_reference_fails() -> None:
    """Windows that are computed together give what they give one after the other."""
    bundle, request, media, _, case = opened("parallel_b2_nocond_reference_fails")
    assert case["call"]["context_batch_size"] == 2
    with torch.inference_mode():
        conditions = encode_conditions(bundle, request, media)
        denoiser = make_denoiser(bundle, request, conditions, None)
        torch.manual_seed(0)
        windows = [torch.randn(1, 4, 8, 8, 12) for _ in range(2)]
        frames = tuple(range(8))
        apart = [denoiser(noisy, 400.0, frames) for noisy in windows]
        again = [denoiser(noisy, 400.0, frames) for noisy in windows[::-1]][::-1]
    assert all(torch.equal(one, other) for one, other in zip(apart, again, strict=True))
    found = latents_of(bundle, request, media)
    assert found.shape[2] == 20
    assert torch.isfinite(found).all()


def test_pipeline_hist_match_reference_fails() -> None:
    """Frames get the colours of frame 0."""
    bundle, request, media, _, _ = opened("pipeline_hist_match_reference_fails")
    sampling = dataclasses.replace(request.sampling, histogram_match=True)
    request = dataclasses.replace(request, sampling=sampling)
    latents = latents_of(bundle, request, media)
    match_YXC = first_picture(bundle, request, latents)
    assert match_YXC is not None
    plain = np.concatenate(list(decode_segments(bundle, latents, 4)))
    matched = np.concatenate(list(decode_segments(bundle, latents, 4, match_YXC=match_YXC)))

    def away(frames_TYXC: np.ndarray) -> float:
        levels = np.sort(frames_TYXC.reshape(len(frames_TYXC), -1, 3).astype(float), axis=1)
        return float(np.abs(levels - levels[0]).mean())

    assert np.array_equal(matched[0], plain[0])
    assert away(matched) < 0.6 * away(plain)


def test_pipeline_ref_2images_reference_fails() -> None:
    """Two references and two image prompts are both seen."""
    bundle, request, media, _, _ = opened("ref_2images_reference_fails")
    found = latents_of(bundle, request, media)
    assert torch.isfinite(found).all()
    for column in ("reference_image", "ip_adapter_image"):
        one = dataclasses.replace(media, **{column: getattr(media, column)[:1]})
        assert (latents_of(bundle, request, one) - found).abs().max() > 1e-3, column


def test_pipeline_too_long_prompt_reference_fails() -> None:
    """Words beyond the 225th token count."""
    bundle, request, media, _, _ = opened("too_long_prompt_reference_fails")
    with torch.inference_mode():
        text_BLD = encode_conditions(bundle, request, media).text_BLD
    assert text_BLD.shape[1] > 3 * 77
    assert text_BLD.shape[1] % 77 == 0
    found = latents_of(bundle, request, media)
    other = dataclasses.replace(request, prompt=request.prompt + " blue")
    assert not torch.equal(latents_of(bundle, other, media), found)


def test_pipeline_controlnet_guess_reference_fails() -> None:
    """Control works on the conditional half alone, also where halves are computed apart."""
    bundle, request, media, recorded, _ = opened("controlnet_guess_reference_fails")
    maps = frames_of(recorded, "control_image")
    assert maps is not None
    nets = controlnets("single")

    def control(scale: float, *, guess: bool) -> ClipControl:
        embedded = [EmbeddedFrames(nets[0], maps.__getitem__)]
        return ClipControl(nets, embedded, lambda _timestep: (scale,), guess=guess)

    guessed, plain, none = (
        latents_of(bundle, request, media, each)
        for each in (control(1.0, guess=True), control(1.0, guess=False), None)
    )
    assert (guessed - plain).abs().max() > 1e-3
    assert (guessed - none).abs().max() > 1e-3
    with torch.inference_mode():
        conditions = encode_conditions(bundle, request, media)
        denoiser = make_denoiser(bundle, request, conditions, control(1.0, guess=True))
        torch.manual_seed(0)
        noisy, frames = torch.randn(1, 4, 7, 8, 12), tuple(range(7))
        together = denoiser(noisy, 400.0, frames)
        denoiser.in_halves = True
        apart = denoiser(noisy, 400.0, frames)
        bare = make_denoiser(bundle, request, conditions, None)(noisy, 400.0, frames)
    assert (together - apart).abs().max() < 1e-4
    assert (together[0] - bare[0]).abs().max() < 1e-5, "nothing for the unconditional half"
    assert (together[1] - bare[1]).abs().max() > 1e-3


def test_pipeline_pred_t2v_ncond2_moving_ref_reference_fails() -> None:
    """Later shots refer to both carried frames."""
    require_goldens()
    case, recorded = pipeline_case("pred_t2v_ncond2_moving_ref_reference_fails")
    case["result"]["result_shapes"] = {"videos": [1, 3, 2 + 2 * 6, 64, 64]}
    request = predictor.request_for(case, recorded)
    bundle = predictor.bundle_of(case, recorded)
    with torch.inference_mode():
        found = denoise_shots(bundle, request, predictor.media_of(request, recorded))
    assert found.shape[2] == 14
    assert torch.isfinite(found).all()


def test_pipeline_pred_v2v_multi_middle_reference_fails() -> None:
    """Two ControlNets read the same control video: their residuals are added."""
    require_goldens()
    case, recorded = pipeline_case("pred_v2v_multi_middle_reference_fails")
    case["result"]["result_shapes"] = {"videos": [1, 3, 5, 64, 96]}
    request = predictor.request_for(case, recorded)
    bundle = predictor.bundle_of(case, recorded)
    driving = predictor.Driving(case, recorded, request)
    media = predictor.media_of(request, recorded)
    with torch.inference_mode():
        both, one = (
            denoise_shots(bundle, request, media, driving.control(kind))
            for kind in ("multi", "single")
        )
    assert both.shape[2] == 5
    assert torch.isfinite(both).all()
    assert (both - one).abs().max() > 1e-3
