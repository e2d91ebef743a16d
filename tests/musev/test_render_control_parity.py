"""Recorded runs of the original that follow a video of control maps: from the file to the latents.

The original renders such a video in shots; its first shot (``c0``) is what we render as a clip. The
cases of ``test_render_parity`` start later, from control maps that have the clip's size already.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from musev.clip_front import start_latents
from musev.conditions import ClipMedia, encode_conditions, fit_media
from musev.config import ClipRequest, FirstFrameConfig, GuidanceConfig, SamplingConfig, WindowConfig
from musev.control.clip_control import ClipControl, EmbeddedFrames, open_control_frames
from musev.denoise.loop import denoise_clip
from musev.denoise.noise import UpstreamNoise
from musev.denoise.solvers import make_solver
from musev.denoise.sources import UpstreamSource
from musev.media.ffmpeg import input_name, stream_ffmpeg
from musev.models.attachments import FramePositions, TemporalOff
from musev.models.bundle import ModelBundle
from musev.window_denoiser import WindowDenoiser
from tests.goldens import pipeline_case, require_goldens
from tests.musev.test_render_parity import bundle_for, close, controlnets, frames_of

pytestmark = pytest.mark.parity

FPS = 8.0
BOUND = 2e-3


def write_lossless(path: Path, frames_TYXC: np.ndarray) -> None:
    """Write frames so that reading gives the same pixels."""
    height, width = frames_TYXC.shape[1:3]
    arguments = (
        *("-f", "rawvideo", "-pix_fmt", "rgb24", "-video_size", f"{width}x{height}"),
        *("-framerate", str(FPS), "-i", "pipe:0", "-c:v", "ffv1", "-pix_fmt", "bgr0"),
        input_name(path),
    )
    with stream_ffmpeg(arguments, what="writing", feed=True) as process:
        assert process.stdin is not None
        process.stdin.write(frames_TYXC.tobytes())


def request_for(case: dict[str, Any], num_frames: int, *, first_frame: bool) -> ClipRequest:
    """Our request for the original's first call."""
    call = case["call"]
    solver = {"euler": "euler", "ddim": "ddim"}[case["scheduler"]]
    scale = call["guidance_scale" if first_frame else "video_guidance_scale"]
    steps = call["num_inference_steps" if first_frame else "video_num_inference_steps"]
    return ClipRequest(
        request_id=case["name"],
        prompt=call["prompt"],
        negative_prompt=call["negative_prompt" if first_frame else "video_negative_prompt"],
        num_frames=num_frames,
        fps=FPS,
        width=call["width"],
        height=call["height"],
        seed=case["generator_seed"],
        profile="parity",
        sampling=SamplingConfig(
            solver=solver,  # pyright: ignore[reportArgumentType]
            num_steps=steps,
            windows=WindowConfig(layout="upstream"),
            guidance=GuidanceConfig(scale=scale),
            first_frame=FirstFrameConfig(origin="noise"),
            noise="upstream_random" if first_frame else "upstream_video_fusion",
            motion_speed=float(case.get("reader_sample_rate", 1)),
            image_fit="upstream",
        ),
        control=("openpose",),
    )


@contextlib.contextmanager
def control_of(request: ClipRequest, video: Path, *, inverted: bool) -> Iterator[ClipControl]:
    """The recorded control; the original's detector was replaced by inverting colours."""
    (net,) = controlnets("single")
    with open_control_frames(request, video) as store:

        def read(number: int) -> np.ndarray:
            return 255 - store.read(number) if inverted else store.read(number)

        yield ClipControl([net], [EmbeddedFrames(net, read)], lambda _timestep: (1.0,))


def bundle_of(case: dict[str, Any]) -> ModelBundle:
    parts = case["components"]
    return bundle_for(
        case["unet"],
        referencenet=bool(parts.get("referencenet")),
        ip_adapter=bool(parts.get("ip_adapter")),
        zero_snr=False,
    )


@pytest.mark.parametrize(
    ("name", "num_frames", "first_frame"),
    [
        ("pred_v2v_ncond0", 5, False),
        ("pred_v2v_middle_2shots", 5, False),
        ("pred_v2v_rgb_ctl_nocond", 1, True),
    ],
)
def test_the_first_call_of_a_recorded_run(
    tmp_path: Path, name: str, num_frames: int, first_frame: bool
) -> None:
    """No condition frame, a given one, and one that has to be drawn first."""
    require_goldens()
    case, recorded = pipeline_case(name)
    video = tmp_path / "maps.mkv"
    write_lossless(video, recorded["in.video"].permute(1, 2, 3, 0).contiguous().numpy())
    bundle, request = bundle_of(case), request_for(case, num_frames, first_frame=first_frame)
    media = ClipMedia(
        condition_image=frames_of(recorded, "condition_images"),
        reference_image=frames_of(recorded, "refer_image"),
        ip_adapter_image=frames_of(recorded, "ip_adapter_image"),
    )
    with torch.inference_mode(), control_of(request, video, inverted=first_frame) as control:
        conditions = encode_conditions(bundle, request, fit_media(request, media), control)
        given = conditions.frames_BCTHW
        solver = make_solver(request.sampling, bundle.schedule)
        generator = torch.Generator("cpu").manual_seed(request.seed)
        noise = UpstreamNoise(
            generator,
            request.sampling.noise,
            request.sampling.w_ind_noise,  # type: ignore[arg-type]
        )
        source = UpstreamSource(noise)
        shape = tuple(recorded["c0.latents_init"].shape)
        start = start_latents(source, shape, given, solver, request.sampling)
        close("initial", start, recorded["c0.latents_init"], 1e-5 * solver.initial_scale)
        always = TemporalOff() if first_frame else FramePositions(request.sampling.motion_speed)
        steps: list[torch.Tensor] = []
        denoise_clip(
            WindowDenoiser(bundle.unet, conditions, always=(always,), control=control),
            start,
            solver=solver,
            sampling=request.sampling,
            noise=source,
            on_step=lambda _step, latents: steps.append(latents),
        )
    close("steps", torch.stack(steps), recorded["c0.step_latents"], BOUND)


def test_frames_are_cut_and_resized_as_the_original_does(tmp_path: Path) -> None:
    require_goldens()
    case, recorded = pipeline_case("pred_v2v_ncond0")
    video = tmp_path / "maps.mkv"
    write_lossless(video, recorded["in.video"].permute(1, 2, 3, 0).contiguous().numpy())
    with open_control_frames(request_for(case, 5, first_frame=False), video) as store:
        means = [float(store.read(number).mean()) / 255 for number in range(5)]
    theirs = recorded["result.out_condition.frame_means"][0, :5].numpy() / 255
    assert np.abs(np.array(means) - theirs).max() < 2e-5  # rounding once would be 6e-5 off
