"""The original's predictors, whole runs: first frames, shots that carry on, driving videos.

The detector of the recorded runs was replaced by inverting colours. Bounds as in
``test_render_parity``.
"""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np
import pytest
import torch

from musev.conditions import ClipMedia, fit_media
from musev.config import (
    ClipRequest,
    FirstFrameConfig,
    GuidanceConfig,
    SamplingConfig,
    ShotConfig,
    WindowConfig,
)
from musev.control.clip_control import ClipControl, EmbeddedFrames
from musev.denoise.smoothing import LATENT_STEPS
from musev.media import fit_image
from musev.models.bundle import ModelBundle
from musev.render import decode_segments, first_picture
from musev.shots import Shot, denoise_shots
from tests.adapter_goldens import recorded_finder, with_adapters
from tests.goldens import GOLDENS, have_goldens, pipeline_case, require_goldens
from tests.musev.test_render_parity import (
    SOLVERS,
    bundle_for,
    close,
    controlnets,
    frames_of,
)

pytestmark = pytest.mark.parity

# What the original cannot do and we can; other tests cover them.
WITHOUT_NUMBERS = (
    "pred_t2v_ncond2_moving_ref_reference_fails",
    "pred_v2v_multi_middle_reference_fails",
)
LEVEL = 1 / 255


def cases() -> list[Any]:
    """Names of the recorded predictor runs."""
    if not have_goldens():
        return [pytest.param("missing")]
    names = []
    for path in sorted((GOLDENS / "pipeline" / "cases").glob("pred_*.json")):
        if path.stem not in WITHOUT_NUMBERS:
            names.append(path.stem)
    return names


def request_for(case: dict[str, Any], recorded: dict[str, Any]) -> ClipRequest:
    """Our request for a recorded run."""
    call, v2v = case["call"], case["level"] == "predictor_v2v"
    fixed = {
        ours: call.get(theirs, default)
        for ours, theirs, default in (
            ("fixed_condition", "fix_condition_images", False),
            ("fixed_reference", "fixed_refer_image", True),
            ("fixed_image_prompt", "fixed_ip_adapter_image", True),
            ("fixed_face", "fixed_refer_face_image", True),
            ("smooth_latents", "record_mid_video_latents", False),
            ("smooth_estimates", "record_mid_video_noises", False),
        )
    }
    has_condition = call.get("n_vision_condition", 1) > 0
    sampling = SamplingConfig(
        solver=SOLVERS[case["scheduler"]],  # pyright: ignore[reportArgumentType]
        num_steps=call["video_num_inference_steps"],
        windows=WindowConfig(
            num_frames=call["context_frames"], overlap=call["context_overlap"], layout="upstream"
        ),
        guidance=GuidanceConfig(scale=call["video_guidance_scale"]),
        first_frame=FirstFrameConfig(
            origin="drawn" if has_condition else "noise",
            num_steps=call["num_inference_steps"],
            guidance=GuidanceConfig(scale=call["guidance_scale"]),
            negative_prompt=call["negative_prompt"],
            becomes_reference=v2v,
        ),
        shots=ShotConfig(
            num_frames=call["time_size" if v2v else "video_length"],
            carried_frames=1 if v2v else None,
            smoothed_frames=call["video_overlap"] if "video_overlap" in call else 0,
            **fixed,
        ),
        noise="upstream_video_fusion",
        motion_speed=float(call.get("reader_sample_rate", 1)) if v2v else 8.0,
        histogram_match=call.get("need_hist_match", False),
        strength_counts=False,
        ip_adapter_face_scale=call.get("ip_adapter_face_scale", 1.0),
        image_fit="upstream",
    )
    if "motion_speed" in call:
        sampling = dataclasses.replace(sampling, motion_speed=call["motion_speed"])
    return ClipRequest(
        request_id=case["name"],
        prompt=call["prompt"],
        negative_prompt=call["video_negative_prompt"],
        num_frames=case["result"]["result_shapes"]["videos"][2],
        fps=8,
        width=call["width"],
        height=call["height"],
        seed=case["generator_seed"],
        profile="parity",
        sampling=sampling,
        redraw=call.get("redraw_condition_image", False),
        video="recorded" if v2v else None,
        start_from_video=call.get("need_video2video", False),
        condition_has_own_map=v2v and not call.get("video_has_condition", True),
    )


def media_of(request: ClipRequest, recorded: dict[str, Any]) -> ClipMedia:
    """The recorded pictures, fitted; none where the run was told to use no condition."""
    media = ClipMedia(
        condition_image=frames_of(recorded, "condition_images"),
        reference_image=frames_of(recorded, "refer_image"),
        ip_adapter_image=frames_of(recorded, "ip_adapter_image"),
        face_image=frames_of(recorded, "refer_face_image"),
    )
    if request.sampling.first_frame.origin == "noise":
        media = dataclasses.replace(media, condition_image=None)
    return fit_media(request, media)


