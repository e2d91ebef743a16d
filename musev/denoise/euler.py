"""Euler's rule along sigma, and its ancestral variant that adds noise back at every step."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from torch import Tensor

from musev.config import PredictionType, ScheduleConfig
from musev.denoise.schedule import (
    float_timesteps,
    karras_sigmas,
    make_schedule,
    timesteps_of_sigmas,
)
from musev.denoise.solver_base import Solver, SolverState, check_noise, to_float32
from musev.errors import ConfigError

MAX_CHURN = math.sqrt(2.0) - 1.0  # arXiv 2206.00364, algorithm 2


@dataclass(frozen=True, kw_only=True)
class EulerOptions:
    """Upstream's options of Euler, by its names; the ``s_`` ones are its churn.

    ``interpolation_type`` ``log_linear`` keeps upstream's result: sigmas spaced in their logarithm
    between the largest and smallest of the table while the timesteps stay those of the spacing, and
    the last step ends at the table's smallest sigma instead of 0.
    """

    use_karras_sigmas: bool = False
    interpolation_type: Literal["linear", "log_linear"] = "linear"
    s_churn: float = 0.0
    s_tmin: float = 0.0
    s_tmax: float = math.inf
    s_noise: float = 1.0

    def __post_init__(self) -> None:
        if self.interpolation_type not in ("linear", "log_linear"):
            raise ConfigError(
                f"interpolation_type must be linear or log_linear, got {self.interpolation_type!r}"
            )
        if self.s_churn < 0:
            raise ConfigError(f"s_churn must not be negative, got {self.s_churn}")


@dataclass(frozen=True, kw_only=True)
class EulerAncestralOptions:
    """Upstream's ancestral Euler has no options of its own."""


class _VarianceExploding(Solver):
    """A solver whose latents are ``clean + sigma * noise``."""

    sigmas: tuple[float, ...]
    prediction_type: PredictionType

    def scale_input(self, latents: Tensor, step: int) -> Tensor:
        """Scale latents to the unit variance the network was trained on; float32."""
        return to_float32(latents) / math.sqrt(self.sigmas[step] ** 2 + 1.0)

    def add_noise(self, clean: Tensor, noise: Tensor, step: int) -> Tensor:
        """Add noise of the sigma at the start of ``step``."""
        return to_float32(clean) + self.sigmas[step] * to_float32(noise)

    def _predict_clean(
        self, estimate: Tensor, latents: Tensor, sigma: float, sigma_of_noise: float
    ) -> Tensor:
        if self.prediction_type == "epsilon":
            return latents - sigma_of_noise * estimate
        if self.prediction_type == "sample":
            return estimate
        variance = sigma**2 + 1.0
        return latents / variance - (sigma / math.sqrt(variance)) * estimate


@dataclass(frozen=True, kw_only=True)
class Euler(_VarianceExploding):
    """Euler's method on the probability flow (arXiv 2206.00364, algorithm 2 without correction)."""

    timesteps: tuple[float, ...]
    sigmas: tuple[float, ...]
    initial_scale: float
    prediction_type: PredictionType = "epsilon"
    options: EulerOptions = field(default_factory=EulerOptions)

    def needs_noise(self, step: int) -> bool:
        """Whether churn applies at ``step``."""
        return self._churn(step) > 0

    def upstream_draws(self, step: int) -> bool:
        """Always: the original draws before it looks whether there is churn."""
        return True

    def advance(
        self, state: SolverState, estimate: Tensor, step: int, noise: Tensor | None = None
    ) -> SolverState:
        """Move along the slope at (churned) sigma to the next sigma."""
        latents, estimate = to_float32(state.latents), to_float32(estimate)
        sigma, target, churn = self.sigmas[step], self.sigmas[step + 1], self._churn(step)
        raised = sigma * (churn + 1.0)
        if churn > 0:
            spread = self.options.s_noise * math.sqrt(raised**2 - sigma**2)
            latents = latents + spread * check_noise(noise, step)
        # Upstream converts a velocity at the sigma before churn; a noise estimate at the one after.
        clean = self._predict_clean(estimate, latents, sigma, raised)
        return SolverState(latents + (latents - clean) / raised * (target - raised))

    def _churn(self, step: int) -> float:
        options, sigma = self.options, self.sigmas[step]
        if not options.s_tmin <= sigma <= options.s_tmax:
            return 0.0
        return min(options.s_churn / (len(self.sigmas) - 1), MAX_CHURN)


