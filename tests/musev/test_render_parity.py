"""The original's pipeline, call by call: our verbs must reproduce its latents step by step.

Bundles are put together from the small components of the goldens. Bounds: 2e-3 on latents (5e-2 for
LCM), or the case's own in ``sensitivity.json``; see the README beside the goldens.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from transformers import CLIPTextModel, CLIPTokenizer, CLIPVisionModelWithProjection

from musev.clip_front import start_latents
from musev.conditions import ClipMedia, encode_conditions
from musev.config import (
    ClipRequest,
    FirstFrameConfig,
    GuidanceConfig,
    SamplingConfig,
    ScheduleConfig,
    WindowConfig,
)
from musev.control.clip_control import ClipControl, EmbeddedFrames
from musev.denoise.late_start import start_late
from musev.denoise.loop import denoise_clip
from musev.denoise.noise import UpstreamNoise
from musev.denoise.solvers import make_solver
from musev.denoise.sources import UpstreamSource
from musev.models.attachments import ConditionFrames, FramePositions, TemporalOff
from musev.models.bundle import ModelBundle
from musev.models.control import ControlNet
from musev.models.vae import encode_frames
from musev.render import decode_segments, denoise_request
from musev.window_denoiser import WindowDenoiser, join_frames
from tests.adapter_goldens import load_face_unet, with_adapters
from tests.goldens import GOLDENS, have_goldens, load_tensors, pipeline_case, require_goldens

pytestmark = pytest.mark.parity

COMPONENTS = GOLDENS / "pipeline" / "components"
# What the original cannot do and we can, with no numbers to compare; other tests cover them.
WITHOUT_NUMBERS = {
    "controlnet_guess_reference_fails",
    "nocfg_cond_reference_fails",
    "output_type_tensor_reference_fails",
    "parallel_b2_nocond_reference_fails",
    "pipeline_hist_match_reference_fails",
    "ref_2images_reference_fails",
    "too_long_prompt_reference_fails",
}
SOLVERS = {
    "euler": "euler",
    "euler_a": "euler_ancestral",
    "ddim": "ddim",
    "ddim_zero_snr": "ddim",
    "ddpm": "ddpm",
    "lcm": "lcm",
    "lcm_from_euler": "lcm",
    "dpm": "dpmpp",
}
VIDEO_BOUND = 2e-3
BOUNDS = (("start", 0.0), ("end", 1.0))
LAYOUTS = {"uniform_v2": "upstream", "uniform": "upstream_uniform"}


def cases() -> list[Any]:
    """Names of the pipeline cases that text and image to video answers for."""
    if not have_goldens():
        return [pytest.param("missing")]
    names = []
    for path in sorted((GOLDENS / "pipeline" / "cases").glob("*.json")):
        case = json.loads(path.read_text())
        if case["level"] != "pipeline" or path.stem in WITHOUT_NUMBERS:
            continue
        names.append(path.stem)
    return names


@functools.cache
def bundle_for(unet: str, *, referencenet: bool, ip_adapter: bool, zero_snr: bool) -> ModelBundle:
    """Put a bundle together from the goldens' components."""
    from diffusers import AutoencoderKL

    from musev.models.image_prompt import ImageProjection
    from musev.models.reference import ReferenceNet2D
    from musev.models.unet import UNet3DConditionModel

    def weights(folder: str, name: str) -> dict[str, torch.Tensor]:
        return {key: t.float() for key, t in load_tensors(COMPONENTS / folder / name).items()}

    def load(cls: Any, folder: str) -> Any:
        return cls.from_pretrained(COMPONENTS / folder).float().eval().requires_grad_(False)

    projection = None
    if ip_adapter:
        config = json.loads((COMPONENTS / "ip_adapter_image_proj" / "config.json").read_text())
        projection = ImageProjection(**config).eval()
        projection.load_state_dict(weights("ip_adapter_image_proj", "model.safetensors"))
    schedule_folder = COMPONENTS / ("scheduler_zero_snr" if zero_snr else "scheduler")
    recorded = json.loads((schedule_folder / "scheduler_config.json").read_text())
    # The zero-SNR solver is the original's DDIM class, whose default the file leaves out.
    recorded = {"set_alpha_to_one": zero_snr, **recorded}
    known = {field.name for field in dataclasses.fields(ScheduleConfig)}
    return ModelBundle(
        unet=load_face_unet(unet)
        if unet.endswith("_face")
        else load(UNet3DConditionModel, f"unet_{unet}"),
        vae=load(AutoencoderKL, "vae"),
        tokenizer=CLIPTokenizer.from_pretrained(COMPONENTS / "tokenizer"),
        text_encoder=load(CLIPTextModel, "text_encoder"),
        referencenet=load(ReferenceNet2D, "referencenet") if referencenet else None,
        image_encoder=load(CLIPVisionModelWithProjection, "image_encoder") if ip_adapter else None,
        image_projection=projection,
        schedule=ScheduleConfig(**{key: recorded[key] for key in known & recorded.keys()}),
        device=torch.device("cpu"),
        dtype=torch.float32,
    )


