"""Latent consistency models: jump to the clean latents, add noise again, repeat a few times."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from torch import Tensor

from musev.config import PredictionType, ScheduleConfig
from musev.denoise.schedule import consistency_timesteps, make_schedule, split_variance
from musev.denoise.solver_base import (
    SolverState,
    VariancePreserving,
    check_noise,
    check_signal,
    predict_clean,
    to_float32,
)
from musev.errors import ConfigError

SIGMA_DATA = 0.5  # arXiv 2310.04378, equation 9 with the released code's boundary scales


@dataclass(frozen=True, kw_only=True)
class LcmOptions:
    """Upstream's options of LCM, by its names.

    ``original_inference_steps``: timesteps of the grid the model was distilled on.
    ``clip_sample_range`` counts only if the model's schedule says ``clip_sample``.
    """

    original_inference_steps: int = 50
    timestep_scaling: float = 10.0
    clip_sample_range: float = 1.0

    def __post_init__(self) -> None:
        if self.original_inference_steps < 1:
            raise ConfigError(
                f"original_inference_steps must be at least 1: {self.original_inference_steps}"
            )


@dataclass(frozen=True, kw_only=True)
class Lcm(VariancePreserving):
    """Multistep consistency sampling (arXiv 2310.04378, algorithm 3)."""

    timesteps: tuple[float, ...]
    alphas_cumprod: tuple[float, ...]
    initial_scale: float = 1.0
    prediction_type: PredictionType = "epsilon"
    clip: float | None = None
    options: LcmOptions = field(default_factory=LcmOptions)

    def needs_noise(self, step: int) -> bool:
        """On every step but the last."""
        return step < self.num_steps - 1

    def upstream_draws(self, step: int) -> bool:
        """On every step but the last."""
        return self.needs_noise(step)

    def advance(
        self, state: SolverState, estimate: Tensor, step: int, noise: Tensor | None = None
    ) -> SolverState:
        """Jump to the clean latents; add noise up to the next timestep if there is one."""
        latents, estimate = to_float32(state.latents), to_float32(estimate)
        alpha, sigma = split_variance(self.alphas_cumprod[step])
        clean = predict_clean(self.prediction_type, estimate, latents, alpha, sigma)
        if self.clip is not None:
            clean = clean.clamp(-self.clip, self.clip)
        scaled = self.timesteps[step] * self.options.timestep_scaling
        of_latents = SIGMA_DATA**2 / (scaled**2 + SIGMA_DATA**2)
        of_clean = scaled / math.sqrt(scaled**2 + SIGMA_DATA**2)
        clean = of_clean * clean + of_latents * latents
        if not self.needs_noise(step):
            return SolverState(clean)
        return SolverState(self.add_noise(clean, check_noise(noise, step), step + 1))


def make_lcm(config: ScheduleConfig, num_steps: int, options: LcmOptions) -> Lcm:
    """Build the consistency solver.

    Args:
        config: The network's diffusion.
        num_steps: Number of steps, at most ``options.original_inference_steps``.
        options: The distillation's grid and clipping.

    Returns:
        The solver.
    """
    table = make_schedule(config).alphas_cumprod
    timesteps = consistency_timesteps(
        config.num_train_timesteps, num_steps, original_steps=options.original_inference_steps
    )
    shares = tuple(table[timestep] for timestep in timesteps)
    check_signal(config.prediction_type, shares)
    return Lcm(
        timesteps=timesteps,
        alphas_cumprod=shares,
        prediction_type=config.prediction_type,
        clip=options.clip_sample_range if config.clip_sample else None,
        options=options,
    )
