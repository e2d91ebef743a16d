"""Denoise one clip in one process: the wavefront with a single worker, one window after another.

Axes here: B clip, C channel, T frame, H W latent rows and columns.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from musev.config import SamplingConfig
from musev.denoise.conditioning import Denoiser
from musev.denoise.smoothing import ShotSmoother
from musev.denoise.solvers import Solver
from musev.denoise.sources import NoiseSource
from musev.denoise.wavefront import Wavefront, frames_of

OnStep = Callable[[int, Tensor], None]


def denoise_clip(
    denoiser: Denoiser,
    latents_BCTHW: Tensor,
    *,
    solver: Solver,
    sampling: SamplingConfig,
    noise: NoiseSource,
    smoother: ShotSmoother | None = None,
    on_step: OnStep | None = None,
) -> Tensor:
    """Take a clip's latents from pure noise to clean.

    Args:
        denoiser: Estimates of one window; ``[unconditional, conditional]`` along B with guidance.
        latents_BCTHW: float32, already at the solver's initial scale; not changed.
        solver: Its state advances frame by frame, so windows may overlap.
        sampling: Windows and guidance of the clip.
        noise: What the solver draws during the steps.
        smoother: Mixes the clip with another one before it.
        on_step: Called with the step just done and the latents after it.

    Returns:
        ``latents_BCTHW``: float32, same shape.

    Source:
        Upstream's loop (pipeline_controlnet.py, ALGORITHM.md 8.2): estimates are averaged over
        windows first and guided after; one solver step moves the whole clip.
    """
    front = Wavefront(
        frames_of(latents_BCTHW),
        num_frames=latents_BCTHW.shape[2],
        solver=solver,
        sampling=sampling,
        noise=noise,
        smoother=smoother,
    )
    return drive_front(front, denoiser, on_step=on_step)


def drive_front(front: Wavefront, denoiser: Denoiser, *, on_step: OnStep | None = None) -> Tensor:
    """Bring a wavefront to its end, one window after the other.

    Args:
        front: At its beginning, or anywhere on its way.
        denoiser: Estimates of one window.
        on_step: Called with the step just done and the latents after it.

    Returns:
        ``latents_BCTHW`` of the whole clip, float32.
    """
    reported = front.complete_steps
    while (work := front.take_next()) is not None:
        front.answer(work.task, denoiser(work.noisy_BCFHW, work.timestep, work.task.frames))
        # Lowest step first and one at a time: when a step is complete, no frame is beyond it.
        if on_step is not None and front.complete_steps > reported:
            on_step(reported, front.latents(0, front.num_frames))
            reported = front.complete_steps
    return front.release(0, front.num_frames)
