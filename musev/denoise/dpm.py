"""DPM-Solver and DPM-Solver++, multistep, of order 1 to 3 (arXiv 2206.00927, 2211.01095).

The state's history holds the converted estimates of earlier steps, so a frame that is advanced
alone carries everything it needs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from musev.config import PredictionType, ScheduleConfig
from musev.denoise.schedule import log_snr_timesteps, make_schedule, split_variance
from musev.denoise.solver_base import (
    SolverState,
    VariancePreserving,
    check_signal,
    predict_clean,
    predict_noise,
    to_float32,
)
from musev.errors import ConfigError

SHORT_RUN = 15  # below this many steps the end is taken at low order; upstream's constant


@dataclass(frozen=True, kw_only=True)
class DpmOptions:
    """Upstream's options of its multistep DPM solver, by its names.

    Upstream's class switches ``use_karras_sigmas`` on by default; here it is off, because its
    rounded timesteps make the first steps ill-conditioned (latents up to 60).

    ``solver_order`` 3 takes upstream's second difference, which is half of what third order needs:
    it converges like order 2, with a smaller error.
    """

    solver_order: int = 2
    algorithm_type: Literal["dpmsolver", "dpmsolver++"] = "dpmsolver++"
    solver_type: Literal["midpoint", "heun"] = "midpoint"
    lower_order_final: bool = True
    use_karras_sigmas: bool = False

    def __post_init__(self) -> None:
        if self.solver_order not in (1, 2, 3):
            raise ConfigError(f"solver_order must be 1, 2 or 3, got {self.solver_order}")
        if self.algorithm_type not in ("dpmsolver", "dpmsolver++"):
            raise ConfigError(
                f"algorithm_type must be dpmsolver or dpmsolver++, got {self.algorithm_type!r}"
            )
        if self.solver_type not in ("midpoint", "heun"):
            raise ConfigError(f"solver_type must be midpoint or heun, got {self.solver_type!r}")


@dataclass(frozen=True, kw_only=True)
class Dpm(VariancePreserving):
    """The multistep exponential integrator in the logarithm of signal over noise.

    ``alphas_cumprod`` has one entry more than ``timesteps``: the share after the last step, that of
    training timestep 0.
    """

    timesteps: tuple[float, ...]
    alphas_cumprod: tuple[float, ...]
    initial_scale: float = 1.0
    prediction_type: PredictionType = "epsilon"
    options: DpmOptions = field(default_factory=DpmOptions)

    def needs_noise(self, step: int) -> bool:
        """Never: the solver is deterministic."""
        return False

    def upstream_draws(self, step: int) -> bool:
        """Never."""
        return False

    def advance(
        self, state: SolverState, estimate: Tensor, step: int, noise: Tensor | None = None
    ) -> SolverState:
        """Integrate over one step, at the highest order the history allows."""
        latents, estimate = to_float32(state.latents), to_float32(estimate)
        alpha, sigma = split_variance(self.alphas_cumprod[step])
        convert = predict_clean if self._plus else predict_noise
        newest = convert(self.prediction_type, estimate, latents, alpha, sigma)
        known = (newest, *state.history)
        history = known[: self.options.solver_order - 1]
        if self._log_snr(step + 1) == self._log_snr(step):
            return SolverState(
                latents, history
            )  # a step of no length: Karras may end at timestep 0
        order = min(self._order(step), len(known))
        return SolverState(self._integrate(latents, known[:order], step), history)

    @property
    def _plus(self) -> bool:
        return self.options.algorithm_type == "dpmsolver++"

    def _order(self, step: int) -> int:
        left = self.num_steps - step
        if self.options.lower_order_final and self.num_steps < SHORT_RUN:
            return min(self.options.solver_order, left)
        return self.options.solver_order

    def _log_snr(self, step: int) -> float:
        alpha, sigma = split_variance(self.alphas_cumprod[step])
        return math.log(alpha) - math.log(sigma)

    def _integrate(self, latents: Tensor, known: tuple[Tensor, ...], step: int) -> Tensor:
        length = self._log_snr(step + 1) - self._log_snr(step)
        alpha, sigma = split_variance(self.alphas_cumprod[step])
        next_alpha, next_sigma = split_variance(self.alphas_cumprod[step + 1])
        # The noise form is the clean form with signal and noise exchanged and time turned round, so
        # both are written once, in the signed length of the step.
        exponent = -length if self._plus else length
        kept, weight = (
            (next_sigma / sigma, next_alpha) if self._plus else (next_alpha / alpha, next_sigma)
        )
        grown = math.expm1(exponent)
        moved = kept * latents - (weight * grown) * known[0]
        if len(known) == 1:
            return moved
        slope, curve = self._differences(known, step, length)
        first = grown / exponent - 1.0
        if len(known) == 2 and self.options.solver_type == "midpoint":
            # Half the change over the step, instead of the exact integral of a line.
            return moved - (0.5 * weight * grown) * slope
        moved = moved - (weight * first) * slope
        if curve is None:
            return moved
        second = (grown - exponent) / exponent**2 - 0.5
        return moved - (weight * second) * curve

    def _differences(
        self, known: tuple[Tensor, ...], step: int, length: float
    ) -> tuple[Tensor, Tensor | None]:
        """First and second divided differences of the estimates, in units of this step."""
        ratio = (self._log_snr(step) - self._log_snr(step - 1)) / length
        slope = (known[0] - known[1]) / ratio
        if len(known) == 2:
            return slope, None
        older = (self._log_snr(step - 1) - self._log_snr(step - 2)) / length
        change = slope - (known[1] - known[2]) / older
        return slope + (ratio / (ratio + older)) * change, change / (ratio + older)


def make_dpm(config: ScheduleConfig, num_steps: int, options: DpmOptions) -> Dpm:
    """Build the multistep solver.

    Args:
        config: The network's diffusion; its spacing and offset are not used, as upstream.
        num_steps: Number of steps; Karras timesteps may give fewer.
        options: Order, form and timesteps.

    Returns:
        The solver.

    Raises:
        ConfigError: If the diffusion starts without signal, where the log ratio is infinite.
    """
    schedule = make_schedule(config)
    timesteps = log_snr_timesteps(schedule, num_steps, karras=options.use_karras_sigmas)
    shares = tuple(schedule.alphas_cumprod[timestep] for timestep in (*timesteps, 0))
    check_signal(config.prediction_type, shares)
    if min(shares) <= 0:
        raise ConfigError("the dpmpp solver cannot start from zero signal; use solver ddim")
    return Dpm(
        timesteps=timesteps,
        alphas_cumprod=shares,
        prediction_type=config.prediction_type,
        options=options,
    )