def sampling_for(case: dict[str, Any]) -> SamplingConfig:
    """Our settings for a recorded call."""
    call = case["call"]
    return SamplingConfig(
        first_frame=FirstFrameConfig(origin="noise"),
        solver=SOLVERS[case["scheduler"]],
        num_steps=call["num_inference_steps"],
        eta=call.get("eta", 0.0),
        windows=WindowConfig(
            num_frames=call["context_frames"],
            overlap=call["context_overlap"],
            layout=LAYOUTS[call["context_schedule"]],
            stride=call.get("context_stride", 1),
        ),
        guidance=GuidanceConfig(
            scale=call["guidance_scale"],
            scale_end=call.get("guidance_scale_end"),
            schedule=call.get("guidance_scale_method", "linear"),
        ),
        noise=f"upstream_{call['noise_type']}",
        w_ind_noise=call["w_ind_noise"],
        img_weight=call["img_weight"],
        motion_speed=call["motion_speed"],
        ip_adapter_scale=call.get("ip_adapter_scale", 1.0),
        ip_adapter_face_scale=call.get("ip_adapter_face_scale", 1.0),
        image_fit="upstream",
        prompt_from_image=call.get("prompt_only_use_image_prompt", False),
        strength=call.get("strength", 1.0),
        # Only where latents are given besides the image does it count (ALGORITHM.md 7.4).
        strength_counts=call.get("add_latents_noise", False),
    )


def frames_of(tensors: dict[str, torch.Tensor], name: str) -> np.ndarray | None:
    """A recorded uint8 ``[1, C, T, Y, X]`` picture as ``TYXC``."""
    if f"in.{name}" not in tensors:
        return None
    return tensors[f"in.{name}"][0].permute(1, 2, 3, 0).numpy()


def request_for(case: dict[str, Any], num_given: int, clip: int = 0) -> ClipRequest:
    """Our request for a recorded call."""
    call = case["call"]

    def text(key: str) -> str:
        value = call[key]
        return value[clip] if isinstance(value, list) else value

    return ClipRequest(
        request_id=case["name"],
        prompt=text("prompt"),
        negative_prompt=text("negative_prompt"),
        num_frames=call["video_length"] + num_given,
        fps=8,
        width=call["width"],
        height=call["height"],
        seed=case["generator_seed"],
        profile="parity",
        sampling=sampling_for(case),
    )


@functools.cache
def controlnets(kind: str) -> tuple[ControlNet, ...]:
    """The goldens' ControlNets: one, or two whose residuals are added."""
    names = {"single": ("controlnet1",), "multi": ("controlnet1", "controlnet2")}[kind]
    return tuple(
        ControlNet.from_pretrained(COMPONENTS / name).float().eval().requires_grad_(False)
        for name in names
    )


def control_for(
    case: dict[str, Any], recorded: dict[str, Any], timesteps: Sequence[float]
) -> ClipControl | None:
    """A recorded call's control: maps or latents, those of the condition frames in front."""
    kind = case["components"].get("controlnet")
    if not kind:
        return None
    nets, call, count = controlnets(kind), case["call"], len(timesteps)

    def each(value: Any) -> list[Any]:
        return value if isinstance(value, list) else [value] * len(nets)

    begins, ends = (each(call.get(f"control_guidance_{name}", default)) for name, default in BOUNDS)
    strengths = each(call["controlnet_conditioning_scale"])

    def scales(timestep: float) -> list[float]:
        step = list(timesteps).index(timestep)  # ALGORITHM.md 7.2
        off = [step / count < begin or (step + 1) / count > end
               for begin, end in zip(begins, ends, strict=True)]  # fmt: skip
        return [0.0 if no else scale for no, scale in zip(off, strengths, strict=True)]

    if "in.controlnet_latents" in recorded:
        parts = [recorded.get(f"in.controlnet_{name}latents") for name in ("condition_", "")]
        joined = torch.cat([part for part in parts if part is not None], dim=2)
        embedded = [lambda frames: joined[0, :, list(frames)].transpose(0, 1)]
        return ClipControl(nets, embedded, scales)
    embedded = []
    for number, net in enumerate(nets):
        suffix = "" if kind == "single" else f".{number}"
        names = (f"controlnet_condition_images{suffix}", f"control_image{suffix}")
        maps = [part for name in names if (part := frames_of(recorded, name)) is not None]
        embedded.append(EmbeddedFrames(net, np.concatenate(maps).__getitem__))
    return ClipControl(nets, embedded, scales)


