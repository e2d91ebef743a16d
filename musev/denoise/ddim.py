"""DDIM and DDPM: steps between two shares of signal, with as much fresh noise as asked for."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from musev.config import PredictionType, ScheduleConfig
from musev.denoise.schedule import integer_timesteps, make_schedule, split_variance
from musev.denoise.solver_base import (
    SolverState,
    VariancePreserving,
    check_noise,
    check_signal,
    predict_clean,
    predict_noise,
    to_float32,
)
from musev.errors import ConfigError

MIN_VARIANCE = 1e-20  # diffusers scheduling_ddpm.py, ``_get_variance``


@dataclass(frozen=True, kw_only=True)
class DdimOptions:
    """Upstream's options of DDIM, by its names.

    ``eta``: 0 deterministic, 1 as noisy as DDPM. ``clip_sample_range`` counts only if the model's
    schedule says ``clip_sample``.
    """

    eta: float = 0.0
    use_clipped_model_output: bool = False
    clip_sample_range: float = 1.0

    def __post_init__(self) -> None:
        if self.eta < 0:
            raise ConfigError(f"eta must not be negative, got {self.eta}")


@dataclass(frozen=True, kw_only=True)
class DdpmOptions:
    """Upstream's options of DDPM, by its names.

    ``variance_type``: ``fixed_small`` and ``fixed_small_log`` are the same numbers (the variance of
    the posterior), ``fixed_large`` takes the whole beta of the step.
    """

    variance_type: Literal["fixed_small", "fixed_small_log", "fixed_large"] = "fixed_small"
    clip_sample_range: float = 1.0

    def __post_init__(self) -> None:
        if self.variance_type not in ("fixed_small", "fixed_small_log", "fixed_large"):
            raise ConfigError(
                "variance_type must be fixed_small, fixed_small_log or fixed_large, "
                f"got {self.variance_type!r}"
            )


@dataclass(frozen=True, kw_only=True)
class Ddim(VariancePreserving):
    """Denoising diffusion implicit models (arXiv 2010.02502, equation 12).

    ``alphas_cumprod`` and ``targets`` hold the share of signal before and after each step.
    ``clip``: largest absolute value of clean latents, None for no limit.
    """

    timesteps: tuple[float, ...]
    alphas_cumprod: tuple[float, ...]
    targets: tuple[float, ...]
    initial_scale: float = 1.0
    prediction_type: PredictionType = "epsilon"
    clip: float | None = None
    options: DdimOptions = field(default_factory=DdimOptions)

    def needs_noise(self, step: int) -> bool:
        """Whether ``eta`` asks for noise and the step does not end at pure signal."""
        return self._spread(step) > 0

    def upstream_draws(self, step: int) -> bool:
        """On every step if ``eta`` is not 0."""
        return self.options.eta > 0

    def advance(
        self, state: SolverState, estimate: Tensor, step: int, noise: Tensor | None = None
    ) -> SolverState:
        """Mix the implied clean latents and noise in the next step's shares."""
        latents, estimate = to_float32(state.latents), to_float32(estimate)
        alpha, sigma = split_variance(self.alphas_cumprod[step])
        clean = predict_clean(self.prediction_type, estimate, latents, alpha, sigma)
        implied = predict_noise(self.prediction_type, estimate, latents, alpha, sigma)
        if self.clip is not None:
            clean = clean.clamp(-self.clip, self.clip)
        if self.options.use_clipped_model_output:
            implied = predict_noise("sample", clean, latents, alpha, sigma)
        spread, target = self._spread(step), self.targets[step]
        kept = math.sqrt(max(1.0 - target - spread**2, 0.0))
        moved = math.sqrt(target) * clean + kept * implied
        if self.needs_noise(step):
            moved = moved + spread * check_noise(noise, step)
        return SolverState(moved)

    def _spread(self, step: int) -> float:
        now, target = self.alphas_cumprod[step], self.targets[step]
        variance = (1.0 - target) / (1.0 - now) * (1.0 - now / target)
        return self.options.eta * math.sqrt(max(variance, 0.0))