@dataclass(frozen=True, kw_only=True)
class EulerAncestral(_VarianceExploding):
    """Euler's method to a lower sigma than asked for, then fresh noise up to it.

    Source:
        k-diffusion ``sample_euler_ancestral``; upstream uses evenly spaced timesteps always and
        ignores the model's spacing and offset.
    """

    timesteps: tuple[float, ...]
    sigmas: tuple[float, ...]
    initial_scale: float
    prediction_type: PredictionType = "epsilon"

    def needs_noise(self, step: int) -> bool:
        """Whether the step ends above sigma 0."""
        return self.sigmas[step + 1] > 0

    def upstream_draws(self, step: int) -> bool:
        """Always, also on the last step."""
        return True

    def advance(
        self, state: SolverState, estimate: Tensor, step: int, noise: Tensor | None = None
    ) -> SolverState:
        """Move to the lower sigma and add noise."""
        latents, estimate = to_float32(state.latents), to_float32(estimate)
        sigma, target = self.sigmas[step], self.sigmas[step + 1]
        added = math.sqrt(target**2 * (sigma**2 - target**2) / sigma**2)
        lower = math.sqrt(target**2 - added**2)
        clean = self._predict_clean(estimate, latents, sigma, sigma)
        moved = latents + (latents - clean) / sigma * (lower - sigma)
        if self.needs_noise(step):
            moved = moved + added * check_noise(noise, step)
        return SolverState(moved)


def make_euler(config: ScheduleConfig, num_steps: int, options: EulerOptions) -> Euler:
    """Build Euler's solver.

    Args:
        config: The network's diffusion.
        num_steps: Number of steps.
        options: Churn and spacing of sigmas.

    Returns:
        The solver. ``initial_scale`` is the largest sigma, for leading timesteps
        ``sqrt(sigma**2 + 1)``: upstream's rule.
    """
    table = make_schedule(config).sigmas
    timesteps = float_timesteps(config, num_steps)
    if options.interpolation_type == "linear":
        sigmas = np.interp(timesteps, np.arange(len(table)), table)
    else:
        logs = np.linspace(np.log(table[-1]), np.log(table[0]), num_steps + 1, dtype=np.float32)
        sigmas = np.exp(logs)
    if options.use_karras_sigmas:
        sigmas = karras_sigmas(float(sigmas[-1]), float(sigmas[0]), num_steps)
        timesteps = tuple(timesteps_of_sigmas(sigmas, table).tolist())
    visited = _with_end(sigmas)
    largest = max(visited)
    leading = config.timestep_spacing == "leading"
    return Euler(
        timesteps=timesteps,
        sigmas=visited,
        initial_scale=math.sqrt(largest**2 + 1.0) if leading else largest,
        prediction_type=config.prediction_type,
        options=options,
    )


def make_euler_ancestral(
    config: ScheduleConfig, num_steps: int, options: EulerAncestralOptions
) -> EulerAncestral:
    """Build the ancestral solver; arguments as :func:`make_euler`."""
    table = make_schedule(config).sigmas
    timesteps = np.linspace(0, config.num_train_timesteps - 1, num_steps)[::-1]
    visited = _with_end(np.interp(timesteps, np.arange(len(table)), table))
    return EulerAncestral(
        timesteps=tuple(timesteps.tolist()),
        sigmas=visited,
        initial_scale=max(visited),
        prediction_type=config.prediction_type,
    )


def _with_end(sigmas: np.ndarray) -> tuple[float, ...]:
    """Round to float32, as upstream keeps them, and end at 0."""
    return (*sigmas.astype(np.float32).tolist(), 0.0)