class TemporalOffDenoiser:
    """A single frame without temporal layers, as the original makes its first frame."""

    def __init__(self, bundle: ModelBundle, conditions: Any) -> None:
        self._bundle, self._conditions = bundle, conditions

    def __call__(self, noisy: torch.Tensor, timestep: float, window: Any) -> torch.Tensor:
        return self._bundle.unet(
            torch.cat([noisy, noisy]),
            timestep,
            self._conditions.network,
            attachments=(TemporalOff(), FramePositions(motion_speed=8.0)),
        )


class ClobberingDenoiser:
    """First and last frame given, as the original shows them to its network: the window is written
    over the last one, and a frame of zeros stays where the window should begin (ALGORITHM.md 7.5).
    """

    def __init__(self, bundle: ModelBundle, conditions: Any) -> None:
        self._bundle, self._conditions = bundle, conditions

    def __call__(self, noisy: torch.Tensor, timestep: float, window: Any) -> torch.Tensor:
        first = self._conditions.frames_BCTHW[:, :, :1]
        joint = torch.cat([first, torch.zeros_like(first), noisy], dim=2)
        estimate = self._bundle.unet(
            torch.cat([joint, joint]),
            timestep,
            self._conditions.network,
            attachments=(
                FramePositions(motion_speed=8.0),
                ConditionFrames((0, joint.shape[2] - 1)),
            ),
        )
        return estimate[:, :, 2:]


@pytest.mark.parametrize("name", cases())
def test_pipeline_case(name: str) -> None:
    """Initial latents, every step's latents and the decoded video equal the original's."""
    require_goldens()
    case, recorded = pipeline_case(name)
    fixed = case.get("expected_if_fixed")
    if fixed:
        _, recorded = pipeline_case(fixed)
    num_clips = recorded["c0.latents_out"].shape[0]
    for clip in range(num_clips):
        check_clip(name, case, recorded, clip)


def check_clip(name: str, case: dict[str, Any], recorded: dict[str, Any], clip: int) -> None:
    """Run one clip of a case through our verbs and compare all that was recorded."""
    parts = case["components"]
    bundle = bundle_for(
        case["unet"],
        referencenet=bool(parts.get("referencenet")),
        ip_adapter=bool(parts.get("ip_adapter")),
        zero_snr="zero_snr" in case["scheduler"],
    )
    bundle = with_adapters(bundle, case)
    media = ClipMedia(
        condition_image=frames_of(recorded, "condition_images"),
        reference_image=frames_of(recorded, "refer_image"),
        ip_adapter_image=frames_of(recorded, "ip_adapter_image"),
    )
    if "in.refer_image" not in recorded and "in.ip_adapter_image" not in recorded:
        # The pipeline itself never falls back to the condition image; its caller does.
        bundle = dataclasses.replace(bundle, referencenet=None, image_projection=None)
    num_given = 0 if media.condition_image is None else len(media.condition_image)
    request = request_for(case, num_given, clip)
    if "in.face_emb" in recorded:
        faces = tuple(recorded["in.face_emb"].flatten().tolist())
        request = dataclasses.replace(request, face_embedding=faces)
    bound = tolerance(name, case)
    with torch.inference_mode():
        conditions = encode_conditions(bundle, request, media)
        steps, latents = denoise(case, bundle, request, conditions, recorded, clip)
        close("steps", torch.stack(steps), recorded["c0.step_latents"][:, clip : clip + 1], bound)
        close("latents", latents, recorded["c0.latents_out"][clip : clip + 1], bound)
        segment_frames = case["call"].get("decoder_t_segment", 200)
        video = np.concatenate(list(decode_segments(bundle, latents, segment_frames)))
    last = recorded["c0.video_last"][clip].permute(1, 2, 0).float().numpy()
    # Ours is uint8 by truncation, so up to one level of 255 below the recorded floats.
    assert np.abs(video[-1] / 255 - last).max() <= 1 / 255 + VIDEO_BOUND
    means = recorded["c0.video_frame_means"][clip].numpy()
    assert np.abs(video.mean(axis=(1, 2, 3)) / 255 - means).max() <= 1 / 255 + VIDEO_BOUND