@dataclass(frozen=True, kw_only=True)
class Ddpm(VariancePreserving):
    """Denoising diffusion probabilistic models (arXiv 2006.11239, equations 6 and 7).

    Fields as in :class:`Ddim`.
    """

    timesteps: tuple[float, ...]
    alphas_cumprod: tuple[float, ...]
    targets: tuple[float, ...]
    initial_scale: float = 1.0
    prediction_type: PredictionType = "epsilon"
    clip: float | None = None
    options: DdpmOptions = field(default_factory=DdpmOptions)

    def needs_noise(self, step: int) -> bool:
        """Whether the step adds variance beyond upstream's floor of 1e-20."""
        return self.timesteps[step] > 0 and self._variance(step) > MIN_VARIANCE

    def upstream_draws(self, step: int) -> bool:
        """On every step that does not start at timestep 0."""
        return self.timesteps[step] > 0

    def advance(
        self, state: SolverState, estimate: Tensor, step: int, noise: Tensor | None = None
    ) -> SolverState:
        """Draw from the posterior given the implied clean latents."""
        latents, estimate = to_float32(state.latents), to_float32(estimate)
        now, target = self.alphas_cumprod[step], self.targets[step]
        clean = predict_clean(self.prediction_type, estimate, latents, *split_variance(now))
        if self.clip is not None:
            clean = clean.clamp(-self.clip, self.clip)
        ratio = now / target
        of_clean = math.sqrt(target) * (1.0 - ratio) / (1.0 - now)
        of_latents = math.sqrt(ratio) * (1.0 - target) / (1.0 - now)
        moved = of_clean * clean + of_latents * latents
        if self.needs_noise(step):
            moved = moved + math.sqrt(self._variance(step)) * check_noise(noise, step)
        return SolverState(moved)

    def _variance(self, step: int) -> float:
        now, target = self.alphas_cumprod[step], self.targets[step]
        beta = 1.0 - now / target
        if self.options.variance_type == "fixed_large":
            return beta
        return max((1.0 - target) / (1.0 - now) * beta, 0.0)


def make_ddim(config: ScheduleConfig, num_steps: int, options: DdimOptions) -> Ddim:
    """Build DDIM.

    Args:
        config: The network's diffusion.
        num_steps: Number of steps.
        options: Noise and clipping.

    Returns:
        The solver.
    """
    table = make_schedule(config).alphas_cumprod
    # Upstream ends at the first training timestep's share unless set_alpha_to_one is given.
    last = 1.0 if config.set_alpha_to_one else table[0]
    timesteps, now, targets = _visited(config, num_steps, last)
    return Ddim(
        timesteps=timesteps,
        alphas_cumprod=now,
        targets=targets,
        prediction_type=config.prediction_type,
        clip=options.clip_sample_range if config.clip_sample else None,
        options=options,
    )


def make_zero_snr_ddim(config: ScheduleConfig, num_steps: int, options: DdimOptions) -> Ddim:
    """Build DDIM over a diffusion that ends in pure noise, whatever the network's config says.

    Args:
        config: Left alone but for the number of training timesteps.
        num_steps: Number of steps.
        options: Noise and clipping.

    Returns:
        The solver; it takes the network's output for a velocity.

    Source:
        Upstream ``--enable_zero_snr`` (ALGORITHM.md 4.2); goldens components/scheduler_zero_snr.
    """
    schedule = ScheduleConfig(
        num_train_timesteps=config.num_train_timesteps,
        beta_schedule="linear",
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        rescale_betas_zero_snr=True,
        set_alpha_to_one=True,
    )
    return make_ddim(schedule, num_steps, options)


def make_ddpm(config: ScheduleConfig, num_steps: int, options: DdpmOptions) -> Ddpm:
    """Build DDPM; it always ends at pure signal. Arguments as :func:`make_ddim`."""
    timesteps, now, targets = _visited(config, num_steps, 1.0)
    return Ddpm(
        timesteps=timesteps,
        alphas_cumprod=now,
        targets=targets,
        prediction_type=config.prediction_type,
        clip=options.clip_sample_range if config.clip_sample else None,
        options=options,
    )


def _visited(
    config: ScheduleConfig, num_steps: int, last: float
) -> tuple[tuple[int, ...], tuple[float, ...], tuple[float, ...]]:
    """Timesteps and the share of signal before and after each.

    The share after a step is read one whole stride below its timestep, as upstream does, even where
    the spacing puts the next timestep elsewhere.
    """
    table = make_schedule(config).alphas_cumprod
    timesteps = integer_timesteps(config, num_steps)
    stride = config.num_train_timesteps // num_steps
    now = tuple(table[timestep] for timestep in timesteps)
    targets = tuple(table[t - stride] if t >= stride else last for t in timesteps)
    check_signal(config.prediction_type, now)
    return timesteps, now, targets
