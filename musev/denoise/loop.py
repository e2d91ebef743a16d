"""Denoise one clip in one process: windows, blend, guidance and one solver step, step after step.

Axes here: B clip, C channel, T frame, F frame within a window, H W latent rows and columns.
Owns the order of operations of one step; knows neither networks nor pixels.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from musev.config import SamplingConfig
from musev.denoise.conditioning import Denoiser
from musev.denoise.guidance import guidance_scales, guide
from musev.denoise.solvers import Solver, SolverState
from musev.denoise.sources import NoiseSource
from musev.denoise.windows import blend_windows, plan_windows, window_weights

OnStep = Callable[[int, Tensor], None]


def denoise_clip(
    denoiser: Denoiser,
    latents_BCTHW: Tensor,
    *,
    solver: Solver,
    sampling: SamplingConfig,
    noise: NoiseSource,
    on_step: OnStep | None = None,
) -> Tensor:
    """Take a clip's latents from pure noise to clean.

    Args:
        denoiser: Estimates of one window; ``[unconditional, conditional]`` along B with guidance.
        latents_BCTHW: float32, already at the solver's initial scale; not changed.
        solver: Its state advances frame by frame, so windows may overlap.
        sampling: Windows and guidance of the clip.
        noise: What the solver draws during the steps.
        on_step: Called with the step just done and the latents after it.

    Returns:
        ``latents_BCTHW``: float32, same shape.

    Source:
        Upstream's loop (pipeline_controlnet.py, ALGORITHM.md 8.2): estimates are averaged over
        windows first and guided after; one solver step moves the whole clip.
    """
    num_frames = latents_BCTHW.shape[2]
    scales = guidance_scales(sampling.guidance, solver.num_steps)
    state = SolverState(latents_BCTHW)
    for step in range(solver.num_steps):
        windows = plan_windows(num_frames, sampling.windows, step=step, num_steps=solver.num_steps)
        noisy_BCTHW = solver.scale_input(state.latents, step)
        timestep = solver.timesteps[step]
        estimates = [
            denoiser(noisy_BCTHW[:, :, list(window)], timestep, window).float()
            for window in windows
        ]
        weights = [window_weights(sampling.windows, len(window)) for window in windows]
        estimate_BCTHW = blend_windows(estimates, windows, weights, num_frames)
        if sampling.guidance.active:
            uncond_BCTHW, cond_BCTHW = estimate_BCTHW.chunk(2)
            estimate_BCTHW = guide(uncond_BCTHW, cond_BCTHW, scales[step])
        drawn = noise.during(solver, step, latents_BCTHW.shape)
        state = solver.advance(state, estimate_BCTHW, step, drawn)
        if on_step is not None:
            on_step(step, state.latents)
    return state.latents
