"""Denoise frames in this process from start to clean, without a wavefront that others drive.

Axes here: B clip, C channel, T frame, H W latent rows and columns.

A picture that is drawn before its clip and a shot of a longer video are made so. Where windows go
to many workers, :func:`musev.clip_front.open_front` begins the same way.
"""

from __future__ import annotations

from torch import Tensor

from musev.clip_front import LATENT_CHANNELS, solver_of, start_latents
from musev.config import ClipRequest
from musev.control.clip_control import ClipControl
from musev.denoise.loop import OnStep, denoise_clip
from musev.denoise.smoothing import ShotSmoother
from musev.denoise.sources import make_noise_source
from musev.models.attachments import FramePositions, TemporalOff
from musev.models.bundle import ModelBundle
from musev.window_denoiser import CarefulDenoiser, ClipConditions


def denoise_frames(
    bundle: ModelBundle,
    request: ClipRequest,
    conditions: ClipConditions,
    control: ClipControl | None,
    *,
    num_frames: int,
    attached: FramePositions | TemporalOff,
    smoother: ShotSmoother | None = None,
    on_step: OnStep | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Denoise frames that are generated together.

    Args:
        bundle: The loaded networks.
        request: Size, seed and sampling.
        conditions: Of these frames: where they stand, what they start from, and where the
            original's generator stands.
        control: Of the whole video.
        num_frames: How many are generated.
        attached: What the network is told of the frames' order.
        smoother: Mixes them with a shot before.
        on_step: Told of every step.

    Returns:
        ``latents_BCTHW``, float32 on the CPU, and the state of the original's generator after it.
    """
    sampling, scale = request.sampling, bundle.vae_scale_factor
    solver = solver_of(sampling, bundle.schedule, late=conditions.source_BCTHW is not None)
    noise = make_noise_source(
        sampling,
        request.seed,
        first_frame=conditions.frame_places.of(0),
        state=conditions.noise_state,
    )
    size = (request.height // scale, request.width // scale)
    start_BCTHW = start_latents(
        noise,
        (1, LATENT_CHANNELS, num_frames, *size),
        conditions.frames_BCTHW,
        solver,
        sampling,
        source_BCTHW=conditions.source_BCTHW,
    )
    if smoother is not None:
        smoother.begin(num_frames, solver.num_steps)
    control = None if control is None else control.during(solver.timesteps)
    latents_BCTHW = denoise_clip(
        CarefulDenoiser(bundle.unet, conditions, always=(attached,), control=control),
        start_BCTHW,
        solver=solver,
        sampling=sampling,
        noise=noise,
        smoother=smoother,
        on_step=on_step,
    )
    return latents_BCTHW, noise.state