def denoise(
    case: dict[str, Any],
    bundle: ModelBundle,
    request: ClipRequest,
    conditions: Any,
    recorded: dict[str, Any],
    clip: int,
) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Denoise as the original did: its noise, its solver options, its order."""
    sampling = request.sampling
    options = dict(case.get("scheduler_overrides") or {})
    if case["scheduler"] == "dpm":
        options.setdefault("use_karras_sigmas", True)  # the original's default for this class
    solver = make_solver(sampling, bundle.schedule, **options)
    source_BCTHW = None
    if "in.image" in recorded:
        source_BCTHW = recorded.get("in.latents")
        if sampling.strength_counts:
            solver = start_late(solver, sampling.strength)
        else:
            source_BCTHW = encode_frames(bundle.vae, frames_of(recorded, "image"))
    generator = torch.Generator("cpu").manual_seed(case["generator_seed"])
    source = UpstreamSource(UpstreamNoise(generator, sampling.noise, sampling.w_ind_noise))
    initial = recorded["c0.latents_init"]
    if "in.latents" in recorded and source_BCTHW is None:
        start = recorded["in.latents"] * solver.initial_scale
    else:
        mixed = case["call"]["need_img_based_video_noise"]
        frames = conditions.frames_BCTHW if mixed else None
        start = start_latents(
            source, tuple(initial.shape), frames, solver, sampling, source_BCTHW=source_BCTHW
        )
    close("initial", start, initial, 1e-5 * max(1.0, solver.initial_scale))
    if "vision_condition_latent_index" in case["call"]:
        denoiser: Any = ClobberingDenoiser(bundle, conditions)
    elif case["call"].get("skip_temporal_layer"):
        denoiser = TemporalOffDenoiser(bundle, conditions)
    else:
        denoiser = WindowDenoiser(
            bundle.unet,
            conditions,
            always=(FramePositions(motion_speed=sampling.motion_speed),),
            control=control_for(case, recorded, solver.timesteps),
        )
    steps: list[torch.Tensor] = []
    done = denoise_clip(
        denoiser,
        start[clip : clip + 1],
        solver=solver,
        sampling=sampling,
        noise=source,
        on_step=lambda _step, latents: steps.append(latents),
    )
    if "vision_condition_latent_index" in case["call"]:
        given = conditions.frames_BCTHW
        return steps, torch.cat([given[:, :, :1], done, given[:, :, 1:]], dim=2)
    return steps, join_frames(conditions, done)


def tolerance(name: str, case: dict[str, Any]) -> float:
    """The case's own bound where the goldens state one, else the README's."""
    stated = json.loads((GOLDENS / "pipeline" / "sensitivity.json").read_text())["tolerance"]
    if name in stated:
        return stated[name]["c0.latents_out"]
    return 5e-2 if "lcm" in case["scheduler"] else 2e-3


def close(what: str, ours: torch.Tensor, theirs: torch.Tensor, bound: float) -> None:
    """Compare shapes and values."""
    assert ours.shape == theirs.shape, what
    error = (ours.float() - theirs.float()).abs().max().item()
    assert error <= bound, f"{what}: max abs error {error:.2e} > {bound:.0e}"


def test_render_verb_takes_the_same_path() -> None:
    """``denoise_request`` alone, from the seed, reproduces a recorded run of several windows."""
    case, recorded = pipeline_case("ref_ip_parallel")
    bundle = bundle_for("musev_referencenet", referencenet=True, ip_adapter=True, zero_snr=False)
    media = ClipMedia(
        condition_image=frames_of(recorded, "condition_images"),
        reference_image=frames_of(recorded, "refer_image"),
        ip_adapter_image=frames_of(recorded, "ip_adapter_image"),
    )
    request = request_for(case, 1)
    with torch.inference_mode():
        conditions = encode_conditions(bundle, request, media)
        latents = denoise_request(bundle, request, conditions)
    close("latents", latents, recorded["c0.latents_out"], 2e-3)