class Driving:
    """The recorded driving video, and the maps that were made of it."""

    def __init__(
        self, case: dict[str, Any], recorded: dict[str, Any], request: ClipRequest
    ) -> None:
        self._frames_TYXC = recorded["in.video"].permute(1, 2, 3, 0).contiguous().numpy()
        self._request = request
        self._middle = case["call"].get("video_is_middle", False)
        self._own = frames_of(recorded, "condition_images")

    def read(self, frame: int) -> np.ndarray:
        """Frame of the finished video to the driving video's."""
        # The original drops one frame of the first chunk, however many conditions it was given.
        extra = 0 if self._own is None else self._own.shape[0] - 1
        place = frame - self._request.condition_has_own_map - extra
        return fit_image(
            self._frames_TYXC[place],
            width=self._request.width,
            height=self._request.height,
            exact_upstream=True,
            resampling="bilinear",
        )

    def map(self, frame: int) -> np.ndarray:
        """Control map of a frame of the finished video."""
        if self._request.condition_has_own_map and frame == 0:
            assert self._own is not None
            size = {"width": self._request.width, "height": self._request.height}
            return 255 - fit_image(self._own[0], exact_upstream=True, **size)
        image_YXC = self.read(frame)
        return image_YXC if self._middle else 255 - image_YXC

    def control(self, kind: str) -> ClipControl:
        """The clip's control."""
        nets = controlnets(kind)
        embedded = [EmbeddedFrames(net, self.map) for net in nets]
        return ClipControl(nets, embedded, lambda _timestep: (1.0,) * len(nets))


def bundle_of(case: dict[str, Any], recorded: dict[str, Any]) -> ModelBundle:
    """Networks of a recorded run."""
    parts = case["components"]
    bundle = bundle_for(
        case["unet"],
        referencenet=bool(parts.get("referencenet")),
        ip_adapter=bool(parts.get("ip_adapter")),
        zero_snr="zero_snr" in case["scheduler"],
    )
    return dataclasses.replace(with_adapters(bundle, case), face_finder=recorded_finder(recorded))


@pytest.mark.parametrize("name", cases())
def test_pipeline_predictor_run(name: str) -> None:
    """Every step of every shot, and the frames of the finished video, equal the original's."""
    require_goldens()
    case, recorded = pipeline_case(name)
    bundle, request = bundle_of(case, recorded), request_for(case, recorded)
    driving = Driving(case, recorded, request) if "in.video" in recorded else None
    kind = case["components"].get("controlnet")
    control = driving.control(kind) if driving is not None and kind else None
    calls = case["result"]["calls"]
    before = sum(bool(call["call"]["skip_temporal_layer"]) for call in calls)
    bound, smoothed = tolerance(name), request.sampling.shots.smoothed_frames
    steps: dict[int, list[torch.Tensor]] = {}

    def on_step(shot: Shot, _step: int, latents: torch.Tensor) -> None:
        steps.setdefault(shot.number, []).append(latents)

    with torch.inference_mode():
        latents = denoise_shots(
            bundle,
            request,
            media_of(request, recorded),
            control,
            source=None if driving is None else driving.read,
            on_step=on_step,
        )
        for number, shot_steps in steps.items():
            theirs = recorded[f"c{before + number}.step_latents"]
            ours = torch.stack(shot_steps)
            if number:
                # Recorded between the solver's step and the mixing with the shot before.
                mixed = (slice(0, LATENT_STEPS), ..., slice(0, smoothed), slice(None), slice(None))
                ours[mixed] = theirs[mixed]
            close(f"shot {number}", ours, theirs, bound)
        assert len(steps) == len(calls) - before
        match_YXC = first_picture(bundle, request, latents)
        segments = decode_segments(bundle, latents, 7, match_YXC=match_YXC)
        frames_TYXC = np.concatenate(list(segments))
    assert len(frames_TYXC) == request.num_frames
    for ours_YXC, which in ((frames_TYXC[0], "first"), (frames_TYXC[-1], "last")):
        theirs = recorded[f"result.video_{which}"][0].permute(1, 2, 0).float().numpy()
        assert np.abs(ours_YXC / 255 - theirs).max() <= LEVEL + bound, which
    means = recorded["result.video_frame_means"][0].numpy()
    assert np.abs(frames_TYXC.mean(axis=(1, 2, 3)) / 255 - means).max() <= LEVEL + bound


def tolerance(name: str) -> float:
    """The run's own bound where the goldens state one, else the README's."""
    stated = json.loads((GOLDENS / "pipeline" / "sensitivity.json").read_text())["tolerance"]
    return max(stated.get(name, {}).values(), default=2e-3)
